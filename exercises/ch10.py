"""Exercises of chapter 10: one step, a schedule, a budget."""

import torch
from torch import nn

from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Unsolved, agree, call, same
from dsarch.train import muon, optim, scaling, schedule

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from torch import nn
"""


def judge_mean(answer):
    parts = [(9.0, 6), (5.0, 2), (7.5, 5), (4.0, 1)]
    got = call(answer, parts)
    means = [total / count for total, count in parts]
    summed = sum(total for total, _ in parts)
    same(
        got,
        summed / sum(count for _, count in parts),
        {
            "that is the mean of the means: a token of the sparse batch "
            "weighs six times as much as one of the full one": (
                sum(means) / len(means)
            ),
            "the sum is divided by the number of micro-batches; divide by "
            "the tokens": summed / len(parts),
        },
        "the loss of the step",
    )


MEAN = Exercise(
    id="10.1",
    title="The loss of a step",
    difficulty=1,
    minutes=5,
    task="""\
`parts` lists, for each micro-batch, the *sum* of its losses and the number of
its target tokens. Return the loss of the whole step, every token counted
alike.""",
    checks="four micro-batches with 6, 2, 5 and 1 targets",
    name="step_loss",
    skeleton="""
def step_loss(parts):
    return ...
""",
    solution="""
def step_loss(parts):
    tokens = sum(count for _, count in parts)
    return sum(total for total, _ in parts) / tokens
""",
    hints=(
        "What would one large batch have computed?",
        "Its sum is the sum of the sums.",
        "Its number of targets is the sum of the counts.",
    ),
    wrong=(
        Wrong(
            "averages means",
            says="mean of the means",
            old="    return sum(total for total, _ in parts) / tokens\n",
            new="    return sum(s / n for s, n in parts) / len(parts)\n",
        ),
        Wrong(
            "divides by the number of micro-batches",
            says="divide by the tokens",
            old="/ tokens",
            new="/ len(parts)",
        ),
    ),
    judge=judge_mean,
)


def clipped(grads, limit, norm):
    return [g * (limit / (norm + 1e-6)).clamp(max=1.0) for g in grads]


def judge_clip(answer):
    for size in (3.0, 0.01):
        grads = [
            size * torch.randn(3, 4).double(),
            size * torch.ones(5).double(),
        ]
        weights = [nn.Parameter(torch.zeros_like(g)) for g in grads]
        for w, g in zip(weights, grads, strict=True):
            w.grad = g.clone()
        norm = optim.clip_grad_norm(weights, 1.0)
        own = [clipped([g], 1.0, g.norm())[0] for g in grads]
        want = ([w.grad for w in weights], norm)
        after = torch.stack([w.grad.norm() for w in weights]).norm()
        same(
            call(answer, [g.clone() for g in grads], 1.0),
            want,
            {
                "every tensor was clipped by its own norm; the norm is that "
                "of all gradients together": (own, norm),
                "the norm to return is the one before clipping": (
                    want[0],
                    after,
                ),
                "gradients below the limit must stay as they are": (
                    [g / (norm + 1e-6) for g in grads],
                    norm,
                ),
            },
            "gradients and norm",
        )


CLIP = Exercise(
    id="10.2",
    title="Clip by the global norm",
    difficulty=2,
    minutes=8,
    task="""\
Return the clipped gradients of a list and the norm *before* clipping, as
{eq}`eq-clip` says: one norm for all tensors together.""",
    checks="fp64 equality with `dsarch.train.optim.clip_grad_norm`, above and "
    "below the limit",
    name="clip",
    skeleton="""
def clip(grads, limit):
    norm = ...
    factor = ...
    return [g * factor for g in grads], norm
""",
    solution="""
def clip(grads, limit):
    norm = torch.stack([g.norm() for g in grads]).norm()
    factor = min(1.0, limit / (norm + 1e-6))
    return [g * factor for g in grads], norm
""",
    hints=(
        "The norm of a long vector is the norm of the norms of its pieces.",
        "The factor never exceeds one.",
        "`torch.stack([g.norm() for g in grads]).norm()`; then `min(1, ...)`.",
    ),
    wrong=(
        Wrong(
            "scales small gradients up",
            says="below the limit",
            old="min(1.0, limit / (norm + 1e-6))",
            new="limit / (norm + 1e-6)",
        ),
        Wrong(
            "clips each tensor alone",
            says="all gradients together",
            old="    return [g * factor for g in grads], norm\n",
            new="    own = [min(1, limit / (g.norm() + 1e-6)) for g in grads]\n"
            "    return [g * f for g, f in zip(grads, own)], norm\n",
        ),
    ),
    judge=judge_clip,
)


def judge_wsd(answer):
    total, warm, tail, floor = 40, 5, 10, 0.1
    steps = range(total + 1)

    def every(value):
        return [value(step) for step in steps]

    def rate(step, first=0, start=total - tail):
        rise = schedule.warmup(step, warm, first=first)
        p = (step - start) / tail
        return rise * schedule.decay(p, "sqrt", floor)

    want = every(
        lambda s: schedule.wsd(
            s,
            total=total,
            decay_steps=tail,
            warmup_steps=warm,
            floor=floor,
            shape="sqrt",
        )
    )
    got = [call(answer, s, total, warm, tail, floor) for s in steps]
    same(
        got,
        want,
        {
            "the stable phase is missing: the decay begins at total - tail": (
                every(lambda s: rate(s, start=warm))
            ),
            "step 0 has rate 0 in this convention": every(
                lambda s: rate(s, first=1)
            ),
            "the decay ends at the floor, not at zero": every(
                lambda s: schedule.wsd(
                    s,
                    total=total,
                    decay_steps=tail,
                    warmup_steps=warm,
                    shape="sqrt",
                )
            ),
        },
        "the rates of all steps",
    )


WSD = Exercise(
    id="10.3",
    title="Warm-up, stable, decay",
    difficulty=2,
    minutes=10,
    task="""\
Return the share of the peak at `step`: a warm-up $s/W$ over `warm` steps, one
until `total - tail`, then $r + (1-r)(1 - \\sqrt p)$ down to `floor` at
`total`.""",
    checks="every step of a run of 40, against `dsarch.train.schedule.wsd`, "
    "which the tests hold equal to transformers'",
    name="wsd",
    skeleton="""
def wsd(step, total, warm, tail, floor):
    rise = ...
    p = ...
    return rise * ...
""",
    solution="""
def wsd(step, total, warm, tail, floor):
    rise = min(1, step / warm)
    p = max(0, (step - (total - tail)) / tail)
    return rise * (floor + (1 - floor) * (1 - math.sqrt(p)))
""",
    hints=(
        "Three phases, one product: a rise that stays at one, and a fall that "
        "starts late.",
        "The progress of the decay is 0 until `total - tail`.",
        "Squeeze $1 - \\sqrt p$ into the range from `floor` to one.",
    ),
    wrong=(
        Wrong(
            "decays to zero",
            says="not at zero",
            old="(floor + (1 - floor) * (1 - math.sqrt(p)))",
            new="(1 - math.sqrt(p))",
        ),
        Wrong(
            "starts the warm-up at 1/W",
            says="step 0 has rate 0",
            old="step / warm",
            new="(step + 1) / warm",
        ),
    ),
    judge=judge_wsd,
)


def judge_orthogonal(answer):
    for shape in ((6, 4), (4, 6)):
        x = torch.randn(shape, dtype=torch.float64)
        x = 0.5 * x / x.norm()

        def run(rounds, scaled=True, x=x):
            found = x if scaled else x * x.norm()
            rows = rounds * (muon.NS_COEFFICIENTS,)
            return muon.orthogonalise(found, rows, dtype=torch.float64)

        def bare(x=x):
            a, b, c = muon.NS_COEFFICIENTS
            for _ in range(5):
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x
            return x

        same(
            call(answer, x.clone()),
            run(5),
            {
                "divide by the Frobenius norm first: the polynomial only "
                "works for singular values up to one": bare(),
                "five rounds, not four": run(4),
                "five rounds, not one": run(1),
            },
            "the orthogonalised matrix",
        )


ORTHOGONAL = Exercise(
    id="10.4",
    title="All singular values to one",
    difficulty=3,
    minutes=10,
    task="""\
Newton and Schulz: divide the matrix by its Frobenius norm, then five rounds of
$X \\leftarrow aX + (bA + cA^2)X$ with $A = XX^\\top$.""",
    checks="fp64 equality with `dsarch.train.muon.orthogonalise`, for a tall "
    "and a wide matrix",
    name="orthogonal",
    skeleton="""
def orthogonal(x, a=3.4445, b=-4.7750, c=2.0315):
    x = ...
    for _ in range(5):
        x = ...
    return x
""",
    solution="""
def orthogonal(x, a=3.4445, b=-4.7750, c=2.0315):
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
""",
    hints=(
        "Only matrix products.",
        "`gram = x @ x.T`, and its square is `gram @ gram`.",
        "`x.norm()` of a matrix is the Frobenius norm.",
    ),
    wrong=(
        Wrong(
            "forgets to scale",
            says="Frobenius norm first",
            old="    x = x / x.norm()\n",
            new="",
        ),
        Wrong(
            "stops after four rounds",
            says="not four",
            old="range(5)",
            new="range(4)",
        ),
    ),
    judge=judge_orthogonal,
)


def judge_split(answer):
    law = scaling.CHINCHILLA_REFITTED
    E, A, B, alpha, beta = law
    for flops in (1e21, 5.76e23):
        n, d = law.optimum(flops)
        swapped = scaling.Chinchilla(E, A, B, beta, alpha).exponent
        scale = n / (flops / 6) ** law.exponent
        wrong = scale * (flops / 6) ** swapped
        bare = scale * flops**law.exponent
        same(
            list(call(answer, flops, A, B, alpha, beta)),
            [n, d],
            {
                "the exponent of N has beta on top: the term that falls "
                "slowly gets more": [wrong, flops / 6 / wrong],
                "C is 6ND: the power is that of C / 6": [
                    bare,
                    flops / 6 / bare,
                ],
            },
            "parameters and tokens",
        )


SPLIT = Exercise(
    id="10.5",
    title="Split a budget",
    difficulty=3,
    minutes=12,
    task="""\
Return the parameters and tokens of least loss for a budget of `flops`, from the
constants of {eq}`eq-chinchilla`. Either use {eq}`eq-optimum` or set the
derivative along $C = 6ND$ to zero yourself.""",
    checks="two budgets, against `dsarch.train.scaling`; the tests check that "
    "moving along the line only makes it worse",
    name="split",
    skeleton="""
def split(flops, A, B, alpha, beta):
    scale = ...
    n = ...
    return n, ...
""",
    solution="""
def split(flops, A, B, alpha, beta):
    scale = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    n = scale * (flops / 6) ** (beta / (alpha + beta))
    return n, flops / 6 / n
""",
    hints=(
        "Put $D = C/(6N)$ into the loss: one variable is left.",
        "At the optimum $\\alpha A / N^\\alpha = \\beta B / D^\\beta$.",
        "$N^{\\alpha+\\beta} = \\frac{\\alpha A}{\\beta B} (C/6)^\\beta$.",
    ),
    wrong=(
        Wrong(
            "swaps the exponents",
            says="beta on top",
            old="(beta / (alpha + beta))",
            new="(alpha / (alpha + beta))",
        ),
        Wrong(
            "forgets the six",
            says="6ND",
            old="scale * (flops / 6)",
            new="scale * flops",
        ),
    ),
    judge=judge_split,
)


def moved(weight, grads, how):
    """A weight after a few steps of one kind of decay."""
    w = nn.Parameter(weight.clone())
    optimizer = how([w])
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return w.detach()


def judge_decay(answer):
    weight = torch.randn(4).double()
    grads = [torch.randn(4).double() * 10.0**k for k in range(3)]
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.3}
    want = moved(weight, grads, lambda w: optim.AdamW(w, **options))
    l2 = moved(weight, grads, lambda w: torch.optim.Adam(w, **options))
    state = {"m": torch.zeros_like(weight), "v": torch.zeros_like(weight)}
    w = weight.clone()
    for t, g in enumerate(grads, 1):
        w = call(answer, w, g.clone(), state, t)
    if agree(w, l2):
        raise Unsolved
    shrunk = moved(
        weight, grads, lambda w: optim.AdamW(w, **options | {"weight_decay": 0})
    )
    same(
        w,
        want,
        {
            "now nothing decays; shrink the weight itself": shrunk,
        },
        "the weight after three steps",
    )


DECAY = Exercise(
    id="10.6",
    title="Find the bug: decay that does not decay",
    difficulty=3,
    minutes=10,
    task="""\
Weights whose gradients are large hardly decay in this optimizer, whatever
`decay` is. One line is in the wrong place. Mend it, so that every weight decays
by the same share.""",
    checks="fp64 agreement with `dsarch.train.optim.AdamW` over three steps "
    "with growing gradients",
    name="adam_step",
    skeleton="""
def adam_step(w, g, state, t, lr=0.1, decay=0.3):
    g = g + decay * w
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.95 * state["v"] + 0.05 * g * g
    m = state["m"] / (1 - 0.9**t)
    v = state["v"] / (1 - 0.95**t)
    return w - lr * m / (v.sqrt() + 1e-8)
""",
    solution="""
def adam_step(w, g, state, t, lr=0.1, decay=0.3):
    w = w * (1 - lr * decay)
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.95 * state["v"] + 0.05 * g * g
    m = state["m"] / (1 - 0.9**t)
    v = state["v"] / (1 - 0.95**t)
    return w - lr * m / (v.sqrt() + 1e-8)
""",
    hints=(
        "Follow `decay` through the function: by what is it divided?",
        "It must not enter the moments.",
        "Shrink the weight before the step: `w * (1 - lr * decay)`.",
    ),
    wrong=(
        Wrong(
            "drops the decay",
            says="nothing decays",
            old="    w = w * (1 - lr * decay)\n",
            new="",
        ),
        Wrong(
            "ignores the rate",
            says="off by",
            old="(1 - lr * decay)",
            new="(1 - decay)",
        ),
    ),
    judge=judge_decay,
    mutation="10.adam-l2",
)


class Toy(nn.Module):
    """Two tensors of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(3, 4, generator=g).double())
        self.b = nn.Parameter(torch.randn(5, generator=g).double())


def driven(step):
    """The weights after five steps of a function for one tensor."""
    net, state = Toy(), {}
    options = {"betas": (0.8, 0.93), "eps": 1e-2, "weight_decay": 0.2}
    g = torch.Generator().manual_seed(4)
    for t in range(1, 6):
        for name, w in net.named_parameters():
            w.grad = torch.randn(w.shape, generator=g).double()
            zeros = [torch.zeros_like(w), torch.zeros_like(w)]
            kept = state.setdefault(name, zeros)
            step(w, kept, t, 0.1 / t, **options)
    return torch.cat([w.detach().flatten() for w in net.parameters()])


@torch.no_grad()
def official(w, moments, t, lr, betas, eps, weight_decay, inside=0.0):
    """One step of the package; ``inside`` is added under the root."""
    names = ("exp_avg", "exp_avg_sq")
    state = dict(zip(names, moments, strict=True)) | {"step": torch.tensor(t)}
    if not inside:
        now = optim.Settings(lr, betas, eps, weight_decay)
        optim.adamw_update(w, w.grad, state, now)
        return
    w.mul_(1 - lr * weight_decay)
    m, v = moments
    m.lerp_(w.grad, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(w.grad, w.grad, value=1 - betas[1])
    root = ((v + inside) / (1 - betas[1] ** t)).sqrt()
    w.sub_(lr / (1 - betas[0] ** t) * m / (root + eps))


def unscheduled(w, moments, t, lr, betas, eps, weight_decay):
    official(w, moments, t, lr, betas, eps, weight_decay / lr)


def rooted(w, moments, t, lr, betas, eps, weight_decay):
    official(w, moments, t, lr, betas, eps, weight_decay, inside=eps)


def judge_adamw(answer):
    got = driven(lambda *args, **options: call(answer, *args, **options))
    start = torch.cat([w.detach().flatten() for w in Toy().parameters()])
    if agree(got, start):
        raise Unsolved
    same(
        got,
        driven(official),
        {
            "epsilon is added after the root, not under it": driven(rooted),
            "the decay is multiplied by the rate of the step": driven(
                unscheduled
            ),
        },
        "the weights after five steps",
    )


ADAMW = Exercise(
    id="10.7",
    title="Your AdamW against the official one",
    difficulty=4,
    minutes=20,
    task="""\
The whole step of {eq}`eq-adamw` for one tensor `w` with gradient `w.grad`, in
place. `moments` is the list `[m, v]`, which you update in place as well; `t`
counts from one. Return `w`.""",
    checks="your code, driven for five steps with another rate each, equals "
    "`dsarch.train.optim.AdamW`; the tests hold that class equal to torch's, "
    "with an epsilon large enough to see where it stands",
    name="my_adamw",
    skeleton="""
@torch.no_grad()
def my_adamw(w, moments, t, lr, betas, eps, weight_decay):
    m, v = moments
    ...  # decay
    ...  # moments
    ...  # step
    return ...
""",
    solution="""
@torch.no_grad()
def my_adamw(w, moments, t, lr, betas, eps, weight_decay):
    m, v = moments
    w.mul_(1 - lr * weight_decay)
    m.lerp_(w.grad, 1 - betas[0])
    v.mul_(betas[1]).add_((1 - betas[1]) * w.grad**2)
    root = v.sqrt() / math.sqrt(1 - betas[1] ** t)
    w.sub_(lr / (1 - betas[0] ** t) * m / (root + eps))
    return w
""",
    hints=(
        "Three lines: decay, moments, step; all with the underscore of in "
        "place.",
        "Correct the root of `v` first, then add `eps`.",
        "`root = v.sqrt() / math.sqrt(1 - betas[1] ** t)`; the rate is "
        "divided by `1 - betas[0] ** t`.",
    ),
    wrong=(
        Wrong(
            "puts epsilon into the root",
            says="after the root",
            old="v.sqrt()",
            new="(v + eps).sqrt()",
        ),
        Wrong(
            "decays without the rate",
            says="the rate of the step",
            old="1 - lr * weight_decay",
            new="1 - weight_decay",
        ),
    ),
    judge=judge_adamw,
)

EXERCISES = [MEAN, CLIP, WSD, ORTHOGONAL, SPLIT, DECAY, ADAMW]
