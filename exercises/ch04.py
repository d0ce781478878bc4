"""Exercises of chapter 4: positions beside the latent."""

from types import SimpleNamespace

import torch

from dsarch import layers, mla, rope
from dsarch.cache import Cache
from dsarch.config import Config, Yarn
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from einops import rearrange
from torch import einsum
from dsarch.layers import masked_softmax
from dsarch.mla import expanded
from dsarch.rope import correction_range, phases, rotate
"""

# Stretched eight times, with positions beyond the original window.
SMALL = Config(
    hidden_size=20,
    num_attention_heads=3,
    q_lora_rank=11,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=6,
    v_head_dim=5,
    rope_theta=100.0,
    rope_scaling=Yarn(
        factor=8.0,
        original_max_position_embeddings=16,
        beta_fast=4.0,
        mscale=0.9,
        mscale_all_dim=0.9,
    ),
)


def angles(count, pairs):
    theta = rope.frequencies(2 * pairs, 100.0).double()
    return torch.arange(3, 3 + count)[:, None] * theta


def judge_turn(answer):
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    angle = angles(5, 4)
    phase = torch.polar(torch.ones_like(angle), angle).expand(2, -1, -1)
    same(
        call(answer, x, angle),
        rope.rotate(x, phase),
        {
            "these pairs lie half a vector apart; DeepSeek's attention "
            "pairs neighbours": rope.rotate(x, phase, interleaved=False),
            "this turns backwards: check the signs of the sine": rope.rotate(
                x, phase.conj()
            ),
            "neighbours are turned, but the result is not put back in "
            "pairs": rope.to_half_split(rope.rotate(x, phase)),
        },
        "the turned vectors",
    )


TURN = Exercise(
    id="04.1",
    title="Turn neighbours",
    difficulty=2,
    minutes=8,
    task="""\
Rotate each pair of neighbours $(x_{2m}, x_{2m+1})$ of `x` `[b, t, r]` by
`angle` `[t, p]` with sine and cosine, without complex numbers. The result keeps
the order of `x`.""",
    checks="fp64 agreement with `dsarch.rope.rotate`, positions 3 to 7",
    name="turn",
    skeleton="""
def turn(x, angle):
    first, second = ..., ...  # the two members of each pair
    return ...
""",
    solution="""
def turn(x, angle):
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    left = first * cos - second * sin
    right = first * sin + second * cos
    return rearrange([left, right], "two b t p -> b t (p two)")
""",
    hints=(
        "Where do the first and the second members of the pairs stand?",
        "`x[..., 0::2]` and `x[..., 1::2]`; then the 2 by 2 rotation.",
        "first cos - second sin, first sin + second cos, put back in turn: "
        "`stack([left, right], -1).flatten(-2)`.",
    ),
    wrong=(
        Wrong(
            "pairs halves",
            says="pairs neighbours",
            new="""
def turn(x, angle):
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    left = first * cos - second * sin
    return torch.cat([left, first * sin + second * cos], -1)
""",
        ),
        Wrong(
            "turns backwards",
            says="backwards",
            old="angle.sin()",
            new="-angle.sin()",
        ),
        Wrong(
            "does not put pairs back",
            says="not put back",
            old="b t (p two)",
            new="b t (two p)",
        ),
    ),
    judge=judge_turn,
)


def judge_permute(answer):
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    angle = angles(5, 4)
    phase = torch.polar(torch.ones_like(angle), angle).expand(2, -1, -1)
    same(
        call(answer, x),
        rope.to_half_split(x),
        {
            "this is the way back: it takes halves and makes pairs": (
                rope.to_interleaved(x)
            ),
            "first members belong into the first half": rope.to_half_split(
                x
            ).roll(4, -1),
            "nothing has moved yet": x,
        },
        "the reordered vector",
    )
    turned = rope.rotate(call(answer, x), phase, interleaved=False)
    want = rope.to_half_split(rope.rotate(x, phase))
    same(turned, want, what="the half-split rotation of the result")


PERMUTE = Exercise(
    id="04.2",
    title="Between the two layouts",
    difficulty=2,
    minutes=8,
    task="""\
Some code rotates pairs that lie half a vector apart, $(x_m, x_{m+r/2})$.
Reorder the last axis so that such code turns the pairs that DeepSeek stores as
neighbours.""",
    checks="the permutation itself, and that half-split rotation after it "
    "equals interleaved rotation before it",
    name="pairs_to_halves",
    skeleton="""
def pairs_to_halves(x):
    return ...
""",
    solution="""
def pairs_to_halves(x):
    return rearrange(x, "... (p two) -> ... (two p)", two=2)
""",
    hints=(
        "Write the indices 0 to 7 in pairs, then in the order you need.",
        "All first members, then all second members: 0 2 4 6 1 3 5 7.",
        'One `rearrange`: `"... (p two) -> ... (two p)"`.',
    ),
    wrong=(
        Wrong(
            "goes the other way",
            says="the way back",
            old='"... (p two) -> ... (two p)"',
            new='"... (two p) -> ... (p two)"',
        ),
        Wrong(
            "second members first",
            says="first half",
            old='rearrange(x, "... (p two) -> ... (two p)", two=2)',
            new="torch.cat([x[..., 1::2], x[..., 0::2]], -1)",
        ),
    ),
    judge=judge_permute,
)


def judge_relative(answer):
    q, k = torch.randn(2, 6, dtype=torch.float64)
    theta = rope.frequencies(6, 100.0).double()

    def turned(x, position):
        phase = torch.polar(torch.ones(3).double(), position * theta)
        return rope.rotate(x[None, None], phase[None, None])[0, 0]

    for t, s in ((9, 9), (9, 4), (2009, 2004), (4, 9)):
        want = turned(q, t) @ turned(k, s)
        same(
            call(answer, q, k, t - s, theta),
            want,
            {
                "the distance has the wrong sign: the query stands later": (
                    turned(q, s) @ turned(k, t)
                ),
                "without the distance this is the plain product": q @ k,
                "conjugate the key before you multiply": (
                    torch.view_as_complex(q.unflatten(-1, (-1, 2)))
                    * torch.view_as_complex(k.unflatten(-1, (-1, 2)))
                    * torch.polar(torch.ones(3).double(), (t - s) * theta)
                )
                .sum()
                .real,
            },
            f"the score of query {t} and key {s}",
        )


RELATIVE = Exercise(
    id="04.3",
    title="Only the distance counts",
    difficulty=3,
    minutes=12,
    task="""\
Write the score of a turned query `q` `[r]` and a turned key `k` `[r]` as a
function of their distance (position of the query minus that of the key) alone:
turn at most one of them, once.""",
    checks="fp64 agreement with turning both, at distance 0, 5 (twice, 2000 "
    "positions apart) and -5",
    name="relative_score",
    skeleton="""
def relative_score(q, k, distance, theta):
    q = torch.view_as_complex(rearrange(q, "(p two) -> p two", two=2))
    k = torch.view_as_complex(rearrange(k, "(p two) -> p two", two=2))
    return ...
""",
    solution="""
def relative_score(q, k, distance, theta):
    q = torch.view_as_complex(rearrange(q, "(p two) -> p two", two=2))
    k = torch.view_as_complex(rearrange(k, "(p two) -> p two", two=2))
    phase = torch.polar(torch.ones_like(theta), distance * theta)
    return (q * k.conj() * phase).sum().real
""",
    hints=(
        r"A dot product of two pairs is the real part of $q\,\bar k$.",
        r"$q e^{it\theta}\,\overline{k e^{is\theta}}$ has one exponential "
        "in the end: which?",
        r"Sum the real part of $q\,\bar k\,e^{i(t-s)\theta}$ over all pairs.",
    ),
    wrong=(
        Wrong(
            "wrong sign",
            says="wrong sign",
            old="distance * theta",
            new="-distance * theta",
        ),
        Wrong(
            "no conjugate",
            says="conjugate the key",
            old="k.conj()",
            new="k",
        ),
        Wrong(
            "no distance",
            says="plain product",
            old=" * phase",
            new="",
        ),
    ),
    judge=judge_relative,
)


def judge_bounds(answer):
    v3 = Config.v3().rope_scaling
    for width, theta, yarn in (
        (64, 10000.0, v3),
        (48, 500.0, Yarn(original_max_position_embeddings=300)),
    ):
        window, fast = yarn.original_max_position_embeddings, yarn.beta_fast
        want = rope.correction_range(width, theta, yarn)
        swapped = rope.correction_range(
            width,
            theta,
            Yarn(
                original_max_position_embeddings=int(window * yarn.factor),
                factor=yarn.factor,
            ),
        )
        got = call(answer, width, theta, window, fast, yarn.beta_slow)
        same(
            [float(bound) for bound in got],
            [float(bound) for bound in want],
            {
                "the fast bound gives the lower pair": [
                    float(bound) for bound in want[::-1]
                ],
                "m counts pairs, not numbers: there is a 2 in front of the "
                "logarithm": rounded(width, theta, window, yarn, 1),
                "whole pairs: round outwards, the lower bound down and the "
                "upper bound up": exact(width, theta, window, yarn),
                "the window is the original one, before it is stretched": [
                    float(bound) for bound in swapped
                ],
            },
            f"the bounds for width {width}",
        )


def exact(width, theta, window, yarn, half=2.0):
    import math

    return [
        width
        * math.log(window / (2 * math.pi * turns))
        / (half * math.log(theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    ]


def rounded(width, theta, window, yarn, half):
    low, high = exact(width, theta, window, yarn, half)
    return [float(int(low)), float(-int(-high // 1))]


BOUNDS = Exercise(
    id="04.4",
    title="Where YaRN's ramp begins and ends",
    difficulty=3,
    minutes=12,
    task=r"""
Pair $m$ turns by $\theta^{-2m/r}$ at every position. Find the pair that turns
`fast` times over the original window of `window` tokens, and the one that turns
`slow` times; round the first down and the second up. Return `(low, high)`.""",
    checks="DeepSeek-V3's numbers and a second model, against "
    "`dsarch.rope.correction_range`",
    name="ramp_bounds",
    skeleton="""
def ramp_bounds(width, theta, window, fast, slow):
    def pair(turns):
        return ...

    return math.floor(pair(fast)), math.ceil(pair(slow))
""",
    solution="""
def ramp_bounds(width, theta, window, fast, slow):
    def pair(turns):
        ratio = window / (2 * math.pi * turns)
        return width * math.log(ratio) / (2 * math.log(theta))

    return math.floor(pair(fast)), math.ceil(pair(slow))
""",
    hints=(
        "Over the window a pair turns by window times its frequency, in "
        "radians.",
        r"Solve $L_0\,\theta^{-2m/r} = 2\pi\beta$ for $m$.",
        r"$m = r \ln(L_0/(2\pi\beta)) / (2\ln\theta)$.",
    ),
    wrong=(
        Wrong(
            "swaps the bounds",
            says="lower pair",
            old="math.floor(pair(fast)), math.ceil(pair(slow))",
            new="math.ceil(pair(slow)), math.floor(pair(fast))",
        ),
        Wrong(
            "does not round",
            says="round outwards",
            old="math.floor(pair(fast)), math.ceil(pair(slow))",
            new="pair(fast), pair(slow)",
        ),
        Wrong(
            "stretches the window first",
            says="original one",
            old="window / (2",
            new="40 * window / (2",
        ),
    ),
    judge=judge_bounds,
)


def judge_slow(answer):
    v3 = Config.v3().rope_scaling
    plain = rope.frequencies(64, 10000.0).double()
    gamma = rope.ramp(64, 10000.0, v3).double()
    got = call(answer, plain, gamma, v3.factor)
    planted = plain / v3.factor * (1 - gamma) + plain * gamma
    if torch.is_tensor(got) and torch.equal(got, planted):
        raise Unsolved
    same(
        got,
        plain / v3.factor * gamma + plain * (1 - gamma),
        {
            "every pair is slowed now; the fast ones must stay": plain
            / v3.factor,
            "the slow pairs turn faster than before: divide by the factor": (
                plain * v3.factor * gamma + plain * (1 - gamma)
            ),
            "nothing is slowed any more": plain,
        },
        "the frequencies",
    )


FIND_BUG = Exercise(
    id="04.5",
    title="Find the bug: near words blur",
    difficulty=2,
    minutes=8,
    task="""\
A model with this YaRN reads 100,000 tokens without an error, but it confuses
neighbouring words. `gamma` is 0 for the pairs that turn often and 1 for those
that turn less than once over the original window. Which pairs may be slowed?
Mend it.""",
    checks="all 32 frequencies of DeepSeek-V3 in fp64",
    name="slowed",
    skeleton="""
def slowed(theta, gamma, factor):
    return theta / factor * (1 - gamma) + theta * gamma
""",
    solution="""
def slowed(theta, gamma, factor):
    return theta / factor * gamma + theta * (1 - gamma)
""",
    hints=(
        "Which pairs tell neighbours apart: the fast or the slow ones?",
        "A pair that has already turned many times in the original window "
        "needs no stretching.",
        "`gamma` weighs the slowed frequency, `1 - gamma` the plain one.",
    ),
    wrong=(
        Wrong(
            "slows every pair",
            says="fast ones must stay",
            old="* gamma + theta * (1 - gamma)",
            new="+ 0 * gamma",
        ),
        Wrong(
            "multiplies by the factor",
            says="divide by the factor",
            old="theta / factor",
            new="theta * factor",
        ),
        Wrong(
            "slows nothing",
            says="nothing is slowed",
            old="theta / factor",
            new="theta",
        ),
    ),
    judge=judge_slow,
    mutation="04.ramp-upside-down",
)


def judge_scale(answer):
    for cfg in (Config.v3(), Config.v2_lite()):
        yarn = cfg.rope_scaling
        n, r = cfg.qk_widths
        want = (n + r) ** -0.5 * rope.softmax_factor(yarn)
        once = rope.magnitude(yarn.factor, yarn.mscale_all_dim)
        same(
            call(answer, n, r, yarn.factor, yarn.mscale_all_dim),
            want,
            {
                "the magnitude counts twice, once for the query and once "
                "for the key": (n + r) ** -0.5 * once,
                "the magnitude is missing: logits are too flat": (
                    (n + r) ** -0.5
                ),
                "the root is over both parts of the key, n + r": n**-0.5
                * rope.softmax_factor(yarn),
                "longer windows need sharper logits: multiply, do not divide": (
                    n + r
                )
                ** -0.5
                / rope.softmax_factor(yarn),
                "the weight of the model is missing": (n + r) ** -0.5
                * rope.magnitude(yarn.factor, 1.0) ** 2,
            },
            f"the scale for n {n}, r {r}, weight {yarn.mscale_all_dim}",
        )


SCALE = Exercise(
    id="04.6",
    title="The scale of the logits",
    difficulty=2,
    minutes=8,
    task=r"""
YaRN sharpens attention in a stretched window: query and key each grow by
$m = 0.1\,a\ln s + 1$, where $s$ is `factor` and $a$ is `weight`
(`mscale_all_dim`). DeepSeek puts both into the scale of the softmax. Return
that scale for keys of `n + r` numbers.""",
    checks="DeepSeek-V3 (weight 1) and V2-Lite (weight 0.707)",
    name="softmax_scale",
    skeleton="""
def softmax_scale(n, r, factor, weight):
    m = ...
    return ...
""",
    solution="""
def softmax_scale(n, r, factor, weight):
    m = 0.1 * weight * math.log(factor) + 1
    return (n + r) ** -0.5 * m**2
""",
    hints=(
        "Without YaRN the scale is one over the root of the key's width.",
        "A logit is a product of two vectors, and both have grown.",
        r"$(n + r)^{-1/2}\,m^2$, with the natural logarithm in $m$.",
    ),
    wrong=(
        Wrong(
            "counts the magnitude once",
            says="counts twice",
            old="m**2",
            new="m",
        ),
        Wrong(
            "leaves it out",
            says="too flat",
            old=" * m**2",
            new="",
        ),
        Wrong(
            "takes the content width only",
            says="both parts of the key",
            old="(n + r)",
            new="n",
        ),
        Wrong(
            "forgets the weight",
            says="weight of the model",
            old="0.1 * weight",
            new="0.1",
        ),
    ),
    judge=judge_scale,
)


def layer():
    """A small layer whose norms are not the identity."""
    made = mla.MLA(SMALL).double()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return made.requires_grad_(False)


def judge_layer(answer):
    made = layer()
    m = SimpleNamespace(**dict(made.named_children()), up=made.up)
    x = torch.randn(2, 40, SMALL.hidden_size, dtype=torch.float64)
    position = layers.positions(2, 0, 40)
    mask = layers.causal_mask(position, 40)
    want = made(x, rope.phases(SMALL, position), mask)
    got = call(answer, m, SMALL, x, position, mask)
    unscaled = mla.MLA(SMALL.replace(rope_scaling=None)).double()
    unscaled.load_state_dict(made.state_dict())
    flat = unscaled(x, rope.phases(SMALL, position), mask)
    plain = rope.phases(unscaled.cfg, position)
    same(
        got,
        want,
        {
            "YaRN's factor on the softmax is missing": flat.detach(),
            "nothing turns: rotate queries and key": made(
                x, torch.ones_like(plain), mask
            ),
        },
        "without a cache, the output",
    )
    cache, outs = Cache(), []
    for start, stop in ((0, 19), (19, 20), (20, 40)):
        part = position[:, start:stop]
        mask = layers.causal_mask(part, stop)
        step = call(answer, m, SMALL, x[:, start:stop], part, mask, cache)
        outs.append(step)
    same(torch.cat(outs, 1), want, what="in chunks of 19, 1, 20, the output")
    if cache.nbytes != 2 * 40 * sum(SMALL.kv_widths) * 8:
        raise Mistake("cache the latent and one turned key, nothing else")


LAYER = Exercise(
    id="04.7",
    title="Your layer against the official one",
    difficulty=4,
    minutes=20,
    task="""\
The whole layer with decoupled positions and YaRN. `m` holds the projections and
norms under the checkpoint's names, `m.up()` returns `w_uk` and `w_uv`;
`phases(cfg, position)` and `rotate(x, phase)` are the package's. Turn each
head's query part, and the one key before it is cached; the last argument of
`expanded` is your scale.""",
    checks="your code, with the same weights, equals `dsarch.MLA` at "
    "positions beyond the original window, at once and in chunks of 19, 1 "
    "and 20; the tests hold that class equal to transformers' deepseek_v3",
    name="my_rotary_mla",
    skeleton="""
def my_rotary_mla(m, cfg, x, position, mask, cache=None):
    n, r = cfg.qk_widths
    phase = phases(cfg, position)
    q, q_rope = ..., ...
    c, k_rope = ..., ...
    if cache is not None:
        c, k_rope = cache.extend(latent=c, k_rope=k_rope)
    scale = ...
    o = expanded(q, q_rope, c, k_rope, *m.up(), mask, scale)
    return m.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    solution="""
def my_rotary_mla(m, cfg, x, position, mask, cache=None):
    n, r = cfg.qk_widths
    phase = phases(cfg, position)
    q = m.q_b_proj(m.q_a_layernorm(m.q_a_proj(x)))
    q = rearrange(q, "b t (h m) -> b t h m", m=n + r)
    q, q_rope = q.split([n, r], -1)
    q_rope = rotate(q_rope, phase)
    c, k_rope = m.kv_a_proj_with_mqa(x).split(cfg.kv_widths, -1)
    c, k_rope = m.kv_a_layernorm(c), rotate(k_rope, phase)
    if cache is not None:
        c, k_rope = cache.extend(latent=c, k_rope=k_rope)
    yarn = cfg.rope_scaling
    growth = 0.1 * yarn.mscale_all_dim * math.log(yarn.factor) + 1
    scale = (n + r) ** -0.5 * growth**2
    o = expanded(q, q_rope, c, k_rope, *m.up(), mask, scale)
    return m.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    hints=(
        "Your layer of chapter 3 needs two rotations and a new scale.",
        "Turn `q_rope` with all its heads, and `k_rope` before the cache.",
        "The scale is that of exercise 04.6 with the numbers in "
        "`cfg.rope_scaling`.",
    ),
    wrong=(
        Wrong(
            "leaves YaRN's factor out",
            says="YaRN's factor",
            old=" * growth**2",
            new="",
        ),
        Wrong(
            "turns the query only",
            says="off by",
            old="m.kv_a_layernorm(c), rotate(k_rope, phase)",
            new="m.kv_a_layernorm(c), k_rope",
        ),
        Wrong(
            "pairs halves",
            says="off by",
            old="q_rope = rotate(q_rope, phase)",
            new="q_rope = rotate(q_rope, phase, interleaved=False)",
        ),
        Wrong(
            "counts positions from zero in every chunk",
            says="in chunks",
            old="phases(cfg, position)",
            new="phases(cfg, position - position[:, :1])",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [TURN, PERMUTE, RELATIVE, BOUNDS, FIND_BUG, SCALE, LAYER]
