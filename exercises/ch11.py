"""Exercises of chapter 11: sharding, pipelines, experts on many ranks."""

import torch
from torch import nn

from dsarch import Config, DeepSeekMoE
from dsarch.analysis import eplb
from dsarch.analysis.expert_parallel import traffic
from dsarch.layers import SwiGLU
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, blank, call, same
from dsarch.train import memory, pipeline

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from torch import einsum
from torch.nn import functional as F
"""


def judge_bytes(answer):
    for stage in (0, 1, 2, 3):
        case = (7.5e9, 64, stage)
        adam = memory.state_bytes(*case)
        shared = [64 if stage >= first else 1 for first in (3, 1, 2)]
        early = 7.5e9 * sum(
            b / n for b, n in zip((2, 2, 12), shared, strict=True)
        )
        same(
            call(answer, *case),
            adam,
            {
                "the optimizer is sharded first, before the gradients": early,
                "what is not sharded stays whole on each rank": 16 * 7.5e9 / 64,
            },
            f"the bytes of stage {stage}",
        )


BYTES = Exercise(
    id="11.1",
    title="Bytes of a rank",
    difficulty=1,
    minutes=6,
    task="""\
Mixed-precision Adam keeps 2 bytes of weight, 2 of gradient and 12 of optimizer
state per parameter. Return the bytes on one of `ranks` ranks for ZeRO stage 0
to 3.""",
    checks="the four stages of the ZeRO paper's example against "
    "`dsarch.train.memory.state_bytes`",
    name="rank_bytes",
    skeleton="""
def rank_bytes(params, ranks, stage):
    weight = ...
    gradient = ...
    optimizer = ...
    return params * (weight + gradient + optimizer)
""",
    solution="""
def rank_bytes(params, ranks, stage):
    weight = 2 / (ranks if stage >= 3 else 1)
    gradient = 2 / (ranks if stage >= 2 else 1)
    optimizer = 12 / (ranks if stage >= 1 else 1)
    return params * (weight + gradient + optimizer)
""",
    hints=(
        "Which of the three is needed least often?",
        "Stage 1 shards the optimizer, stage 2 also the gradients.",
        "`12 / (ranks if stage >= 1 else 1)`, and so on.",
    ),
    wrong=(
        Wrong(
            "shards gradients first",
            says="before the gradients",
            new="""
def rank_bytes(params, ranks, stage):
    weight = 2 / (ranks if stage >= 3 else 1)
    gradient = 2 / (ranks if stage >= 1 else 1)
    optimizer = 12 / (ranks if stage >= 2 else 1)
    return params * (weight + gradient + optimizer)
""",
        ),
        Wrong(
            "divides all of it by the stage",
            says="stays whole",
            new="""
def rank_bytes(params, ranks, stage):
    return 16 * params / ranks
""",
        ),
    ),
    judge=judge_bytes,
)


def judge_loss(answer):
    parts = [torch.rand(n, dtype=torch.float64) for n in (6, 2, 5, 1)]
    tokens, ranks = sum(map(len, parts)), len(parts)
    want = torch.cat(parts).mean()

    def mean(rule):
        return torch.stack([rule(part) for part in parts]).mean()

    for part in parts:
        call(answer, part, tokens, ranks)
    got = mean(lambda part: answer(part, tokens, ranks))
    same(
        got,
        want,
        {
            "a mean of means counts the tokens of short ranks too often": mean(
                lambda part: part.mean()
            ),
            "the framework averages over ranks: multiply by their number": (
                want / ranks
            ),
            "divide by the tokens of all ranks, once": want * tokens,
        },
        "the mean over ranks",
    )


LOSS = Exercise(
    id="11.2",
    title="The loss of a rank",
    difficulty=2,
    minutes=8,
    task="""\
Ranks hold different numbers of target tokens, and the framework will *average*
their gradients. Return the loss that a rank with the token losses `losses`
`[tokens]` must call `backward` on, so that the average is the mean over all
`all_tokens` tokens of `ranks` ranks.""",
    checks="four ranks with 6, 2, 5 and 1 tokens give the mean of all 14",
    name="rank_loss",
    skeleton="""
def rank_loss(losses, all_tokens, ranks):
    return ...
""",
    solution="""
def rank_loss(losses, all_tokens, ranks):
    return losses.sum() * ranks / all_tokens
""",
    hints=(
        "What would one process with all tokens compute?",
        "Sums add up over ranks, means do not.",
        "The average divides by the ranks: multiply by them first.",
    ),
    wrong=(
        Wrong(
            "takes the mean of its own tokens",
            says="mean of means",
            old="losses.sum() * ranks / all_tokens",
            new="losses.mean()",
        ),
        Wrong(
            "forgets that gradients are averaged",
            says="multiply by their number",
            old="losses.sum() * ranks / all_tokens",
            new="losses.sum() / all_tokens",
        ),
    ),
    judge=judge_loss,
)


def judge_tensor(answer):
    mlp = SwiGLU(6, 12).double()
    nn.init.normal_(mlp.gate_proj.weight)
    weights = [
        m.weight.detach() for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    ]
    x = torch.randn(5, 6, dtype=torch.float64)
    want = mlp(x).detach()
    parts = call(answer, x, *weights, 3)
    if not isinstance(parts, list | tuple):
        raise Mistake("return a list with the part of each rank")
    if any(blank(part) for part in parts):
        raise Unsolved
    if len(parts) != 3:
        raise Mistake(f"3 ranks have 3 parts, found {len(parts)}")
    for part in parts:
        if part.shape != want.shape:
            raise Mistake(
                "each part is a summand as wide as the output: cut the last "
                f"matrix by its inputs; found {tuple(part.shape)}"
            )
    total = sum(parts)
    mistakes = {"each rank may use its own columns only": 3 * want}
    same(total, want, mistakes, "the sum over ranks")


TENSOR = Exercise(
    id="11.3",
    title="An MLP on three ranks",
    difficulty=2,
    minutes=10,
    task="""\
SwiGLU is `down @ (silu(gate @ x) * (up @ x))`, with weights as in `nn.Linear`:
`gate` and `up` are `[f, d]`, `down` is `[d, f]`. Return the list of what each
rank computes from its share of `f`, so that their *sum* is the answer and no
rank needs anything from another.""",
    checks="fp64: the parts of three ranks add up to `dsarch.layers.SwiGLU`",
    name="tensor_parallel",
    skeleton="""
def tensor_parallel(x, gate, up, down, ranks):
    gates = ...  # one piece for each rank
    ups = ...
    downs = ...
    pieces = zip(gates, ups, downs)
    return [(F.silu(x @ g.T) * (x @ u.T)) @ w.T for g, u, w in pieces]
""",
    solution="""
def tensor_parallel(x, gate, up, down, ranks):
    gates = gate.chunk(ranks, 0)
    ups = up.chunk(ranks, 0)
    downs = down.chunk(ranks, 1)
    pieces = zip(gates, ups, downs)
    return [(F.silu(x @ g.T) * (x @ u.T)) @ w.T for g, u, w in pieces]
""",
    hints=(
        "Which index do all three matrices share?",
        "A rank needs the same rows of `gate` and `up`.",
        "`down` is cut along axis 1, its inputs.",
    ),
    wrong=(
        Wrong(
            "repeats the whole on each rank",
            says="own columns only",
            new="""
def tensor_parallel(x, gate, up, down, ranks):
    return [(F.silu(x @ gate.T) * (x @ up.T)) @ down.T] * ranks
""",
        ),
        Wrong(
            "cuts the output instead of the inner width",
            says="cut the last",
            new="""
def tensor_parallel(x, gate, up, down, ranks):
    inner = F.silu(x @ gate.T) * (x @ up.T)
    return [inner @ w.T for w in down.chunk(ranks, 0)]
""",
        ),
    ),
    judge=judge_tensor,
)


def part_of(score, v):
    most = score.amax(-1)
    p = (score - most[:, None]).exp()
    return most, p.sum(-1), p @ v


def judge_merge(answer):
    score = 4 * torch.randn(5, 9, dtype=torch.float64)
    v = torch.randn(9, 3, dtype=torch.float64)
    near, far = part_of(score[:, :4], v[:4]), part_of(score[:, 4:], v[4:])
    whole = part_of(score, v)
    added = near[1] + far[1], near[2] + far[2]
    result = call(answer, near, far)
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise Mistake("return (most, total, out) of both blocks together")
    if any(blank(x) for x in result):
        raise Unsolved
    same(
        result[2] / result[1][:, None],
        whole[2] / whole[1][:, None],
        {
            "the maxima differ: rescale both to the common one": (
                added[1] / added[0][:, None]
            ),
            "sums, not means: a block with larger scores weighs more": (
                near[2] / near[1][:, None] + far[2] / far[1][:, None]
            )
            / 2,
        },
        "out / total",
    )
    same(result[0], whole[0], {}, "the common maximum")


MERGE = Exercise(
    id="11.4",
    title="Two blocks of one softmax",
    difficulty=3,
    minutes=12,
    task="""\
A rank of a ring has seen keys in two blocks. Each block left `(most, total,
out)`: the largest score `[t]`, $\\ell = \\sum_s e^{x_s - m}$ `[t]` and
$y = \\sum_s e^{x_s - m} v_s$ `[t, v]`. Return the triple of both together.""",
    checks="fp64: `out / total` equals softmax over all nine keys",
    name="merge",
    skeleton="""
def merge(one, other):
    most = ...
    total = ...
    out = ...
    return most, total, out
""",
    solution="""
def merge(one, other):
    most = torch.maximum(one[0], other[0])
    a, b = (one[0] - most).exp(), (other[0] - most).exp()
    total = a * one[1] + b * other[1]
    out = a[:, None] * one[2] + b[:, None] * other[2]
    return most, total, out
""",
    hints=(
        "Which maximum would one block with all keys have used?",
        "Changing the maximum from m to m' multiplies a sum by $e^{m - m'}$.",
        "Rescale total and out of both blocks, then add.",
    ),
    wrong=(
        Wrong(
            "adds without a common maximum",
            says="rescale both",
            old="    a, b = (one[0] - most).exp(), (other[0] - most).exp()",
            new="    a = b = torch.ones_like(most)",
        ),
        Wrong(
            "averages the two softmaxes",
            says="weighs more",
            new="""
def merge(one, other):
    means = [part[2] / part[1][:, None] for part in (one, other)]
    most = torch.maximum(one[0], other[0])
    return most, torch.ones_like(most), (means[0] + means[1]) / 2
""",
        ),
    ),
    judge=judge_merge,
)


def words(row):
    return [f"{op.kind}{op.micro}" for item in row for op in item]


def judge_order(answer):
    for stages, micros in ((4, 8), (8, 20), (4, 2)):
        program = pipeline.one_f_one_b(stages, micros)
        deep = pipeline.one_f_one_b(stages + 1, micros)
        for stage in range(stages):
            got = call(answer, stage, stages, micros)
            same(
                list(got) if isinstance(got, tuple) else got,
                words(program[stage]),
                {
                    "that is GPipe: a backward runs as soon as it can": words(
                        pipeline.gpipe(stages, micros)[0]
                    ),
                    "the last stage has no forward ahead": words(deep[stage]),
                },
                f"stage {stage} of {stages} with {micros} micro-batches",
            )


ORDER = Exercise(
    id="11.5",
    title="What a stage of 1F1B does",
    difficulty=3,
    minutes=15,
    task="""\
Return the order of work of one stage as a list like `["F0", "F1", "B0", …]`:
first as many forwards as there are stages behind this one, then one forward and
one backward in turn, then the remaining backwards. There may be fewer
micro-batches than stages.""",
    checks="every stage of three pipelines against "
    "`dsarch.train.pipeline.one_f_one_b`",
    name="order",
    skeleton="""
def order(stage, stages, micros):
    ahead = ...
    row = ...  # the forwards ahead
    ...        # forward and backward in turn
    ...        # the backwards that are left
    return row
""",
    solution="""
def order(stage, stages, micros):
    ahead = min(stages - 1 - stage, micros)
    row = [f"F{k}" for k in range(ahead)]
    for k in range(micros - ahead):
        row += [f"F{k + ahead}", f"B{k}"]
    row += [f"B{k}" for k in range(micros - ahead, micros)]
    return row
""",
    hints=(
        "The last stage can go back at once; how far is this one from it?",
        "`stages - 1 - stage` forwards ahead, at most `micros`.",
        "The k-th backward of the middle follows forward k + ahead.",
    ),
    wrong=(
        Wrong(
            "runs all forwards first",
            says="that is GPipe",
            old="min(stages - 1 - stage, micros)",
            new="micros",
        ),
        Wrong(
            "counts one stage too many",
            says="no forward ahead",
            old="stages - 1 - stage",
            new="stages - stage",
        ),
    ),
    judge=judge_order,
)


def judge_replicas(answer):
    loads = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]
    for slots in (12, 13, 18):
        got = call(answer, loads, slots)
        want = eplb.replicate(loads, slots)
        heavy = sorted(range(12), key=lambda i: -loads[i])
        same(
            got,
            [want.count(i) for i in range(12)],
            {
                "a replica halves its expert's load: divide by the count": [
                    1 + (slots - 12 if i == heavy[0] else 0) for i in range(12)
                ],
                "the busiest may need a third slot: look again each time": [
                    1 + (i in heavy[: slots - 12]) for i in range(12)
                ],
            },
            f"replicas in {slots} slots",
        )


REPLICAS = Exercise(
    id="11.6",
    title="Which experts to double",
    difficulty=2,
    minutes=10,
    task="""\
`slots` are more than experts. Give every expert one slot, then each further
slot to the expert whose load *per replica* is largest at that moment. Return
the number of slots of each expert.""",
    checks="12, 13 and 18 slots against `dsarch.analysis.eplb.replicate`, "
    "which the tests hold equal to the published example",
    name="replicas",
    skeleton="""
def replicas(loads, slots):
    counts = ...
    for _ in range(slots - len(loads)):
        busiest = ...
        counts[busiest] += 1
    return counts
""",
    solution="""
def replicas(loads, slots):
    counts = [1] * len(loads)
    for _ in range(slots - len(loads)):
        each = [load / n for load, n in zip(loads, counts)]
        busiest = each.index(max(each))
        counts[busiest] += 1
    return counts
""",
    hints=(
        "Begin with one slot each.",
        "What does each replica of an expert have to do?",
        "`load / n` for all experts, and the index of the largest.",
    ),
    wrong=(
        Wrong(
            "forgets that replicas share",
            says="divide by the count",
            old="load / n for",
            new="load for",
        ),
        Wrong(
            "doubles the busiest ones once",
            says="look again",
            new="""
def replicas(loads, slots):
    heavy = sorted(loads)[::-1][: slots - len(loads)]
    return [1 + (load in heavy) for load in loads]
""",
        ),
    ),
    judge=judge_replicas,
)


def judge_ranks(answer):
    cfg = Config(
        hidden_size=10,
        moe_intermediate_size=6,
        n_routed_experts=12,
        num_experts_per_tok=4,
        n_group=3,
        topk_group=2,
        initializer_range=0.5,
    )
    moe = DeepSeekMoE(cfg).double().requires_grad_(False)
    for weight in moe.parameters():
        weight.normal_()
    x = torch.randn(15, 10, dtype=torch.float64)
    xs = list(x.chunk(3))
    got = call(answer, moe, xs)
    if not isinstance(got, tuple) or len(got) != 2:
        raise Mistake("return the list of answers and the number of copies")
    ys, copies = got
    if blank(ys) or blank(copies):
        raise Unsolved
    chosen = moe.gate(x)
    want = moe(x[None])[0]
    shared = moe.shared_experts(x)
    unweighted = moe.combine(
        x, chosen._replace(weights=torch.ones_like(chosen.weights))
    )
    same(
        torch.cat(list(ys)),
        want,
        {
            "the shared experts answer every token too": want - shared,
            "weigh each answer by the router's weight": unweighted,
        },
        "the answers of all ranks",
    )
    sent = traffic(chosen.experts, 12, 3)
    slots = torch.tensor(
        [
            int((part // 4 != rank).sum())
            for rank, part in enumerate(chosen.experts.chunk(3))
        ]
    )
    same(
        int(copies),
        sent.remote,
        {
            "a token travels once to a rank, not once for each expert": (
                int(slots.sum())
            ),
            "a copy that stays at home does not travel": int(sent.copies.sum()),
        },
        "copies between ranks",
    )


RANKS = Exercise(
    id="11.7",
    title="A mixture on three ranks",
    difficulty=5,
    minutes=30,
    task="""\
`xs[r]` `[z, d]` are the tokens of rank `r`; it owns the experts `r * local` up
to `(r + 1) * local` and has copies of router and shared experts. Return the
answers of all ranks, as a list, and how many token copies went from one rank to
another: a token is sent once to each rank that holds one of its experts.
`moe.gate(x)` gives `weights` `[z, k]`, `experts` `[z, k]` and the scores.""",
    checks="fp64: your ranks together equal `dsarch.DeepSeekMoE`, which the "
    "tests hold equal to transformers' deepseek_v3; the copies equal "
    "`dsarch.analysis.expert_parallel.traffic`",
    name="across_ranks",
    skeleton="""
def across_ranks(moe, xs):
    local = len(moe.experts) // len(xs)
    ys, copies = ..., 0        # begin with the shared experts
    for sender, x in enumerate(xs):
        weights, experts, _ = moe.gate(x)
        for owner in range(len(xs)):
            token = ...        # who has an expert there?
            copies += ...
            for e in range(owner * local, (owner + 1) * local):
                ...            # answers, weighed, added to ys[sender]
    return ys, copies
""",
    solution="""
def across_ranks(moe, xs):
    local = len(moe.experts) // len(xs)
    ys, copies = [moe.shared_experts(x) for x in xs], 0
    for sender, x in enumerate(xs):
        weights, experts, _ = moe.gate(x)
        for owner in range(len(xs)):
            token = (experts // local == owner).any(1).nonzero()[:, 0]
            copies += len(token) if owner != sender else 0
            sent, asked = x[token], experts[token]
            for e in range(owner * local, (owner + 1) * local):
                row, slot = (asked == e).nonzero(as_tuple=True)
                weight = weights[token[row], slot, None]
                y = moe.experts[e](sent[row]) * weight
                ys[sender] = ys[sender].index_add(0, token[row], y)
    return ys, copies
""",
    hints=(
        "Work on one pair of sender and owner at a time.",
        "`(experts // local == owner).any(1)` says who sends a copy.",
        "For each expert take the rows that chose it, weigh its answers with "
        "`weights[token[row], slot]` and `index_add` them.",
    ),
    wrong=(
        Wrong(
            "sends a copy for every expert",
            says="travels once to a rank",
            old="len(token) if owner != sender else 0",
            new="int((experts // local == owner).sum()) * (owner != sender)",
        ),
        Wrong(
            "forgets the weights",
            says="weigh each answer",
            old="moe.experts[e](sent[row]) * weight",
            new="moe.experts[e](sent[row])",
        ),
        Wrong(
            "leaves the shared experts out",
            says="shared experts answer",
            old="[moe.shared_experts(x) for x in xs], 0",
            new="[torch.zeros_like(x) for x in xs], 0",
        ),
    ),
    judge=judge_ranks,
)

EXERCISES = (BYTES, LOSS, TENSOR, MERGE, ORDER, REPLICAS, RANKS)
