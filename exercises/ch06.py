"""Exercises of chapter 6: the router of DeepSeek-V3 and its balance."""

from types import SimpleNamespace

import torch

from dsarch import balance as book
from dsarch.analysis import count
from dsarch.config import Config
from dsarch.moe import DeepSeekMoE
from dsarch.router import group_scores, route
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from einops import rearrange
"""

SMALL = Config(
    hidden_size=10,
    moe_intermediate_size=6,
    n_routed_experts=15,
    n_group=5,
    topk_group=3,
    num_experts_per_tok=4,
    n_shared_experts=2,
)
E = SMALL.n_routed_experts


def scores_and_bias():
    """Sigmoid scores, and biases that push many of them below zero."""
    generator = torch.Generator().manual_seed(6)
    drawn = torch.randn(30, E, generator=generator, dtype=torch.float64)
    bias = torch.randn(E, generator=generator, dtype=torch.float64)
    return drawn.sigmoid(), 0.5 * bias - 1.0


def judge_count(answer):
    for name in ("v2_lite", "v2", "v3"):
        cfg = getattr(Config, name)()
        layers = cfg.num_hidden_layers - cfg.first_k_dense_replace
        parts = ("routed experts", "shared experts", "router")
        stored, used = count.parameter_groups(cfg), count.active_groups(cfg)
        want = tuple(
            sum(groups[x] for x in parts) // layers for groups in (stored, used)
        )
        d, f = cfg.hidden_size, cfg.moe_intermediate_size
        n, k, s = (
            cfg.n_routed_experts,
            cfg.num_experts_per_tok,
            cfg.n_shared_experts,
        )
        router = want[0] - 3 * d * f * (n + s)
        same(
            call(answer, cfg),
            want,
            {
                "SwiGLU has three matrices, not two": tuple(
                    2 * d * f * (m + s) + router for m in (n, k)
                ),
                "the shared experts run for every token too": tuple(
                    3 * d * f * m + router for m in (n, k)
                ),
                "the router is missing: d numbers for each routed expert": (
                    tuple(3 * d * f * (m + s) for m in (n, k))
                ),
                "every token is compared with all centroids, not only with "
                "those of its experts": (
                    want[0],
                    3 * d * f * (k + s) + router * k // n,
                ),
                "with the bias, a V3 router has one number more per expert": (
                    tuple(3 * d * f * (m + s) + n * d for m in (n, k))
                ),
            },
            f"stored and active parameters of a layer of {name}",
        )


COUNT = Exercise(
    id="06.1",
    title="Stored and active",
    difficulty=1,
    minutes=8,
    task="""\
Return how many parameters one mixture layer stores and how many of them one
token uses, from the fields of its `Config`. Experts are SwiGLU. The router has
one centroid for each routed expert, and one bias each if `cfg.topk_method` is
`"noaux_tc"`.""",
    checks="one layer of V2-Lite, V2 and V3 against `dsarch.analysis.count`, "
    "which the tests hold equal to layers built on the meta device",
    name="layer_parameters",
    skeleton="""
def layer_parameters(cfg):
    expert = ...
    router = ...
    stored = ...
    active = ...
    return stored, active
""",
    solution="""
def layer_parameters(cfg):
    expert = 3 * cfg.hidden_size * cfg.moe_intermediate_size
    biased = cfg.topk_method == "noaux_tc"
    router = cfg.n_routed_experts * (cfg.hidden_size + biased)
    always = cfg.n_shared_experts * expert + router
    stored = always + cfg.n_routed_experts * expert
    active = always + cfg.num_experts_per_tok * expert
    return stored, active
""",
    hints=(
        "Which parts does every token pass, whatever it is routed to?",
        "Shared experts and the whole router are always used; of the routed "
        "experts `num_experts_per_tok` are.",
        "An expert has three matrices of `hidden_size` times "
        "`moe_intermediate_size`.",
    ),
    wrong=(
        Wrong(
            "two matrices per expert",
            says="three matrices",
            old="expert = 3 *",
            new="expert = 2 *",
        ),
        Wrong(
            "forgets the shared experts",
            says="shared experts run",
            old="always = cfg.n_shared_experts * expert + router",
            new="always = router",
        ),
        Wrong(
            "forgets the router",
            says="router is missing",
            old="router = cfg.n_routed_experts * (cfg.hidden_size + biased)",
            new="router = 0",
        ),
    ),
    judge=judge_count,
)


def judge_groups(answer):
    scores, bias = scores_and_bias()
    choice = scores + bias
    want = group_scores(choice, 5, 2)
    grouped = choice.unflatten(1, (5, 3))
    dealt = choice.unflatten(1, (3, 5)).transpose(1, 2)
    same(
        call(answer, choice, 5),
        want,
        {
            "the maximum is the rule of V2; V3 adds the two best": (
                grouped.amax(-1)
            ),
            "only the two best of a group count, not all": grouped.sum(-1),
            "groups are neighbours: experts 0, 1, 2 form the first": (
                dealt.topk(2).values.sum(-1)
            ),
        },
        "the worth of each group",
    )


GROUPS = Exercise(
    id="06.2",
    title="What a group is worth",
    difficulty=2,
    minutes=6,
    task="""\
`choice` `[z, e]` holds the biased scores, neighbouring experts form `n_group`
equal groups. Return what V3 thinks each group is worth, `[z, n_group]`.""",
    checks="fp64 equality with `dsarch.router.group_scores` for 5 groups of 3",
    name="worth_of_groups",
    skeleton="""
def worth_of_groups(choice, n_group):
    grouped = ...  # [z, n_group, experts of a group]
    return ...
""",
    solution="""
def worth_of_groups(choice, n_group):
    grouped = rearrange(choice, "z (g e) -> z g e", g=n_group)
    return grouped.topk(2).values.sum(-1)
""",
    hints=(
        "How many experts of a group does V3 expect a token to use?",
        "Eight experts on four nodes: two per node. So two scores count.",
        '`rearrange(choice, "z (g e) -> z g e", g=n_group)`, then the sum of '
        "`topk(2).values`.",
    ),
    wrong=(
        Wrong(
            "takes the maximum",
            says="rule of V2",
            old=".topk(2).values.sum(-1)",
            new=".amax(-1)",
        ),
        Wrong(
            "adds the whole group",
            says="not all",
            old=".topk(2).values.sum(-1)",
            new=".sum(-1)",
        ),
        Wrong(
            "deals experts out in turn",
            says="groups are neighbours",
            old="z (g e) -> z g e",
            new="z (e g) -> z g e",
        ),
    ),
    judge=judge_groups,
)


def sorted_rows(experts, weights):
    """The same routing with experts in order of their numbers."""
    order = experts.argsort(1)
    return experts.gather(1, order), weights.gather(1, order)


def routed(answer, *args):
    """What an answer chose, in order; it must be two tensors."""
    got = call(answer, *args)
    if not isinstance(got, tuple) or len(got) != 2:
        raise Mistake("return the experts and their weights, two tensors")
    return sorted_rows(*got)


def judge_weights(answer):
    scores, bias = scores_and_bias()
    cfg = SMALL.replace(n_group=1, topk_group=1)
    made = route(scores, bias, cfg)
    want = sorted_rows(made.experts, made.weights)
    biased = (scores + bias).gather(1, want[0])
    plain = scores.gather(1, want[0])
    unbiased = route(scores, None, cfg)
    same(
        routed(answer, scores, bias, 4, 2.5),
        want,
        {
            "the bias may choose, but weights come from the scores "
            "without it": (want[0], 2.5 * biased / biased.sum(1, True)),
            "the factor comes after the division, or it cancels": (
                want[0],
                plain / plain.sum(1, True),
            ),
            "divide by the sum over the chosen experts, not over all": (
                want[0],
                2.5 * plain / scores.sum(1, True),
            ),
            "the bias has no say in your choice": sorted_rows(
                unbiased.experts, unbiased.weights
            ),
        },
        "experts and weights",
    )


WEIGHTS = Exercise(
    id="06.3",
    title="Find the bug: load perfect, answers wrong",
    difficulty=2,
    minutes=8,
    task="""\
Loads are even and the loss falls, but with the released weights this router
gives other answers than the official one. `scores` `[z, e]` are sigmoids,
`bias` `[e]` comes from balancing. Mend it. Return experts and weights.""",
    checks="experts and weights of `dsarch.router.route` without groups",
    name="choose_and_weigh",
    skeleton="""
def choose_and_weigh(scores, bias, k, factor):
    weights, experts = (scores + bias).topk(k)
    weights = ...  # was: weights / weights.sum(1, keepdim=True)
    return experts, factor * weights
""",
    solution="""
def choose_and_weigh(scores, bias, k, factor):
    experts = (scores + bias).topk(k).indices
    weights = scores.gather(1, experts)
    weights = weights / weights.sum(1, keepdim=True)
    return experts, factor * weights
""",
    hints=(
        "Which two questions does the router answer, and which scores does "
        "each need?",
        "Choosing needs the bias; weighing must not see it.",
        "Take only `.indices` of the `topk`, then `scores.gather(1, experts)`.",
    ),
    wrong=(
        Wrong(
            "weighs with the bias",
            says="without it",
            old="weights = scores.gather(1, experts)",
            new="weights = (scores + bias).gather(1, experts)",
        ),
        Wrong(
            "lets the factor cancel",
            says="it cancels",
            old="return experts, factor * weights",
            new="return experts, weights",
        ),
        Wrong(
            "divides by the sum over all",
            says="not over all",
            old="weights.sum(1, keepdim=True)",
            new="scores.sum(1, keepdim=True)",
        ),
    ),
    judge=judge_weights,
    mutation="06.bias-leaks-into-weights",
)


def judge_update(answer):
    counts = torch.tensor([90, 10, 20, 20, 10])
    bias = torch.tensor([0.5, -1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    error = counts.double().mean() - counts
    same(
        call(answer, bias.clone(), counts, 0.001),
        book.updated_bias(bias, counts, 0.001),
        {
            "the wrong way round: a busy expert must lose bias": (
                bias - 0.001 * error.sign()
            ),
            "steps have one length, whatever the error: take its sign": (
                bias + 0.001 * error
            ),
            "steps relative to the load are another rule": (
                bias + 0.001 * error / counts.double().mean()
            ),
            "compare with the mean of the load, not with the median": (
                bias
                + 0.001 * (counts.double().median() - counts.double()).sign()
            ),
        },
        "the new bias",
    )
    even = torch.full((5,), 7)
    same(call(answer, bias.clone(), even, 0.001), bias, what="even loads")


UPDATE = Exercise(
    id="06.4",
    title="Move the bias",
    difficulty=1,
    minutes=5,
    task="""\
After a step, `counts` `[e]` says how many slots each expert got in the whole
batch. Return the bias of the next step.""",
    checks="fp64 equality with `dsarch.balance.updated_bias`, uneven and even "
    "loads",
    name="next_bias",
    skeleton="""
def next_bias(bias, counts, speed):
    error = ...
    return ...
""",
    solution="""
def next_bias(bias, counts, speed):
    counts = counts.to(bias.dtype)
    error = counts.mean() - counts
    return bias + speed * error.sign()
""",
    hints=(
        "Which experts should become more attractive?",
        "The error of an expert is the mean load minus its own.",
        "Add `speed` times the sign of the error.",
    ),
    wrong=(
        Wrong(
            "moves the wrong way",
            says="wrong way round",
            old="bias + speed",
            new="bias - speed",
        ),
        Wrong(
            "takes the whole error",
            says="take its sign",
            old="error.sign()",
            new="error",
        ),
        Wrong(
            "compares with the median",
            says="not with the median",
            old="counts.mean() - counts",
            new="counts.median() - counts",
        ),
    ),
    judge=judge_update,
    mutation="06.bias-moves-the-wrong-way",
)


def judge_sequence(answer):
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(2, 9, E, generator=generator).sigmoid()
    k = 4
    chosen = scores.topk(k).indices
    f = torch.nn.functional.one_hot(chosen, E).sum((1, 2)) * E / (k * 9)
    share = (scores / scores.sum(-1, keepdim=True)).mean(1)
    flat = scores.flatten(0, 1)
    over = flat / flat.sum(1, keepdim=True)
    same(
        call(answer, scores, k),
        book.sequence_loss(scores, k),
        {
            "each sequence has its own loss; average them at the end": (
                book.expert_loss(over, flat.topk(k).indices)
            ),
            "sigmoids do not sum to one: normalise over all experts": (
                (f * scores.mean(1)).sum(1).mean()
            ),
            "an even load must give 1: the load is e / (k t) times the count": (
                f * share
            )
            .sum(1)
            .mean()
            * k
            / E,
            "average over the sequences, do not add them": (f * share).sum(),
        },
        "the loss",
    )


SEQUENCE = Exercise(
    id="06.5",
    title="Balance inside a sequence",
    difficulty=3,
    minutes=12,
    task="""\
`scores` `[b, t, e]` are sigmoids, unbiased. Return V3's sequence-wise loss
without its $\\alpha$: for each sequence the sum of $f_i P_i$, averaged over the
sequences. `torch.nn.functional.one_hot` counts.""",
    checks="fp32 equality with `dsarch.balance.sequence_loss`",
    name="even_sequences",
    skeleton="""
def even_sequences(scores, k):
    b, t, e = scores.shape
    f = ...  # [b, e]
    p = ...  # [b, e]
    return ...
""",
    solution="""
def even_sequences(scores, k):
    b, t, e = scores.shape
    chosen = scores.topk(k).indices
    counts = torch.nn.functional.one_hot(chosen, e).sum((1, 2))
    f = counts * e / (k * t)
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)
    return (f * p).sum(1).mean()
""",
    hints=(
        "Which axes may be summed before the product, and which may not?",
        "$f$ counts the best $k$ unbiased scores within a sequence; $P$ is "
        "the mean of scores divided by their sum over all experts.",
        "`one_hot(scores.topk(k).indices, e).sum((1, 2)) * e / (k * t)`.",
    ),
    wrong=(
        Wrong(
            "over the batch",
            says="its own loss",
            new="""
def even_sequences(scores, k):
    scores = scores.flatten(0, 1)
    t, e = scores.shape
    chosen = scores.topk(k).indices
    counts = torch.nn.functional.one_hot(chosen, e).sum((0, 1))
    p = (scores / scores.sum(-1, keepdim=True)).mean(0)
    return (counts * e / (k * t) * p).sum()
""",
        ),
        Wrong(
            "leaves the scores as they are",
            says="do not sum to one",
            old="(scores / scores.sum(-1, keepdim=True)).mean(1)",
            new="scores.mean(1)",
        ),
        Wrong(
            "adds the sequences",
            says="do not add",
            old=".sum(1).mean()",
            new=".sum()",
        ),
    ),
    judge=judge_sequence,
    mutation="06.sequence-loss-over-the-batch",
)


def judge_limit(answer):
    scores, bias = scores_and_bias()
    made = route(scores, bias, SMALL)
    choice = scores + bias
    kept = group_scores(choice, 5, 2).topk(3).indices
    mask = torch.zeros(30, 5).scatter(1, kept, 1.0).bool()
    mask = mask.repeat_interleave(3, 1)
    want = made.experts.sort(1).values
    same(
        call(answer, choice, mask, 4).sort(1).values,
        want,
        {
            "biased scores may be negative: a closed expert at zero beats "
            "them": (choice * mask).topk(4).indices.sort(1).values,
            "closed groups are not closed": (
                choice.topk(4).indices.sort(1).values
            ),
        },
        "the chosen experts",
    )


LIMIT = Exercise(
    id="06.6",
    title="Find the bug: closed and yet chosen",
    difficulty=2,
    minutes=6,
    task="""\
`open_` `[z, e]` is true for the experts of the groups that stay open. This was
in official code until February 2025, where it did no harm. Train with it from a
bias of zero and tokens end up in closed groups. Return the `k` experts.""",
    checks="the experts of `dsarch.router.route` with biases below zero",
    name="choose_open",
    skeleton="""
def choose_open(choice, open_, k):
    limited = ...  # was: choice * open_
    return limited.topk(k).indices
""",
    solution="""
def choose_open(choice, open_, k):
    limited = choice.masked_fill(~open_, -math.inf)
    return limited.topk(k).indices
""",
    hints=(
        "What is the score of a closed expert after the multiplication?",
        "Zero; and how large is the biased score of an open expert?",
        "Give closed experts minus infinity: "
        "`choice.masked_fill(~open_, -math.inf)`.",
    ),
    wrong=(
        Wrong(
            "multiplies by zero",
            says="beats them",
            old="choice.masked_fill(~open_, -math.inf)",
            new="choice * open_",
        ),
        Wrong(
            "forgets the groups",
            says="not closed",
            old="choice.masked_fill(~open_, -math.inf)",
            new="choice",
        ),
    ),
    judge=judge_limit,
    mutation="06.closed-groups-at-zero",
)


def layer():
    """A small layer with biases that matter and weights that are felt."""
    made = DeepSeekMoE(SMALL).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0.0, 0.4, generator=generator)
        bias = made.gate.e_score_correction_bias
        bias.normal_(-1.0, 0.3, generator=generator)
    return made.requires_grad_(False)


def judge_layer(answer):
    made = layer()
    x = torch.randn(
        11, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    m = SimpleNamespace(
        weight=made.gate.weight,
        bias=made.gate.e_score_correction_bias,
        experts=list(made.experts),
        shared_experts=made.shared_experts,
    )
    want = made(x[None])[0]
    shared, scale = made.shared_experts(x), SMALL.routed_scaling_factor
    same(
        call(answer, m, SMALL, x),
        want,
        {
            "the shared experts are missing": want - shared,
            "the factor belongs to the routed experts alone": (
                want + (scale - 1) * shared
            ),
            "the factor routed_scaling_factor is missing": (
                (want - shared) / scale + shared
            ),
            "the layer must not add its input: the block does": want + x,
        },
        "the output",
    )


LAYER = Exercise(
    id="06.7",
    title="Your layer against the official one",
    difficulty=4,
    minutes=25,
    task="""\
The whole layer for tokens `x` `[z, d]`: `m.weight` are the centroids `[e, d]`,
`m.bias` is the balancing bias, `m.experts` a list, `m.shared_experts` one MLP.
`cfg` has `n_group`, `topk_group`, `num_experts_per_tok` and
`routed_scaling_factor`. A loop over tokens is fine. The functions above may
help.""",
    checks="your code, with the same weights and negative biases, equals "
    "`dsarch.DeepSeekMoE`; the tests hold that class equal to transformers' "
    "deepseek_v3",
    name="my_moe",
    skeleton="""
def my_moe(m, cfg, x):
    scores = ...    # sigmoid, [z, e]
    open_ = ...     # experts of the best topk_group groups, [z, e]
    experts = ...   # [z, k], by biased scores
    weights = ...   # [z, k], from unbiased scores
    y = ...         # shared experts, then the routed ones
    return y
""",
    solution="""
def my_moe(m, cfg, x):
    scores = (x @ m.weight.T).sigmoid()
    choice = scores + m.bias
    grouped = rearrange(choice, "z (g e) -> z g e", g=cfg.n_group)
    kept = grouped.topk(2).values.sum(-1).topk(cfg.topk_group).indices
    closed = torch.ones(len(x), cfg.n_group, dtype=torch.bool)
    closed = closed.scatter(1, kept, False)
    closed = closed.repeat_interleave(grouped.size(2), 1)
    choice = choice.masked_fill(closed, -math.inf)
    experts = choice.topk(cfg.num_experts_per_tok).indices
    weights = scores.gather(1, experts)
    weights = weights / weights.sum(1, keepdim=True)
    weights = weights * cfg.routed_scaling_factor
    rows = []
    for u, chosen, w in zip(x, experts.tolist(), weights):
        rows.append(sum(g * m.experts[i](u) for i, g in zip(chosen, w)))
    return torch.stack(rows) + m.shared_experts(x)
""",
    hints=(
        "Four stages: scores, open groups, choice and weights, sum.",
        "Only the choice sees the bias and the groups. Closed experts get "
        "minus infinity.",
        "Routed answers are weighed and scaled; the shared experts are added "
        "as they are, and the input is not.",
    ),
    wrong=(
        Wrong(
            "forgets the shared experts",
            says="shared experts are missing",
            old=" + m.shared_experts(x)",
            new="",
        ),
        Wrong(
            "scales the shared experts",
            says="routed experts alone",
            old=" + m.shared_experts(x)",
            new=" + cfg.routed_scaling_factor * m.shared_experts(x)",
        ),
        Wrong(
            "forgets the factor",
            says="routed_scaling_factor is missing",
            old="    weights = weights * cfg.routed_scaling_factor\n",
            new="",
        ),
        Wrong(
            "adds the residual",
            says="must not add its input",
            old=" + m.shared_experts(x)",
            new=" + m.shared_experts(x) + x",
        ),
        Wrong(
            "closes groups with zero",
            says="off by",
            old="choice.masked_fill(closed, -math.inf)",
            new="choice.masked_fill(closed, 0.0)",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [COUNT, GROUPS, WEIGHTS, UPDATE, SEQUENCE, LIMIT, LAYER]
