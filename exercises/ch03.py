"""Exercises of chapter 3: one latent for all heads."""

from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsarch import layers, mla
from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from einops import rearrange
from torch import einsum
from dsarch.layers import masked_softmax
"""

# All widths differ, so that no mix-up can hide.
SMALL = Config(
    hidden_size=20,
    num_attention_heads=3,
    q_lora_rank=11,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
)


def layer():
    """A small layer whose norms are not the identity."""
    made = mla.MLA(SMALL).double()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return made.requires_grad_(False)


def unturned(count):
    """Phases of angle zero: chapter 4 brings the rotation."""
    pairs = SMALL.qk_rope_head_dim // 2
    return torch.ones(2, count, pairs, dtype=torch.complex128)


def inputs(queries=4, keys=7):
    """What both forms of attention take, for a chunk after a prompt."""
    made = layer()
    x = torch.randn(2, keys, SMALL.hidden_size, dtype=torch.float64)
    q, q_rope, _ = made.queries(x[:, -queries:], unturned(queries))
    c, k_rope = made.memories(x, unturned(keys))
    position = layers.positions(2, keys - queries, queries)
    return (
        *(q, q_rope, c, k_rope, *made.up()),
        layers.causal_mask(position, keys),
    )


def judge_bytes(answer):
    for cfg in (Config.v3(), Config.v2_lite(), SMALL):
        cache = Cache()
        c = torch.zeros(1, 1, cfg.kv_lora_rank, dtype=torch.bfloat16)
        k = torch.zeros(1, 1, cfg.qk_rope_head_dim, dtype=torch.bfloat16)
        cache.extend(latent=c, k_rope=k)
        depth = cfg.num_hidden_layers
        want = cache.nbytes * depth
        heads = cfg.num_attention_heads
        full = heads * (cfg.qk_head_dim + cfg.v_head_dim)
        same(
            call(answer, cfg),
            want,
            {
                "the rotary key is cached beside the latent": (
                    c.nbytes * depth
                ),
                "key and value share one latent: nothing counts twice": (
                    2 * want
                ),
                "the rotary key is stored once, not for every head": (
                    (c.nbytes + heads * k.nbytes) * depth
                ),
                "this is the cache of expanded keys and values": (
                    2 * full * depth
                ),
                "every layer has its own latent": cache.nbytes,
            },
            f"the bytes for {depth} layers",
        )


BYTES = Exercise(
    id="03.1",
    title="What one token leaves behind",
    difficulty=1,
    minutes=5,
    task="""\
Write the bytes that one token adds to the cache of a model with latent
attention in bf16, from the fields of its `Config`.""",
    checks="DeepSeek-V3, V2-Lite and a small model against the bytes that "
    "real caches hold",
    name="latent_bytes",
    skeleton="""
def latent_bytes(cfg, bytes_per_element=2):
    return ...
""",
    solution="""
def latent_bytes(cfg, bytes_per_element=2):
    numbers = cfg.kv_lora_rank + cfg.qk_rope_head_dim
    return cfg.num_hidden_layers * numbers * bytes_per_element
""",
    hints=(
        "Which two things does a layer keep of a token?",
        "`kv_lora_rank` numbers for the latent and `qk_rope_head_dim` for "
        "the one rotary key.",
        "Add the two, times the layers, times the bytes per number; the "
        "number of heads does not occur.",
    ),
    wrong=(
        Wrong(
            "forgets the rotary key",
            says="beside the latent",
            old=" + cfg.qk_rope_head_dim",
            new="",
        ),
        Wrong(
            "counts keys and values",
            says="counts twice",
            old="numbers = cfg.kv_lora_rank + cfg.qk_rope_head_dim",
            new="numbers = 2 * (cfg.kv_lora_rank + cfg.qk_rope_head_dim)",
        ),
        Wrong(
            "a rotary key for every head",
            says="not for every head",
            old="+ cfg.qk_rope_head_dim",
            new="+ cfg.num_attention_heads * cfg.qk_rope_head_dim",
        ),
    ),
    judge=judge_bytes,
)


def judge_split(answer):
    made = layer()
    heads, n = SMALL.num_attention_heads, SMALL.qk_nope_head_dim
    weight = made.kv_b_proj.weight
    rows = heads * n
    v = SMALL.v_head_dim
    uk, uv = made.up()
    same(
        call(answer, weight, heads, n),
        (uk, uv),
        {
            "the rows go head by head, n of a key and then v of a value; "
            "they are not all keys first": (
                weight[:rows].unflatten(0, (heads, n)),
                weight[rows:].unflatten(0, (heads, v)),
            ),
            "within a head the key comes first": (
                weight.unflatten(0, (heads, n + v))[:, v:],
                weight.unflatten(0, (heads, n + v))[:, :v],
            ),
            "return the map of the keys first": (uv, uk),
        },
        "the two maps",
    )


SPLIT = Exercise(
    id="03.2",
    title="Two maps in one matrix",
    difficulty=2,
    minutes=6,
    task="""\
The checkpoint stores $W^{UK}$ and $W^{UV}$ as one matrix of
`heads * (n + v)` rows: for each head `n` rows of the key, then `v` rows of the
value. Return `w_uk` `[h, n, c]` and `w_uv` `[h, v, c]`.""",
    checks="fp64 equality with the two maps of `dsarch.MLA`",
    name="split_up",
    skeleton="""
def split_up(weight, heads, n):
    per_head = ...  # [h, n + v, c]
    return ..., ...
""",
    solution="""
def split_up(weight, heads, n):
    per_head = rearrange(weight, "(h m) c -> h m c", h=heads)
    return per_head[:, :n], per_head[:, n:]
""",
    hints=(
        "Which index is the slow one among the rows: the head or the kind?",
        "Split the rows into heads first, then cut each head.",
        '`rearrange(weight, "(h m) c -> h m c", h=heads)`, then cut axis 1 '
        "at `n`.",
    ),
    wrong=(
        Wrong(
            "takes all keys first",
            says="not all keys first",
            new="""
def split_up(weight, heads, n):
    k, v = weight[: heads * n], weight[heads * n :]
    k = rearrange(k, "(h n) c -> h n c", h=heads)
    return k, rearrange(v, "(h v) c -> h v c", h=heads)
""",
        ),
        Wrong(
            "takes the value first",
            says="the key comes first",
            old="per_head[:, :n], per_head[:, n:]",
            new="per_head[:, -n:], per_head[:, :-n]",
        ),
        Wrong(
            "returns them in the other order",
            says="keys first",
            old="per_head[:, :n], per_head[:, n:]",
            new="per_head[:, n:], per_head[:, :n]",
        ),
    ),
    judge=judge_split,
)


def judge_rebuild(answer):
    _, _, c, k_rope, w_uk, w_uv, _ = inputs()
    k = torch.einsum("bsc,hnc->bshn", c, w_uk)
    v = torch.einsum("bsc,hvc->bshv", c, w_uv)
    heads = [k_rope] * SMALL.num_attention_heads
    turned = torch.stack(heads, 2)
    same(
        call(answer, c, k_rope, w_uk, w_uv),
        (torch.cat([k, turned], -1), v),
        {
            "the content part comes first, the rotary part last": (
                torch.cat([turned, k], -1),
                v,
            ),
            "the rotary key is missing: each key is n + r wide": (k, v),
        },
        "keys and values",
    )


REBUILD = Exercise(
    id="03.3",
    title="From the latent back to keys and values",
    difficulty=2,
    minutes=8,
    task="""\
Rebuild what ordinary attention needs: keys `[b, s, h, n + r]`, the content part
of each head followed by the rotary key that all heads share, and values
`[b, s, h, v]`.""",
    checks="fp64 equality of keys and values, three heads",
    name="rebuild",
    skeleton="""
def rebuild(c, k_rope, w_uk, w_uv):
    k = ...  # [b, s, h, n]
    v = ...  # [b, s, h, v]
    return ..., v
""",
    solution="""
def rebuild(c, k_rope, w_uk, w_uv):
    k = einsum("bsc,hnc->bshn", c, w_uk)
    v = einsum("bsc,hvc->bshv", c, w_uv)
    shared = k_rope[:, :, None].expand(-1, -1, k.size(2), -1)
    return torch.cat([k, shared], -1), v
""",
    hints=(
        "Two contractions over the latent, and one key that is copied.",
        'The content keys are `einsum("bsc,hnc->bshn", c, w_uk)`.',
        "Give `k_rope` a head axis with `[:, :, None]`, expand it, and "
        "concatenate along the last axis.",
    ),
    wrong=(
        Wrong(
            "puts the rotary part first",
            says="rotary part last",
            old="[k, shared]",
            new="[shared, k]",
        ),
        Wrong(
            "leaves the rotary key out",
            says="rotary key is missing",
            old="torch.cat([k, shared], -1)",
            new="k",
        ),
    ),
    judge=judge_rebuild,
)


def judge_absorb(answer):
    (q, q_rope, c, k_rope, w_uk, w_uv, mask) = inputs()
    n, r = SMALL.qk_widths
    parts = q, q_rope, c, k_rope, w_uk, w_uv, mask

    def scaled(width):
        return mla.expanded(*parts, width**-0.5)

    none = torch.zeros_like(q_rope)
    same(
        call(answer, *parts),
        mla.expanded(*parts, (n + r) ** -0.5),
        {
            "the scale belongs to the keys of the model, n + r wide, not to "
            "the latent": scaled(SMALL.kv_lora_rank + r),
            "both parts of the score share one scale: 1 / sqrt(n + r)": (
                scaled(n)
            ),
            "the rotary part of the score is missing": mla.expanded(
                q, none, *parts[2:], (n + r) ** -0.5
            ),
            "the scores need their scale: 1 / sqrt(n + r)": scaled(1),
        },
        "the attention output",
    )
    with FlopCounterMode(display=False) as mine:
        call(answer, *parts)
    with FlopCounterMode(display=False) as official:
        mla.absorbed(*parts, (n + r) ** -0.5)
    if mine.get_total_flops() > official.get_total_flops():
        raise Mistake(
            "right, but this multiplies more than the absorbed form does: "
            "were keys or values rebuilt?"
        )


ABSORB = Exercise(
    id="03.4",
    title="Attend to the latents themselves",
    difficulty=3,
    minutes=15,
    task="""\
The absorbed form: move $W^{UK}$ onto the query, compare with the latents, mix
latents, and apply $W^{UV}$ last. `q` is `[b, t, h, n]`, `q_rope`
`[b, t, h, r]`, `c` `[b, s, c]`, `k_rope` `[b, s, r]`; no tensor with both a
head and a rebuilt key may appear. The scale is yours to choose.""",
    checks="fp64 agreement with `dsarch.mla.expanded`, the other form, for "
    "a chunk after a prompt, with no more multiplications than "
    "`dsarch.mla.absorbed`",
    name="latent_attention",
    skeleton="""
def latent_attention(q, q_rope, c, k_rope, w_uk, w_uv, mask):
    scale = ...
    q = ...      # [b, t, h, c]
    score = ...  # content and rotary part
    p = masked_softmax(score * scale, mask)
    return ...   # [b, t, h, v]
""",
    solution="""
def latent_attention(q, q_rope, c, k_rope, w_uk, w_uv, mask):
    scale = (q.size(-1) + q_rope.size(-1)) ** -0.5
    q = einsum("bthn,hnc->bthc", q, w_uk)
    score = einsum("bthc,bsc->bhts", q, c)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    p = masked_softmax(score * scale, mask)
    o = einsum("bhts,bsc->bthc", p, c)
    return einsum("bthc,hvc->bthv", o, w_uv)
""",
    hints=(
        r"$q^\top (W c) = (W^\top q)^\top c$: which side is cheaper to "
        "change for one query?",
        'The query in the latent space: `einsum("bthn,hnc->bthc", q, w_uk)`.',
        "The scale is that of the model's keys, n + r wide, taken before "
        "`q` changes its width; mix `c` by `p`, then contract with `w_uv`.",
    ),
    wrong=(
        Wrong(
            "rebuilds keys and values",
            says="were keys or values rebuilt",
            new="""
def latent_attention(q, q_rope, c, k_rope, w_uk, w_uv, mask):
    k = einsum("bsc,hnc->bshn", c, w_uk)
    v = einsum("bsc,hvc->bshv", c, w_uv)
    score = einsum("bthn,bshn->bhts", q, k)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    scale = (q.size(-1) + q_rope.size(-1)) ** -0.5
    p = masked_softmax(score * scale, mask)
    return einsum("bhts,bshv->bthv", p, v)
""",
        ),
        Wrong(
            "scales by the width of the latent",
            says="not to the latent",
            old="(q.size(-1) + q_rope.size(-1))",
            new="(c.size(-1) + q_rope.size(-1))",
        ),
        Wrong(
            "scales by the content part only",
            says="share one scale",
            old="(q.size(-1) + q_rope.size(-1))",
            new="q.size(-1)",
        ),
        Wrong(
            "forgets the rotary part",
            says="rotary part of the score is missing",
            old='einsum("bthr,bsr->bhts", q_rope, k_rope)',
            new="0",
        ),
    ),
    judge=judge_absorb,
)


def counted(form, b, t, s, h, n, r, v, c):
    """Multiplications that PyTorch really does, for one head."""
    parts = (
        *(torch.zeros(b, t, h, n), torch.zeros(b, t, h, r)),
        *(torch.zeros(b, s, c), torch.zeros(b, s, r)),
        *(torch.zeros(h, n, c), torch.zeros(h, v, c)),
    )
    mask = torch.ones(b, t, s, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        form(*parts, mask, 1.0)
    return counter.get_total_flops() // (2 * b * h)


def judge_cost(answer):
    n, r, v, c = 8, 4, 6, 12
    for t, s in ((1, 40), (5, 40), (40, 40)):
        sizes = (1, t, s, 2, n, r, v, c)
        want = tuple(
            counted(form, *sizes) for form in (mla.expanded, mla.absorbed)
        )
        up = (n + v) * c
        same(
            call(answer, t, s, n, r, v, c),
            want,
            {
                "the expanded form must rebuild keys and values for all s "
                "positions": (want[0] - s * up, want[1]),
                "the expanded form rebuilds every cached position, not only "
                "the new ones": (want[0] - (s - t) * up, want[1]),
                "the absorbed form moves two maps onto the t queries": (
                    want[0],
                    want[1] - t * up,
                ),
                "return the expanded form first": want[::-1],
            },
            f"the pair for {t} queries and {s} keys",
        )


COST = Exercise(
    id="03.5",
    title="What each form costs",
    difficulty=4,
    minutes=15,
    task="""\
Count the multiplications of one head for `t` queries and `s` cached positions:
first the expanded form, then the absorbed one. Use it to find out for how many
queries absorbing pays.""",
    checks="the multiplications that PyTorch counts while running "
    "`dsarch.mla.expanded` and `absorbed`, for 1, 5 and 40 queries",
    name="multiplications",
    skeleton="""
def multiplications(t, s, n, r, v, c):
    expanded = ...
    absorbed = ...
    return expanded, absorbed
""",
    solution="""
def multiplications(t, s, n, r, v, c):
    expanded = s * c * (n + v) + t * s * (n + r + v)
    absorbed = t * c * (n + v) + t * s * (c + r + c)
    return expanded, absorbed
""",
    hints=(
        "An einsum multiplies once for every combination of its letters.",
        "Expanded: two maps for every cached position, then scores n + r "
        "wide and values v wide.",
        "Absorbed: two maps for every query, then scores c + r wide and "
        "values c wide, for every pair of query and key.",
    ),
    wrong=(
        Wrong(
            "rebuilds nothing",
            says="for all s",
            old="s * c * (n + v) + t * s",
            new="t * s",
        ),
        Wrong(
            "rebuilds only new positions",
            says="not only the new ones",
            old="s * c * (n + v)",
            new="t * c * (n + v)",
        ),
        Wrong(
            "absorbs for free",
            says="onto the t queries",
            old="t * c * (n + v) + ",
            new="",
        ),
    ),
    judge=judge_cost,
)


def parts_of(made):
    """The projections of a layer, without its formula."""
    return SimpleNamespace(**dict(made.named_children()))


def judge_remember(answer):
    made = layer()
    x = torch.randn(2, 5, SMALL.hidden_size, dtype=torch.float64)
    m = parts_of(made)
    both = made.kv_a_proj_with_mqa(x)
    c, k_rope = both.split(SMALL.kv_widths, -1)
    got = call(answer, m, x, SMALL.kv_widths)
    if isinstance(got, tuple) and len(got) == 2 and same_pair(got, c, k_rope):
        raise Unsolved
    want = made.memories(x, unturned(5))
    size = both.square().mean(-1, keepdim=True).rsqrt()
    scale = made.kv_a_layernorm.weight
    same(
        got,
        want,
        {
            "the norm must not see the rotary key: it covers the latent only": (
                c * size * scale,
                k_rope,
            ),
            "the weight of the norm is missing": (c / rms(c), k_rope),
            "the rotary key is not normalised": (
                want[0],
                k_rope / rms(k_rope),
            ),
        },
        "what the cache keeps",
    )


def rms(x):
    return (x.square().mean(-1, keepdim=True) + mla.LATENT_EPS).sqrt()


def same_pair(got, c, k_rope):
    return all(
        torch.is_tensor(a) and torch.equal(a, b)
        for a, b in zip(got, (c, k_rope), strict=True)
    )


FIND_BUG = Exercise(
    id="03.6",
    title="Find the bug: what the equations leave out",
    difficulty=3,
    minutes=8,
    task="""\
Written straight from the published equations. Cached and full agree, absorbed
and expanded agree, and yet the released weights give nonsense. `m` holds a
layer's projections and norms under the checkpoint's names, `widths` is
`[c, r]`. Look at the list of names, then mend the function.""",
    checks="fp64 agreement with what `dsarch.MLA` caches, with a norm whose "
    "weight is not one",
    name="remember",
    skeleton="""
def remember(m, x, widths):
    c, k_rope = m.kv_a_proj_with_mqa(x).split(widths, -1)
    return c, k_rope
""",
    solution="""
def remember(m, x, widths):
    c, k_rope = m.kv_a_proj_with_mqa(x).split(widths, -1)
    return m.kv_a_layernorm(c), k_rope
""",
    hints=(
        "Print `vars(m)`: which part has not been used?",
        "The model normalises the latent, although the equations do not "
        "show it.",
        "Apply `m.kv_a_layernorm` to the latent alone, before it is cached.",
    ),
    wrong=(
        Wrong(
            "normalises over latent and rotary key",
            says="must not see the rotary key",
            new="""
def remember(m, x, widths):
    both = m.kv_a_proj_with_mqa(x)
    both = both * both.square().mean(-1, keepdim=True).rsqrt()
    c, k_rope = m.kv_a_proj_with_mqa(x).split(widths, -1)
    return both[..., : widths[0]] * m.kv_a_layernorm.weight, k_rope
""",
        ),
        Wrong(
            "leaves the weight of the norm out",
            says="weight of the norm",
            old="m.kv_a_layernorm(c)",
            new="c * (c.square().mean(-1, keepdim=True) + 1e-6) ** -0.5",
        ),
        Wrong(
            "normalises the rotary key as well",
            says="rotary key is not normalised",
            old="m.kv_a_layernorm(c), k_rope",
            new="m.kv_a_layernorm(c), k_rope * "
            "(k_rope.square().mean(-1, keepdim=True) + 1e-6) ** -0.5",
        ),
    ),
    judge=judge_remember,
    mutation="03.latent-not-normed",
)


def judge_layer(answer):
    made = layer()
    m, cfg = parts_of(made), SMALL
    x = torch.randn(2, 8, cfg.hidden_size, dtype=torch.float64)
    mask = layers.causal_mask(layers.positions(2, 0, 8), 8)
    want = made(x, unturned(8), mask)
    got = call(answer, m, cfg, x, mask)
    same(got, want, what="without a cache, the output")
    cache, outs = Cache(), []
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        position = layers.positions(2, start, stop - start)
        mask = layers.causal_mask(position, stop)
        outs.append(call(answer, m, cfg, x[:, start:stop], mask, cache))
    same(torch.cat(outs, 1), want, what="in chunks of 3, 1, 4, the output")
    if cache.nbytes != 2 * 8 * sum(cfg.kv_widths) * 8:
        raise Mistake("cache the latent and one rotary key, nothing else")


LAYER = Exercise(
    id="03.7",
    title="Your layer against the official one",
    difficulty=4,
    minutes=25,
    task="""\
The whole layer, without rotation, which is chapter 4. `m` holds the projections
and norms under the checkpoint's names; `cfg.qk_widths` is `[n, r]`,
`cfg.kv_widths` is `[c, r]`. With a cache, keep
`c, k_rope = cache.extend(latent=c, k_rope=k_rope)`. Your own functions from
above may help.""",
    checks="your code, with the same weights, equals `dsarch.MLA` at once "
    "and in chunks of 3, 1 and 4 tokens; the tests hold that class equal to "
    "transformers' deepseek_v3",
    name="my_mla",
    skeleton="""
def my_mla(m, cfg, x, mask, cache=None):
    heads, (n, r) = cfg.num_attention_heads, cfg.qk_widths
    q, q_rope = ..., ...   # through the query latent and its norm
    c, k_rope = ..., ...   # the latent is normed before it is cached
    if cache is not None:
        c, k_rope = cache.extend(latent=c, k_rope=k_rope)
    o = ...                # [b, t, h, v]
    return m.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    solution="""
def my_mla(m, cfg, x, mask, cache=None):
    heads, (n, r) = cfg.num_attention_heads, cfg.qk_widths
    q = m.q_b_proj(m.q_a_layernorm(m.q_a_proj(x)))
    q = rearrange(q, "b t (h n) -> b t h n", h=heads)
    q, q_rope = q.split([n, r], -1)
    c, k_rope = m.kv_a_proj_with_mqa(x).split(cfg.kv_widths, -1)
    c = m.kv_a_layernorm(c)
    if cache is not None:
        c, k_rope = cache.extend(latent=c, k_rope=k_rope)
    w = rearrange(m.kv_b_proj.weight, "(h m) c -> h m c", h=heads)
    w_uk, w_uv = w[:, :n], w[:, n:]
    q = einsum("bthn,hnc->bthc", q, w_uk)
    score = einsum("bthc,bsc->bhts", q, c)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    p = masked_softmax(score * (n + r) ** -0.5, mask)
    o = einsum("bhts,bsc,hvc->bthv", p, c, w_uv)
    return m.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    hints=(
        "Four steps: queries, memories, cache, one of the two forms.",
        "Queries go down, through a norm, and up; each head's n + r numbers "
        "are cut into content and rotary part.",
        "Norm the latent, extend the cache, split `kv_b_proj.weight` per "
        "head, then use the absorbed form of exercise 03.4.",
    ),
    wrong=(
        Wrong(
            "caches the latent before the norm",
            says="off by",
            old="    c = m.kv_a_layernorm(c)\n",
            new="",
        ),
        Wrong(
            "forgets the norm of the query latent",
            says="off by",
            old="m.q_b_proj(m.q_a_layernorm(m.q_a_proj(x)))",
            new="m.q_b_proj(m.q_a_proj(x))",
        ),
        Wrong(
            "ignores the cache",
            says="stopped with",
            old="c, k_rope = cache.extend(latent=c, k_rope=k_rope)",
            new="pass",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [BYTES, SPLIT, REBUILD, ABSORB, COST, FIND_BUG, LAYER]
