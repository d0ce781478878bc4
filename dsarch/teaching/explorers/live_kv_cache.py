"""The live panel of the key-value cache: predicted and allocated bytes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from dsarch.analysis import count, decode
from dsarch.analysis.presets import Preset
from dsarch.attention import GroupedQueryAttention
from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.layers import causal_mask, positions
from dsarch.mla import MLA
from dsarch.rope import phases
from dsarch.teaching.explorers.kv_cache import model
from dsarch.teaching.explorers.live import Answer, Field, Panel

MAX_BYTES = 256 * 2**20
MAX_FLOPS = 30 * 10**9
HIDDEN, CHUNK = 64, 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Sizes(NamedTuple):
    """What the panel of the key-value cache asks for."""

    kind: Any
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int
    rope: int
    context: int
    batch: int
    dtype: str

    @property
    def preset(self) -> Preset:
        """The counted model; its checks are the panel's checks."""
        return model(self.kind, *self[1:7])

    @property
    def predicted(self) -> int:
        """Bytes of the cache by counting alone."""
        element = DTYPES[self.dtype].itemsize
        found = count.cache_bytes(
            self.preset, self.context, self.batch, element
        )
        return int(found)


def fill(sizes: Sizes) -> list[Cache]:
    """Run the real attention over random tokens; one cache for each layer.

    ``ValueError`` for sizes that contradict each other, or need more than
    256 MiB or 30 GFLOP; nothing is allocated then.
    """
    _check_budget(sizes)
    layer, phase = _layer(sizes)
    layer = layer.to(DTYPES[sizes.dtype])
    caches = [Cache(reserve=sizes.context) for _ in range(sizes.layers)]
    random = torch.Generator().manual_seed(0)
    for start in range(0, sizes.context, CHUNK):
        size = min(CHUNK, sizes.context - start)
        x = torch.randn(sizes.batch, size, HIDDEN, generator=random)
        position = positions(sizes.batch, start, size)
        mask = causal_mask(position, start + size)
        for cache in caches:
            with torch.no_grad():
                layer(x.to(DTYPES[sizes.dtype]), phase(position), mask, cache)
    return caches


def _check_budget(sizes: Sizes) -> None:
    heads, width = sizes.heads, sizes.head_dim
    latent = sizes.latent if sizes.kind == "MLA" else 0
    pairs = 3 * CHUNK * sizes.context
    work = 4 * sizes.batch * heads * (pairs + 4 * width * sizes.context)
    weights = 16 * HIDDEN * heads * (width + sizes.rope)
    weights += 8 * latent * heads * width
    need = sizes.predicted + work + weights
    if need > MAX_BYTES:
        raise ValueError(
            f"this needs {need / 2**20:,.0f} MiB, more than the "
            f"{MAX_BYTES // 2**20} MiB that a panel may use"
        )
    context, runs = sizes.context, sizes.layers * sizes.batch
    cost = decode.grouped(heads, heads, width + latent, context, context)
    if cost.flops * runs > MAX_FLOPS:
        raise ValueError(
            f"this needs {cost.flops * runs / 1e9:,.0f} GFLOP, more than the "
            f"{MAX_FLOPS // 10**9} GFLOP that a panel may use"
        )


def _layer(sizes: Sizes) -> tuple[nn.Module, Callable[[Any], Any]]:
    """The attention of one layer, and the phases it wants."""
    if sizes.kind != "MLA":
        heads = (sizes.heads, sizes.preset.kv_heads)
        layer = GroupedQueryAttention(HIDDEN, *heads, sizes.head_dim)
        return layer, lambda position: None
    cfg = Config(
        hidden_size=HIDDEN,
        num_attention_heads=sizes.heads,
        q_lora_rank=None,
        kv_lora_rank=sizes.latent,
        qk_nope_head_dim=sizes.head_dim,
        qk_rope_head_dim=sizes.rope,
        v_head_dim=sizes.head_dim,
    )
    return MLA(cfg), lambda position: phases(cfg, position)


def compare_bytes(**values: Any) -> Answer:
    """Predicted against allocated bytes, with the shape of every stream."""
    sizes = Sizes(**values)
    caches = fill(sizes)
    found = sum(cache.reserved_nbytes for cache in caches)
    verdict = "exactly the" if found == sizes.predicted else "NOT the"
    text = (
        f"{sizes.kind} over {sizes.batch} × {sizes.context:,} tokens in "
        f"{sizes.layers} layers: {found:,} bytes are allocated, {verdict} "
        f"{sizes.predicted:,} predicted."
    )
    names = ("latent", "k_rope") if sizes.kind == "MLA" else ("k", "v")
    first = caches[0]
    rows = [
        (name, list(first[name].shape), f"{first[name].nbytes:,}")
        for name in names
    ]
    return Answer(text, ("stream of a layer", "shape", "bytes"), rows)


def _beginning(name: str, field: Field, value: int | str) -> Field:
    if isinstance(field, int) and isinstance(value, int):
        return value
    choices = [] if isinstance(field, int) else list(field)
    if isinstance(value, str) and value in choices:
        return sorted(choices, key=lambda choice: choice != value)
    raise ValueError(f"{name!r} cannot begin at {value!r} here")


def live_kv_cache(**start: int | str) -> Panel:
    """The panel of the key-value cache; ``start`` sets first values.

    A name that is no field, or a choice that it does not offer, raises
    ``ValueError``.
    """
    fields: dict[str, tuple[str, Field]] = {
        "kind": ("Attention", ["MLA", "MHA", "GQA", "MQA"]),
        "layers": ("Layers", 4),
        "heads": ("Query heads", 8),
        "kv_heads": ("KV heads (GQA)", 2),
        "head_dim": ("Head width", 32),
        "latent": ("Latent (MLA)", 64),
        "rope": ("Rotary (MLA)", 16),
        "context": ("Context", 256),
        "batch": ("Sequences", 2),
        "dtype": ("Numbers", list(DTYPES)),
    }
    for name, value in start.items():
        label, field = fields.get(name, ("", ""))
        fields[name] = label, _beginning(name, field, value)
    title = "Live: predicted against allocated cache bytes."
    return Panel(title, fields, compare_bytes)
