"""Exercises of chapter 9: groups, clips, divergences, masks."""

import math

import torch

from dsarch.post import grpo, objective
from dsarch.post.logprobs import masked_mean
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Unsolved, agree, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from dsarch.post.logprobs import masked_mean
"""


def numbers(*shape):
    """Random values in fp64."""
    return torch.randn(*shape, dtype=torch.float64)


def judge_advantages(answer):
    rewards = torch.tensor(
        [[1, 0, 0, 0], [0.2, 0.9, 0.4, 0.4], [3, 3.5, 3, 1]],
        dtype=torch.float64,
    )
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True)
    few = rewards.std(1, keepdim=True, correction=0)
    same(
        call(answer, rewards),
        grpo.advantages(rewards),
        {
            "divide by the deviation with G - 1; this one has G": (
                centred / (few + 1e-4)
            ),
            "1e-4 belongs to the divisor": centred / spread,
            "the baseline is the mean of the question's own group": (
                (rewards - rewards.mean()) / (spread + 1e-4)
            ),
            "the deviation is that of each group, not of the batch": (
                centred / (rewards.std() + 1e-4)
            ),
            "divide by the deviation as well": centred,
        },
        "the advantages of three groups",
    )
    flat = torch.full((1, 4), 0.1, dtype=torch.float64)
    same(
        call(answer, flat),
        torch.zeros_like(flat),
        what="the advantages of four equal rewards",
    )


ADVANTAGES = Exercise(
    id="09.1",
    title="Better than your own group",
    difficulty=1,
    minutes=6,
    task="""\
Turn rewards `[q, g]`, one row for each question, into GRPO's advantages: minus
the mean of the group, divided by its standard deviation (with $G - 1$) plus
`1e-4`.""",
    checks="fp64 equality with `dsarch.post.grpo.advantages`, which the tests "
    "hold equal to TRL, on three groups and one of equal rewards",
    name="group_advantages",
    skeleton="""
def group_advantages(rewards):
    centred = ...
    spread = ...
    return ...
""",
    solution="""
def group_advantages(rewards):
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, keepdim=True)
    return centred / (spread + 1e-4)
""",
    hints=(
        "Which axis holds the answers to one question?",
        "`rewards.mean(1, keepdim=True)` keeps the shape `[q, 1]`.",
        "`torch.std` divides by G - 1 unless told otherwise; add 1e-4 to it, "
        "not to the variance.",
    ),
    wrong=(
        Wrong(
            "population deviation",
            says="with G - 1",
            old="rewards.std(1, keepdim=True)",
            new="rewards.std(1, keepdim=True, correction=0)",
        ),
        Wrong(
            "mean of the batch",
            says="own group",
            old="rewards.mean(1, keepdim=True)",
            new="rewards.mean()",
        ),
        Wrong(
            "without the deviation",
            says="divide by the deviation",
            old="centred / (spread + 1e-4)",
            new="centred",
        ),
    ),
    judge=judge_advantages,
)


def judge_lost(answer):
    cases = [(0.1, 4), (0.5, 8), (0.95, 16), (0.0, 8), (1.0, 2)]

    def every(value):
        return [value(p, g) for p, g in cases]

    same(
        [call(answer, p, g) for p, g in cases],
        every(counted),
        {
            "a group of right answers teaches nothing either": every(
                lambda p, g: (1 - p) ** g
            ),
            "a group of wrong answers teaches nothing either": every(
                lambda p, g: p**g
            ),
            "this is the share of groups that are kept": every(
                lambda p, g: 1 - counted(p, g)
            ),
        },
        "the share of lost groups",
    )


def counted(p, g):
    """Chance of a group without a signal, over all numbers right."""
    return sum(
        math.comb(g, right) * p**right * (1 - p) ** (g - right)
        for right in range(g + 1)
        if grpo.equal_groups(row(right, g)).item()
    )


def row(right, g):
    return torch.tensor([[1.0] * right + [0.0] * (g - right)])


LOST = Exercise(
    id="09.2",
    title="Groups that teach nothing",
    difficulty=1,
    minutes=5,
    task="""\
A question is answered correctly with probability `p`, independently each time.
Which share of groups of `g` answers has no signal at all?""",
    checks="all numbers of right answers, weighed by their chance and asked "
    "of `dsarch.post.grpo.equal_groups`",
    name="lost",
    skeleton="""
def lost(p, g):
    return ...
""",
    solution="""
def lost(p, g):
    return p**g + (1 - p) ** g
""",
    hints=(
        "When are all rewards of a group the same?",
        "All right or all wrong: two cases that exclude each other.",
        "The chance that g independent answers are right is `p**g`.",
    ),
    wrong=(
        Wrong(
            "only the failures",
            says="right answers teaches",
            old="p**g + (1 - p) ** g",
            new="(1 - p) ** g",
        ),
        Wrong(
            "the kept ones",
            says="that are kept",
            old="p**g + (1 - p) ** g",
            new="1 - p**g - (1 - p) ** g",
        ),
    ),
    judge=judge_lost,
)


def judge_clip(answer):
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 1.25, 0.9])
    a = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 1.0, -0.5])
    choice = objective.Objective(eps_high=0.28)
    logp = ratio.log()
    loss, held = objective.surrogate(ratio[None], a[None], logp[None], choice)
    clip = ratio.clamp(0.8, 1.28)
    outside = (ratio < 0.8) | (ratio > 1.28)
    turned = (ratio > 1.28) & (a < 0) | (ratio < 0.8) & (a > 0)
    swapped = torch.minimum(ratio * a, ratio.clamp(0.72, 1.2) * a)
    got = call(answer, ratio, a, 0.2, 0.28)
    want = (-loss[0], held[0])
    same(
        got,
        want,
        {
            "of the two gains the smaller one counts": (
                torch.maximum(ratio * a, clip * a),
                want[1],
            ),
            "the clipped gain alone also holds what should be corrected": (
                clip * a,
                want[1],
            ),
            "the first limit is the lower one": (swapped, want[1]),
            "a token is held only where the clipped gain is the smaller": (
                want[0],
                outside,
            ),
            "held is what runs away in the direction of its advantage": (
                want[0],
                turned,
            ),
        },
        "gain and held tokens of seven cases",
    )


CLIP = Exercise(
    id="09.3",
    title="What the clip holds",
    difficulty=2,
    minutes=10,
    task="""\
Return the gain of each token, the smaller of $rA$ and
$\\mathrm{clip}(r)A$, and which tokens the clip *holds*: those whose gradient is
zero because the clipped gain is the smaller one. `low` and `high` are the
distances from 1.""",
    checks="equality with `dsarch.post.objective.surrogate` for seven pairs "
    "of ratio and advantage",
    name="clipped_gain",
    skeleton="""
def clipped_gain(ratio, a, low, high):
    clip = ...
    gain = ...
    held = ...
    return gain, held
""",
    solution="""
def clipped_gain(ratio, a, low, high):
    clip = ratio.clamp(1 - low, 1 + high)
    gain = torch.minimum(ratio * a, clip * a)
    held = clip * a < ratio * a
    return gain, held
""",
    hints=(
        "Write down both gains for r = 1.5 and A = -1: which is smaller?",
        "`ratio.clamp(1 - low, 1 + high)`, then `torch.minimum` of two "
        "products.",
        "Held is where the clipped product is strictly the smaller one.",
    ),
    wrong=(
        Wrong(
            "maximum",
            says="the smaller one counts",
            old="torch.minimum",
            new="torch.maximum",
        ),
        Wrong(
            "clips everything",
            says="should be corrected",
            old="torch.minimum(ratio * a, clip * a)",
            new="clip * a",
        ),
        Wrong(
            "all outside are held",
            says="clipped gain is the smaller",
            old="clip * a < ratio * a",
            new="(ratio < 1 - low) | (ratio > 1 + high)",
        ),
    ),
    judge=judge_clip,
)


def judge_divergence(answer):
    old, ref = numbers(2, 5), numbers(2, 5)
    logp = (old + 0.3 * numbers(2, 5)).requires_grad_()

    def both(estimate):
        (slope,) = torch.autograd.grad(estimate.sum(), logp, retain_graph=True)
        return estimate.detach(), slope

    ratio = (logp - old).exp()
    x = ref - logp
    k3 = x.exp() - x - 1
    turned = ((-x).exp() + x - 1) * ratio
    got = call(answer, logp, old, ref)
    if not (isinstance(got, torch.Tensor) and got.requires_grad):
        same(got, both(k3 * ratio)[0])
        raise Unsolved
    same(
        both(got),
        both(grpo.kl_estimate(logp, ref, "unbiased", ratio)),
        {
            "this is k3 without the ratio": both(k3),
            "the ratio must stay in the graph: it matters by its derivative": (
                both(k3 * ratio.detach())
            ),
            "rho is the reference over the policy, not the other way round": (
                both(turned)
            ),
            "the ratio is the policy over the one that sampled": both(
                k3 * (old - logp).exp()
            ),
        },
        "value and gradient",
    )


DIVERGENCE = Exercise(
    id="09.4",
    title="The divergence of V3.2",
    difficulty=3,
    minutes=12,
    task="""\
Write the estimator of {eq}`eq-kl-unbiased` for sampled tokens: $k_3$ from the
log-probabilities of policy and reference, times the ratio of the policy to the
one that sampled. Only `logp` has a gradient, and all of it must survive.""",
    checks="fp64 equality of value and gradient with "
    "`dsarch.post.grpo.kl_estimate`",
    name="unbiased_kl",
    skeleton="""
def unbiased_kl(logp, old_logp, ref_logp):
    log_rho = ...
    ratio = ...
    return ...
""",
    solution="""
def unbiased_kl(logp, old_logp, ref_logp):
    log_rho = ref_logp - logp
    ratio = (logp - old_logp).exp()
    return ratio * (log_rho.exp() - log_rho - 1)
""",
    hints=(
        "Which of the three log-probabilities are divided by which?",
        "$\\log\\rho$ is `ref_logp - logp`; $k_3 = \\rho - \\log\\rho - 1$.",
        "Multiply by `(logp - old_logp).exp()` and do not detach it.",
    ),
    wrong=(
        Wrong(
            "plain k3",
            says="without the ratio",
            old="ratio * (log_rho.exp() - log_rho - 1)",
            new="log_rho.exp() - log_rho - 1",
        ),
        Wrong(
            "detached ratio",
            says="must stay in the graph",
            old="(logp - old_logp).exp()",
            new="(logp - old_logp).exp().detach()",
        ),
        Wrong(
            "rho upside down",
            says="reference over the policy",
            old="ref_logp - logp",
            new="logp - ref_logp",
        ),
    ),
    judge=judge_divergence,
)


def judge_steps(answer):
    rewards = torch.tensor([[1, 0, 1], [0, 0.5, 0], [1, 1, 0]]).double()
    ends = torch.tensor([[1, 3, 6], [2, 4, 5], [0, 3, 4]])
    pooled = grpo.advantages(rewards.reshape(1, -1)).reshape(3, 3)
    token = torch.arange(7)
    at = ends[..., None]

    def spread(scores, counts):
        return (scores[..., None] * counts).sum(1)

    same(
        call(answer, rewards, ends, 7),
        grpo.process_advantages(rewards[None], ends[None], 7)[0],
        {
            "a token earns the steps that end at or after it, not before": (
                spread(pooled, at <= token)
            ),
            "the token that ends a step belongs to the step": spread(
                pooled, at > token
            ),
            "all step rewards of the group are one pool": spread(
                grpo.advantages(rewards), at >= token
            ),
            "normalise the rewards of the steps first": spread(
                rewards, at >= token
            ),
        },
        "the advantages of seven tokens",
    )


STEPS = Exercise(
    id="09.5",
    title="A reward for every step",
    difficulty=3,
    minutes=15,
    task="""\
Process supervision for one group: `rewards` `[g, j]` holds the reward of each
step, `ends` `[g, j]` the token that ends it. Normalise all step rewards of the
group together, with $n - 1$ and `1e-4`; the advantage of a token is the sum
over the steps that end at or after it. Return `[g, length]`.""",
    checks="fp64 equality with `dsarch.post.grpo.process_advantages`, three "
    "answers of three steps",
    name="step_advantages",
    skeleton="""
def step_advantages(rewards, ends, length):
    scores = ...                    # [g, j]
    token = torch.arange(length)
    counts = ...                    # [g, j, t]
    return ...
""",
    solution="""
def step_advantages(rewards, ends, length):
    scores = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    token = torch.arange(length)
    counts = ends[..., None] >= token
    return (scores[..., None] * counts).sum(1)
""",
    hints=(
        "Which steps can a token still influence?",
        "Without an axis, `mean` and `std` run over all steps of the group.",
        "`ends[..., None] >= token` has the shape `[g, j, t]`; sum over j.",
    ),
    wrong=(
        Wrong(
            "credits the past",
            says="not before",
            old="ends[..., None] >= token",
            new="ends[..., None] <= token",
        ),
        Wrong(
            "one token short",
            says="belongs to the step",
            old="ends[..., None] >= token",
            new="ends[..., None] > token",
        ),
        Wrong(
            "each answer for itself",
            says="one pool",
            old="(rewards - rewards.mean()) / (rewards.std() + 1e-4)",
            new="(rewards - rewards.mean(1, keepdim=True)) / "
            "(rewards.std(1, keepdim=True) + 1e-4)",
        ),
    ),
    judge=judge_steps,
)


def judge_mask(answer):
    old = torch.full((6, 6), -1.0, dtype=torch.float64)
    gap = torch.tensor([0.1, 0.2, 0.9, 0.9, -0.9, 0.2]).double()
    logp = old - gap[:, None]
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[0, 3:] = False
    logp[0, 3:] = -40.0
    a = torch.tensor([-1.0, 1, -1, 1, -1, -1], dtype=torch.float64)
    got = call(answer, logp, old, a, mask, 0.5)
    want = grpo.off_policy_mask(logp, old, a, mask, 0.5)
    gaps = old - logp
    summed = (gaps * mask).sum(1)
    if agree(got, (a >= 0) | (summed <= 0.5)):
        raise Unsolved
    same(
        got,
        want,
        {
            "padding is no part of the mean": (a >= 0) | (gaps.mean(1) <= 0.5),
            "good answers are always kept": masked_mean(gaps, mask, 1) <= 0.5,
            "stale is what became less likely": (a >= 0)
            | (masked_mean(-gaps, mask, 1) <= 0.5),
        },
        "which of six answers are kept",
    )


MASK = Exercise(
    id="09.6",
    title="Find the bug: long failures vanish",
    difficulty=2,
    minutes=8,
    task="""\
V3.2 drops failures that the policy has already moved away from. With this code
the training log shows that nearly all *long* failures are dropped, right after
they were sampled. Mend it.""",
    checks="equality with `dsarch.post.grpo.off_policy_mask` for six "
    "answers, one of them padded",
    name="kept",
    skeleton="""
def kept(logp, sampler_logp, advantage, mask, delta):
    drift = ((sampler_logp - logp) * mask).sum(1)
    return (advantage >= 0) | (drift <= delta)
""",
    solution="""
def kept(logp, sampler_logp, advantage, mask, delta):
    drift = masked_mean(sampler_logp - logp, mask, 1)
    return (advantage >= 0) | (drift <= delta)
""",
    hints=(
        "What happens to the sum when an answer has a thousand tokens?",
        "The limit is meant in nats for each token.",
        "`masked_mean(x, mask, 1)` is the mean over unmasked tokens.",
    ),
    wrong=(
        Wrong(
            "mean over padding",
            says="no part of the mean",
            old="masked_mean(sampler_logp - logp, mask, 1)",
            new="(sampler_logp - logp).mean(1)",
        ),
        Wrong(
            "drops the good, too",
            says="always kept",
            old="(advantage >= 0) | (drift <= delta)",
            new="drift <= delta",
        ),
    ),
    judge=judge_mask,
    mutation="09.off-policy-by-sum",
)


def judge_loss(answer):
    mask = torch.arange(6) < torch.tensor([6, 3, 4, 1])[:, None]
    old, ref = -numbers(4, 6).abs(), -numbers(4, 6).abs()
    logp = (old + 0.4 * numbers(4, 6)).requires_grad_()
    rewards = torch.tensor([[1, 0, 0.5, 1]], dtype=torch.float64)
    a = grpo.advantages(rewards)[0]

    def both(loss):
        (slope,) = torch.autograd.grad(loss, logp, retain_graph=True)
        return loss.detach(), slope

    def package(**changes):
        given = {"advantage": a, "mask": mask, "old_logp": old}
        choice = objective.objective("grpo", beta=0.04)
        choice = objective.replace(choice, **changes)
        samples = objective.Samples(logp, ref_logp=ref, **given)
        return both(objective.policy_loss(samples, choice).loss)

    got = call(answer, logp, old, ref, a, mask, 0.2, 0.04)
    if not (isinstance(got, torch.Tensor) and got.requires_grad):
        same(got, package()[0])
        raise Unsolved
    want = package()
    same(
        both(got),
        want,
        {
            "a loss is minimised: turn the sign of the gain": tuple(
                -x for x in package(beta=-0.04)
            ),
            "every answer weighs the same: average within it first": package(
                reduction="token"
            ),
            "the divergence from the reference is missing": package(beta=0.0),
            "the divergence is added to the loss, not taken off": package(
                beta=-0.04
            ),
            "V3.2 multiplies the divergence by the ratio; this is k3": package(
                kl="unbiased"
            ),
        },
        "loss and gradient",
    )


LOSS = Exercise(
    id="09.7",
    title="Your GRPO against the official one",
    difficulty=4,
    minutes=25,
    task="""\
The whole loss of DeepSeekMath. `logp`, `old_logp` and `ref_logp` are `[b, t]`,
the advantage `a` is `[b]`, `mask` marks the answers' tokens. Ratio, clip, $k_3$
times `beta`, the mean over each answer, the mean over the answers.""",
    checks="your loss and its gradient equal "
    "`dsarch.post.objective.policy_loss` in fp64 on four answers of different "
    "lengths; the tests hold that function equal to TRL's GRPOTrainer",
    name="grpo_loss",
    skeleton="""
def grpo_loss(logp, old_logp, ref_logp, a, mask, eps, beta):
    ratio = ...
    gain = ...      # of each token, clipped
    log_rho = ...
    k3 = ...
    return ...      # masked_mean(x, mask, 1) is the mean over an answer
""",
    solution="""
def grpo_loss(logp, old_logp, ref_logp, a, mask, eps, beta):
    ratio = (logp - old_logp).exp()
    clip = ratio.clamp(1 - eps, 1 + eps)
    gain = torch.minimum(ratio * a[:, None], clip * a[:, None])
    log_rho = ref_logp - logp
    k3 = log_rho.exp() - log_rho - 1
    return masked_mean(beta * k3 - gain, mask, 1).mean()
""",
    hints=(
        "Build it from your own parts: 09.3 for the gain, 09.4 for k3.",
        "The advantage needs a token axis: `a[:, None]`.",
        "The loss of a token is `beta * k3 - gain`; two means follow, first "
        "within each answer.",
    ),
    wrong=(
        Wrong(
            "mean over all tokens",
            says="average within it first",
            old="masked_mean(beta * k3 - gain, mask, 1).mean()",
            new="masked_mean(beta * k3 - gain, mask)",
        ),
        Wrong(
            "divergence with the wrong sign",
            says="added to the loss",
            old="beta * k3 - gain",
            new="-beta * k3 - gain",
        ),
        Wrong(
            "maximises the loss",
            says="turn the sign",
            old="beta * k3 - gain",
            new="beta * k3 + gain",
        ),
    ),
    judge=judge_loss,
)


EXERCISES = (
    ADVANTAGES,
    LOST,
    CLIP,
    DIVERGENCE,
    STEPS,
    MASK,
    LOSS,
)
