"""Golden vectors of sparse attention, sampling, and whole models."""

from copy import deepcopy
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Generator, Tensor

from dsarch.checkpoint import load_checkpoint
from dsarch.config import Config
from dsarch.dsa import SparseMLA, chosen, top_k
from dsarch.generate import generate, speculate
from dsarch.indexing import indexer_loss
from dsarch.layers import causal_mask, positions
from dsarch.mla import expanded
from dsarch.model import DeepSeek
from dsarch.mtp import advance, mtp_losses
from dsarch.rope import phases
from dsarch.sampling import Sampling, verify
from dsarch.train.tokenizer import BOS, encode
from tests.golden.parts import (
    LATENT,
    START,
    YARN,
    Vectors,
    random,
    sizes,
    weights,
)

ROOT = Path(__file__).resolve().parents[2]
SPARSE = LATENT.replace(
    model_type="deepseek_v32",
    index_topk=4,
    index_n_heads=9,
    index_head_dim=32,
)
# V3.2 with everything in it: 52 KB in bf16.
WHOLE = Config(
    model_type="deepseek_v32",
    vocab_size=29,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    q_lora_rank=11,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    rope_theta=100.0,
    rope_scaling=YARN,
    index_topk=5,
    index_n_heads=9,
    index_head_dim=10,
    intermediate_size=20,
    moe_intermediate_size=6,
    n_routed_experts=8,
    num_experts_per_tok=3,
    initializer_range=0.3,
)
TINY = ROOT / "weights" / "tiny-pretrained"
# A beginning of each kind of text that the tiny model has read.
PROMPTS = ("The tall ", "27+58=", "{aQR,bST}", "[(x")
NEW_TOKENS = 48


def dsa(generator: Generator) -> Vectors:
    """A sparse layer in its masked form, with the scores of its indexer."""
    layer = SparseMLA(SPARSE)
    own = weights(layer, generator)
    layer = layer.double()
    x = random(generator, 2, 9, SPARSE.hidden_size)
    wide = x.double()
    phase = phases(SPARSE, positions(2, START, 9))
    mask = causal_mask(positions(2, 0, 9), 9)
    q, q_rope, latent = layer.queries(wide, phase)
    c, k_rope = layer.memories(wide, phase)
    k = layer.indexer.keys(wide, phase)
    score = layer.indexer(wide, latent, phase, k)
    read = chosen(top_k(score, mask, layer.topk), mask)
    o = expanded(q, q_rope, c, k_rope, *layer.up(), read, layer.scale)
    fields = (
        "num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim "
        "qk_rope_head_dim v_head_dim rope_theta index_topk index_n_heads "
        "index_head_dim"
    ).split()
    yarn = {name: getattr(YARN, name) for name in YARN.__dataclass_fields__}
    return {
        **sizes(
            start=START, **{name: getattr(SPARSE, name) for name in fields}
        ),
        **sizes(**yarn),
        **own,
        "in.x": x,
        "out.k_index": k,
        "out.scores": score,
        "out.chosen": read,
        "out.indexer_loss": indexer_loss(layer, wide, phase, mask).reshape(1),
        "out.heads": o,
        "out.layer": layer.o_proj(o.flatten(-2)),
    }


class Likeliest(Sampling):
    """Draws nothing, so that a port can follow."""

    def draw(self, p: Tensor) -> Tensor:
        return p.argmax(-1)


def sampling(generator: Generator) -> Vectors:
    """Temperature and nucleus; drafts verified, some kept and some not."""
    logits = random(generator, 2, 3, 17) * 2
    warm = Sampling(0.7, 0.8).probabilities(logits.double())
    made: Vectors = {"in.logits": logits, "out.probabilities": warm}
    for case in range(8):
        p = (random(generator, 2, 4, 11)).softmax(-1)
        q = (p[:, :3].log() + 0.6 * random(generator, 2, 3, 11)).softmax(-1)
        drafts = q.flatten(0, 1).multinomial(1, generator=generator)
        drafts, u = drafts.view(2, 3), torch.empty(2, 3)
        torch.rand((2, 3), generator=Generator().manual_seed(case), out=u)
        chance = Likeliest(generator=Generator().manual_seed(case))
        given = {"p": p, "q": q, "drafts": drafts, "u": u}
        made |= {f"in.{case}.{name}": x for name, x in given.items()}
        made[f"out.{case}"] = verify(drafts, q, p, chance)
    return {**sizes(temperature=0.7, top_p=0.8, cases=8), **made}


@cache
def whole() -> DeepSeek:
    """The model in the folder `model`: everything matters, all is bf16."""
    model = DeepSeek(WHOLE, Generator().manual_seed(0))
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.ndim == 1:
                mean = float("norm" in name and "bias" not in name)
                x.normal_(mean, 0.3, generator=generator)
    return model.to(torch.bfloat16)


def model(generator: Generator) -> Vectors:
    """Logits, drafts and greedy text of the model in the folder `model`."""
    made = deepcopy(whole()).double()
    tokens = torch.randint(29, (2, 13), generator=generator)
    hidden = made.hidden(tokens[:, :-1])
    prompt = tokens[:1, :7]
    written = generate(made, prompt, 24)
    return {
        "in.tokens": tokens,
        "in.prompt": prompt,
        "out.hidden": hidden,
        "out.logits": made.lm_head(hidden),
        "out.advance": advance(made.mtp[0], hidden, tokens[:, 1:]),
        "out.mtp_losses": mtp_losses(made.mtp, hidden, tokens),
        # The layer in two depths, each from the state of the one before.
        "out.chained": mtp_losses([*made.mtp, *made.mtp], hidden, tokens),
        "out.text": written,
        "out.margins": margin(made, prompt, written).reshape(1),
    }


def text(generator: Generator) -> Vectors:
    """What `weights/tiny-pretrained` writes, greedily, in fp64."""
    tiny = load_checkpoint(TINY, dtype=torch.float64)
    made: Vectors = sizes(prompts=len(PROMPTS))
    margins = []
    for number, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([[BOS, *encode(prompt)]])
        written = generate(tiny, tokens, NEW_TOKENS)
        made |= {f"in.{number}": tokens, f"out.{number}": written}
        margins.append(margin(tiny, tokens, written))
        made[f"out.{number}.pieces"] = pieces(tiny, tokens)
    return {**made, "out.margins": torch.stack(margins)}


def pieces(model: DeepSeek, prompt: Tensor) -> Tensor:
    """How many tokens each of twelve passes with three drafts yields."""
    steps = islice(speculate(model, prompt, Sampling(), 3), 12)
    return torch.tensor([float(new.size(1)) for new in steps])


def margin(model: DeepSeek, prompt: Tensor, written: Tensor) -> Tensor:
    """How far the nearest rival of any written token stayed behind."""
    best = model(written)[0, prompt.size(1) - 1 : -1].topk(2).values
    return (best[:, 0] - best[:, 1]).min()


FUNCTIONS = (dsa, sampling, model, text)
