"""Exercises of chapter 8: eight bits and a scale."""

import math

import torch
from torch import nn

from dsarch.fp8 import FP8Linear, formats, reference
from dsarch.fp8.reference import BLOCK, TILE, rounded
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from dsarch.fp8.formats import grid
from dsarch.fp8.reference import BLOCK, TILE, rounded
"""

FINITE = [code for code in range(256) if code & 127 != 127]


def judge_value(answer):
    got = [call(answer, code) for code in range(256)]
    codes = torch.arange(256).to(torch.uint8)
    want = formats.decode(codes, "e4m3").tolist()

    def every(value):
        return [value(code) for code in FINITE]

    def parts(code):
        return code >> 7, (code >> 3) & 15, code & 7

    def normal(code, bias=7):
        sign, e, m = parts(code)
        return (-1) ** sign * 2.0 ** (e - bias) * (1 + m / 8)

    def hidden(code):
        sign, e, m = parts(code)
        return (-1) ** sign * 2.0 ** (max(e, 1) - 7) * (1 + m / 8)

    def halved(code):
        sign, e, m = parts(code)
        if e:
            return normal(code)
        return (-1) ** sign * m / 8 * 2.0**-7

    same(
        [got[code] for code in FINITE],
        [want[code] for code in FINITE],
        {
            "exponent field 0 is special: below the smallest normal number "
            "the spacing stays, and there is no leading one": every(normal),
            "a subnormal number has no leading one": every(hidden),
            "subnormals share the exponent of field 1": every(halved),
            "the bias of E4M3 is 7": every(lambda code: normal(code, 8)),
            "the sign bit is missing": [abs(want[code]) for code in FINITE],
        },
        "the values of the 254 finite codes",
    )
    if not (math.isnan(got[127]) and math.isnan(got[255])):
        raise Mistake("all bits set is NaN, whatever the sign; 480 is no code")


VALUE = Exercise(
    id="08.1",
    title="What a code stands for",
    difficulty=2,
    minutes=10,
    task="""\
Decode one byte of E4M3 with integer arithmetic: a sign bit, four bits of
exponent with bias 7, three bits of mantissa.""",
    checks="all 256 codes, subnormals and NaN included",
    name="value",
    skeleton="""
def value(code):
    sign = code >> 7
    exponent = ...  # four bits
    mantissa = ...  # three bits
    return ...
""",
    solution="""
def value(code):
    sign = code >> 7
    exponent = (code >> 3) & 15
    mantissa = code & 7
    if code & 127 == 127:
        return math.nan
    if exponent == 0:
        size = mantissa / 8 * 2.0**-6
    else:
        size = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size
""",
    hints=(
        "Three cases: all of the lower seven bits set, exponent field 0, and "
        "everything else.",
        "Normal: $2^{e-7} (1 + m/8)$. Field 0: the exponent is that of field "
        "1, without the leading one.",
        "So a subnormal is $2^{-6} \\cdot m/8$, and `0x7F` is `math.nan`.",
    ),
    wrong=(
        Wrong(
            "treats subnormals like normal numbers",
            says="the spacing stays",
            old="    if exponent == 0:\n        size = mantissa / 8 * 2.0**-6\n"
            "    else:\n        size = (1 + mantissa / 8) * 2.0 ** "
            "(exponent - 7)\n",
            new="    size = (1 + mantissa / 8) * 2.0 ** (exponent - 7)\n",
        ),
        Wrong(
            "scales subnormals by one power too little",
            says="share the exponent",
            old="2.0**-6",
            new="2.0**-7",
        ),
        Wrong(
            "decodes NaN as 480",
            says="480 is no code",
            old="    if code & 127 == 127:\n        return math.nan\n",
            new="",
        ),
    ),
    judge=judge_value,
)


def judge_nearest(answer):
    values = formats.grid("e4m3")
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, middles, torch.randn(500) * 20])
    x = torch.cat([x, torch.tensor([464.0, 465.0, -1e5])])
    want = formats.cast(x, "e4m3").to(torch.float32)

    def search(x, take):
        place = torch.searchsorted(values, x.clamp(-448, 448))
        above, below = (
            values[place.clamp(max=252)],
            values[(place - 1).clamp(0)],
        )
        up, down = (above - x).abs(), (below - x).abs()
        return torch.where(take(up, down, x), above, below)

    clamped = x.clamp(-448, 448)
    away = search(
        clamped, lambda up, down, x: (up < down) | (up == down) & (x > 0)
    )
    upwards = search(clamped, lambda up, down, x: up <= down)
    downwards = search(clamped, lambda up, down, x: up < down)
    same(
        call(answer, x),
        want,
        {
            "half way, the code with the even mantissa wins; yours always "
            "goes away from zero": away,
            "half way, the code with the even mantissa wins; yours always "
            "goes up": upwards,
            "half way, the code with the even mantissa wins; yours always "
            "goes down": downwards,
            "there is nothing beyond 448: clamp": torch.where(
                x.abs() > 448, x, want
            ),
        },
        "the rounded values",
    )


NEAREST = Exercise(
    id="08.2",
    title="Rounding, ties and the end of the range",
    difficulty=3,
    minutes=15,
    task="""\
Round a one-dimensional tensor to E4M3 without any FP8 dtype. You may use
`grid("e4m3")`, all 253 finite values in ascending order, or arithmetic: the
spacing in $[2^e, 2^{e+1})$ is $2^{e-3}$, and never below $2^{-9}$. Ties go to
the even mantissa, everything beyond 448 to 448.""",
    checks="all values, all points half way between two values, 500 random "
    "numbers and three beyond the range, bit for bit",
    name="to_e4m3",
    skeleton="""
def to_e4m3(x):
    x = ...        # clamp to the range
    spacing = ...  # of the codes around each value
    return ...
""",
    solution="""
def to_e4m3(x):
    x = x.clamp(-448, 448)
    exponent = torch.frexp(x.abs().clamp(min=2.0**-6)).exponent - 1
    spacing = torch.ldexp(torch.ones_like(x), exponent - 3)
    return (x / spacing).round() * spacing
""",
    hints=(
        "Measure `x` in units of the spacing; then rounding is `round`.",
        "`torch.frexp` gives the exponent of a number between 0.5 and 1, "
        "which is one more than $e$.",
        "`torch.round` already takes ties to even; clamp the magnitude at "
        "$2^{-6}$ before you take its exponent.",
    ),
    wrong=(
        Wrong(
            "rounds half up",
            says="goes up",
            old="(x / spacing).round()",
            new="(x / spacing + 0.5).floor()",
        ),
        Wrong(
            "rounds half away from zero",
            says="away from zero",
            old="(x / spacing).round()",
            new="(x / spacing).abs().add(0.5).floor() * x.sign()",
        ),
        Wrong(
            "has no subnormals",
            says="off by",
            old=".clamp(min=2.0**-6)",
            new=".clamp(min=2.0**-60)",
        ),
    ),
    judge=judge_nearest,
)


def judge_scales(answer):
    x = torch.randn(6, 384) * torch.randn(6, 1).exp()
    x[2, 128:256] = 0
    x[3, 0] = 448
    x[3, 1:128] = 0
    tiles = x.unflatten(1, (3, 128)).abs()
    amax = tiles.amax(-1)
    want = reference.quantize(x, TILE, pow2=True).scale
    exact = amax.clamp(min=1e-4) / 448
    got = call(answer, x)
    if torch.is_tensor(got) and got.shape == want.shape:
        # Small scales count as much as large ones.
        got = got * 2**22
    elif torch.is_tensor(got) and got.shape == (6, 1):
        raise Mistake("one scale per token and 128 channels, not per token")
    mistakes = {
        "round the power of two up: to the nearest, half of all tiles "
        "would exceed 448": 2 ** exact.log2().round(),
        "round the power of two up; rounding down overflows every tile": (
            2 ** exact.log2().floor()
        ),
        "the scale must be a power of two": exact,
        "an all-zero tile needs a floor under its magnitude": (
            2 ** (amax / 448).log2().ceil()
        ),
        "the floor of 1e-4 is under the magnitude, not under the scale": (
            2 ** (amax / 448).clamp(min=1e-4).log2().ceil()
        ),
    }
    scaled = {says: 2**22 * value for says, value in mistakes.items()}
    same(got, want * 2**22, scaled, "the scales, in units of the smallest,")


SCALES = Exercise(
    id="08.3",
    title="One scale per tile, a power of two",
    difficulty=2,
    minutes=10,
    task="""\
For `x` of shape `[z, 384]` return the scales `[z, 3]`: one for each token and
128 channels, so that the largest magnitude of the tile lands on 448 or below
it, rounded *up* to a power of two. The magnitude counts as at least
$10^{-4}$.""",
    checks="equality with `dsarch.fp8.reference.quantize`, with an all-zero "
    "tile and one whose scale is exactly 1",
    name="tile_scales",
    skeleton="""
def tile_scales(x):
    amax = ...  # [z, 3]
    return ...
""",
    solution="""
def tile_scales(x):
    amax = x.unflatten(1, (-1, 128)).abs().amax(-1)
    exact = amax.clamp(min=1e-4) / 448
    return 2 ** exact.log2().ceil()
""",
    hints=(
        "Give the tiles an axis of their own, and reduce over it.",
        "`x.unflatten(1, (-1, 128))` has shape `[z, 3, 128]`.",
        "Clamp, divide by 448, then `2 ** s.log2().ceil()`.",
    ),
    wrong=(
        Wrong(
            "rounds to the nearest power",
            says="half of all tiles",
            old=".ceil()",
            new=".round()",
        ),
        Wrong(
            "has no floor",
            says="needs a floor",
            old=".clamp(min=1e-4)",
            new="",
        ),
        Wrong(
            "keeps the exact scale",
            says="must be a power of two",
            old="2 ** exact.log2().ceil()",
            new="exact",
        ),
        Wrong(
            "puts the floor under the scale",
            says="not under the scale",
            old="amax.clamp(min=1e-4) / 448",
            new="(amax / 448).clamp(min=1e-4)",
        ),
    ),
    judge=judge_scales,
)


def judge_product(answer):
    a = reference.quantize(torch.randn(5, 384) * 7, TILE)
    b = reference.quantize(torch.randn(256, 384) / 20, BLOCK)
    left, right = (q.values.to(torch.float32) for q in (a, b))
    want = reference.fp8_gemm(a, b)
    raw = left @ right.T
    rows = b.scale.repeat_interleave(128, 0)

    def chunks(scaled):
        pairs = zip(left.split(128, 1), right.split(128, 1), strict=True)
        parts = [p @ q.T for p, q in pairs]
        return sum(scaled(j, part) for j, part in enumerate(parts))

    same(
        call(answer, left, a.scale, right, b.scale),
        want,
        {
            "every chunk has its own scales; yours uses those of the first "
            "for all": raw * a.scale[:, :1] * rows[:, 0],
            "the product is not scaled at all": raw,
            "the scales of b are missing": chunks(
                lambda j, part: part * a.scale[:, j, None]
            ),
            "the scales multiply; yours divides": chunks(
                lambda j, part: part / a.scale[:, j, None] / rows[:, j]
            ),
        },
        "the product",
    )


PRODUCT = Exercise(
    id="08.4",
    title="The scaled product, chunk by chunk",
    difficulty=3,
    minutes=15,
    task="""\
Multiply `a` `[z, 384]` and the transpose of `b` `[256, 384]`, both unscaled FP8
values in fp32. `s_a` `[z, 3]` holds a scale per row and 128 columns, `s_b`
`[2, 3]` one per block of 128 by 128. Scale each chunk's partial sum when it is
added to the result, as promotion does.""",
    checks="fp32 agreement with `dsarch.fp8.reference.fp8_gemm`",
    name="scaled_product",
    skeleton="""
def scaled_product(a, s_a, b, s_b):
    total = 0
    for j in range(a.size(1) // 128):
        part = slice(128 * j, 128 * j + 128)
        partial = ...        # unscaled, [z, 256]
        scale_of_rows = ...  # [z, 1]
        scale_of_cols = ...  # [256]
        total = total + partial * scale_of_rows * scale_of_cols
    return total
""",
    solution="""
def scaled_product(a, s_a, b, s_b):
    total = 0
    for j in range(a.size(1) // 128):
        part = slice(128 * j, 128 * j + 128)
        partial = a[:, part] @ b[:, part].T
        scale_of_rows = s_a[:, j : j + 1]
        scale_of_cols = s_b[:, j].repeat_interleave(128)
        total = total + partial * scale_of_rows * scale_of_cols
    return total
""",
    hints=(
        "Inside a chunk all scales are constant, so they can wait for the sum.",
        "Chunk `j` of `a` has the scales `s_a[:, j]`, one for each row.",
        "Chunk `j` of `b` has two scales; each serves 128 rows of `b`, which "
        "are columns of the result: `repeat_interleave(128)`.",
    ),
    wrong=(
        Wrong(
            "uses the scales of the first chunk",
            says="those of the first",
            new="""
def scaled_product(a, s_a, b, s_b):
    return a @ b.T * s_a[:, :1] * s_b[:, 0].repeat_interleave(128)
""",
        ),
        Wrong(
            "forgets the scales of b",
            says="scales of b are missing",
            old=" * scale_of_cols",
            new="",
        ),
        Wrong(
            "divides by the scales",
            says="yours divides",
            old="partial * scale_of_rows * scale_of_cols",
            new="partial / scale_of_rows / scale_of_cols",
        ),
    ),
    judge=judge_product,
)


def judge_load(answer):
    weight = torch.randn(576, 300) * torch.randn(576, 1).exp()
    q, scale_inv = reference.weight_quant(weight)
    want = reference.weight_dequant(q, scale_inv)
    wide = scale_inv.repeat_interleave(128, 0)[:576]
    wide = wide.repeat_interleave(128, 1)[:, :300]
    got = call(answer, q, scale_inv)
    divided = q.to(torch.float32) / wide
    if torch.is_tensor(got) and got.shape == divided.shape:
        if torch.allclose(got, divided):
            raise Unsolved
    stretched = nn.functional.interpolate(scale_inv[None, None], (576, 300))
    same(
        got,
        want,
        {
            "a block is 128 wide even if the last one is cut: stretching "
            "five rows of scales over 576 rows moves the borders": (
                q.to(torch.float32) * stretched[0, 0]
            ),
            "multiply in fp32: the product does not fit into eight bits": (
                (q.to(torch.float32) * wide).to(q.dtype).to(torch.float32)
            ),
        },
        "the weight",
    )


LOAD = Exercise(
    id="08.5",
    title="Find the bug: a checkpoint that loads and speaks nonsense",
    difficulty=2,
    minutes=8,
    task="""\
DeepSeek's checkpoints hold `X.weight` in E4M3 and `X.weight_scale_inv` in fp32,
one number per 128 by 128 block. The check uses a matrix of 576 rows, like a
`kv_a` projection, with five rows of scales. It runs, and the model writes
noise.""",
    checks="equality with `dsarch.fp8.reference.weight_dequant` for 576 by "
    "300, where the last blocks are cut",
    name="load_weight",
    skeleton="""
def load_weight(weight, scale_inv):
    s = scale_inv.repeat_interleave(128, 0)[: weight.size(0)]
    s = s.repeat_interleave(128, 1)[:, : weight.size(1)]
    return weight.float() / s
""",
    solution="""
def load_weight(weight, scale_inv):
    s = scale_inv.repeat_interleave(128, 0)[: weight.size(0)]
    s = s.repeat_interleave(128, 1)[:, : weight.size(1)]
    return weight.float() * s
""",
    hints=(
        "Print the largest value of the result. Does a weight look like that?",
        "The shapes are right. What does the name make you believe?",
        "`scale_inv` is the inverse of what the weight was multiplied with "
        "when it was stored: loading multiplies.",
    ),
    wrong=(
        Wrong(
            "stretches the scales over the rows",
            says="moves the borders",
            new="""
def load_weight(weight, scale_inv):
    s = torch.nn.functional.interpolate(scale_inv[None, None], weight.shape)
    return weight.float() * s[0, 0]
""",
        ),
        Wrong(
            "ignores the scales",
            says="off by",
            old=" * s",
            new="",
        ),
        Wrong(
            "rounds the product to eight bits again",
            says="multiply in fp32",
            old="weight.float() * s",
            new="(weight.float() * s).to(weight.dtype).float()",
        ),
    ),
    judge=judge_load,
    mutation="08.scale-inv-divides",
)


def backward(layer, x, dy):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad, layer.weight.grad


def judge_layer(answer):
    size = torch.linspace(-4, 4, 150).exp2()[:, None]
    x, dy = torch.randn(150, 300) * size, torch.randn(150, 200) / size
    linear = nn.Linear(300, 200, bias=False)
    y, dx, dw = backward(FP8Linear(linear), x, dy)
    w = linear.weight.detach()
    column = TILE[::-1]
    plain_dw = rounded(dy).T @ rounded(x)
    unkept = rounded(dy, column).T @ rounded(x, column)
    got = call(answer, x, w, dy)
    same(
        got,
        (y, dx, dw),
        {
            "the weight gradient sums over tokens: its tiles must run along "
            "the tokens": (y, dx, plain_dw),
            "the activation is kept in 1x128 tiles; the weight gradient "
            "decodes it and rounds it again": (y, dx, unkept),
            "nothing is rounded": (x @ w.T, dy @ w, dy.T @ x),
            "the weight is scaled in blocks of 128 by 128": (
                rounded(x) @ rounded(w).T,
                rounded(dy) @ rounded(w),
                dw,
            ),
        },
        "output and gradients",
    )


LAYER = Exercise(
    id="08.6",
    title="Your FP8 layer against the package's",
    difficulty=4,
    minutes=20,
    task="""\
The three products of a linear layer as DeepSeek-V3 trains it: output, gradient
of the input, gradient of the weight. `rounded(x, TILE)` gives what is left of
`x` after FP8 with one scale per row and 128 columns, `rounded(x, BLOCK)` with
one per 128 by 128. Every product sums over another axis, and tiles run along
the axis that is summed. The weight gradient does not see `x` itself: what the
layer kept of it is the rounded one.""",
    checks="output and both gradients equal those of `dsarch.fp8.FP8Linear`; "
    "tokens differ in size by a factor of 256",
    name="my_fp8_linear",
    skeleton="""
def my_fp8_linear(x, w, dy):
    along_tokens = TILE[::-1]  # 128 rows, one column
    kept = rounded(x, TILE)
    y = ...   # [z, f]
    dx = ...  # [z, d]
    dw = ...  # [f, d]
    return y, dx, dw
""",
    solution="""
def my_fp8_linear(x, w, dy):
    along_tokens = TILE[::-1]  # 128 rows, one column
    kept = rounded(x, TILE)
    y = kept @ rounded(w, BLOCK).T
    dx = rounded(dy, TILE) @ rounded(w, BLOCK)
    dw = rounded(dy, along_tokens).T @ rounded(kept, along_tokens)
    return y, dx, dw
""",
    hints=(
        "Write down the plain formulas first: $X W^\\top$, $dY\\,W$, "
        "$dY^\\top X$.",
        "The first sums over input channels, the second over output "
        "channels, the third over tokens.",
        "`dw = rounded(dy, along_tokens).T @ rounded(kept, along_tokens)`.",
    ),
    wrong=(
        Wrong(
            "tiles the weight gradient along the channels",
            says="tiles must run along",
            old="rounded(dy, along_tokens).T @ rounded(kept, along_tokens)",
            new="rounded(dy, TILE).T @ kept",
        ),
        Wrong(
            "rounds the activation only once",
            says="rounds it again",
            old="rounded(kept, along_tokens)",
            new="rounded(x, along_tokens)",
        ),
        Wrong(
            "scales the weight per row",
            says="blocks of 128",
            new="""
def my_fp8_linear(x, w, dy):
    along_tokens = TILE[::-1]
    kept = rounded(x, TILE)
    dw = rounded(dy, along_tokens).T @ rounded(kept, along_tokens)
    return kept @ rounded(w, TILE).T, rounded(dy, TILE) @ rounded(w, TILE), dw
""",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [VALUE, NEAREST, SCALES, PRODUCT, LOAD, LAYER]
