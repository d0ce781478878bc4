"""What the golden files hold: one function for each module.

A function draws its inputs from the generator it is given and returns named
tensors: weights under the names of the checkpoint, ``cfg.*`` for sizes,
``in.*`` and ``out.*``. Outputs are computed in fp64 from fp32 inputs, by the
form that a port should not copy: repeated keys for grouped attention, the
expanded form for latent attention. A new module adds a function below, or in
a file beside this one, and its name to ``MODULES``; ``make golden`` then
writes its file.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache

import torch
from torch import Generator

from dsarch.attention import GroupedQueryAttention, repeated
from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA, expanded
from dsarch.rope import (
    correction_range,
    frequencies,
    phases,
    rotate,
    softmax_factor,
    to_half_split,
)
from tests.golden import (
    critics,
    eights,
    experts,
    models,
    posting,
    programs,
    training,
)
from tests.golden.parts import (
    LATENT,
    START,
    YARN,
    Vectors,
    random,
    sizes,
    weights,
)


def rope(generator: Generator) -> Vectors:
    """Both layouts, the permutation between them, and YaRN's numbers."""
    cfg = LATENT.replace(qk_rope_head_dim=10)
    position = positions(2, START, 5)
    x = random(generator, 2, 5, 3, 10)
    phase = phases(cfg, position)
    width, theta = cfg.qk_rope_head_dim, cfg.rope_theta
    # Here both ends of the ramp lie between two pairs.
    wide = replace(YARN, original_max_position_embeddings=90)
    return {
        **sizes(rope_theta=theta, wide_window=90, **asdict(YARN)),
        "in.x": x,
        "in.position": position.float(),
        "out.frequencies": frequencies(width, theta),
        "out.yarn_frequencies": frequencies(width, theta, YARN),
        "out.correction_range": torch.tensor(
            correction_range(width, theta, YARN)
        ),
        "out.wide_frequencies": frequencies(width, theta, wide),
        "out.wide_range": torch.tensor(correction_range(width, theta, wide)),
        "out.softmax_factor": torch.tensor([softmax_factor(YARN)]),
        "out.interleaved": rotate(x.double(), phase),
        "out.half_split": rotate(x.double(), phase, interleaved=False),
        "out.permuted": to_half_split(x),
    }


def cache(generator: Generator) -> Vectors:
    """Three chunks, a crop as after a rejected draft, and one more chunk."""
    memory, chunks = Cache(), (3, 1, 5)
    latent = random(generator, 2, sum(chunks) + 2, 4)
    k_rope = random(generator, 2, sum(chunks) + 2, 6)
    parts = [x.split([*chunks, 2], 1) for x in (latent, k_rope)]
    pieces = zip(*parts, strict=True)
    for number, (c, k) in enumerate(pieces):
        if number == len(chunks):
            memory.crop(7)
        memory.extend(latent=c, k_rope=k)
    return {
        "cfg.chunks": torch.tensor([*map(float, chunks), 2.0]),
        **sizes(crop=7),
        "in.latent": latent,
        "in.k_rope": k_rope,
        "out.latent": memory["latent"],
        "out.k_rope": memory["k_rope"],
        "out.nbytes": torch.tensor([float(memory.nbytes)]),
    }


def attention(generator: Generator) -> Vectors:
    """A grouped layer, six heads on two, with and without rotation."""
    layer = GroupedQueryAttention(20, 6, 2, 8)
    named = weights(layer, generator)
    layer = layer.double()
    x = random(generator, 3, 7, 20)
    position = positions(3, 0, 7)
    angle = position[..., None] * frequencies(8, 100.0)
    phase = torch.polar(torch.ones_like(angle), angle)
    mask = causal_mask(position, 7)
    outputs = {}
    for name, turn in (("plain", None), ("rotated", phase)):
        q, k, v = (
            map_(x.double()).unflatten(-1, (-1, 8))
            for map_ in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        if turn is not None:
            q, k = (rotate(y, turn, interleaved=False) for y in (q, k))
        o = repeated(q, k, v, mask).flatten(-2)
        outputs[f"out.{name}"] = layer.o_proj(o)
    return {
        **sizes(heads=6, kv_heads=2, head_dim=8, rope_theta=100.0),
        **named,
        "in.x": x,
        **outputs,
    }


def latent(generator: Generator, cfg: Config) -> Vectors:
    """A latent layer from position 13 on, expanded, with what it caches."""
    layer = MLA(cfg)
    named = weights(layer, generator)
    layer = layer.double()
    x = random(generator, 2, 7, cfg.hidden_size)
    phase = phases(cfg, positions(2, START, 7))
    mask = causal_mask(positions(2, 0, 7), 7)
    q, q_rope, _ = layer.queries(x.double(), phase)
    c, k_rope = layer.memories(x.double(), phase)
    o = expanded(q, q_rope, c, k_rope, *layer.up(), mask, layer.scale)
    fields = (
        "num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim "
        "qk_rope_head_dim v_head_dim rope_theta"
    ).split()
    return {
        **sizes(start=START, **{name: getattr(cfg, name) for name in fields}),
        **sizes(**asdict(YARN)),
        **named,
        "in.x": x,
        "out.latent": c,
        "out.k_rope": k_rope,
        "out.heads": o,
        "out.layer": layer.o_proj(o.flatten(-2)),
    }


def mla(generator: Generator) -> Vectors:
    """Latent attention with a query latent, as in V2 and V3."""
    return latent(generator, LATENT)


def mla_lite(generator: Generator) -> Vectors:
    """Latent attention without a query latent, as in V2-Lite."""
    return latent(generator, LATENT.replace(q_lora_rank=None))


MODULES: dict[str, Callable[[Generator], Vectors]] = {
    function.__name__: function
    for function in (
        rope,
        cache,
        attention,
        mla,
        mla_lite,
        *experts.FUNCTIONS,
        *models.FUNCTIONS,
        *training.FUNCTIONS,
        *posting.FUNCTIONS,
        *critics.FUNCTIONS,
        *programs.FUNCTIONS,
        *eights.FUNCTIONS,
    )
}


@lru_cache
def make(name: str) -> Vectors:
    """The content of one golden file: fp32, no gradients, contiguous."""
    with torch.no_grad():
        made = MODULES[name](torch.Generator().manual_seed(0))
    return {key: made[key].float().contiguous() for key in sorted(made)}
