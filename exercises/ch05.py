"""Exercises of chapter 5: routers, capacities, balance."""

import torch
from torch import nn

from dsarch import balance, moe, router
from dsarch.layers import SwiGLU
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Unsolved, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from torch import nn
"""


def scores(tokens=9, experts=5):
    drawn = torch.randn(tokens, experts, dtype=torch.float64)
    return (2 * drawn).softmax(1)


def judge_gate(answer):
    p = scores()
    want = router.top_k(p, 2)
    raw = p.gather(1, want.experts)
    again = raw.softmax(1)
    same(
        call(answer, p, 2),
        (want.weights, want.experts),
        {
            "the weights of a token must sum to one": (raw, want.experts),
            "renormalise by division; a second softmax changes the ratio": (
                again,
                want.experts,
            ),
        },
        "weights and experts",
    )


GATE = Exercise(
    id="05.1",
    title="Choose two, weigh two",
    difficulty=1,
    minutes=5,
    task="""\
From scores `p` `[z, e]` return the weights and the numbers of the `k` best
experts of each token. The weights of a token sum to one.""",
    checks="fp64 equality with `dsarch.router.top_k` for nine tokens",
    name="choose",
    skeleton="""
def choose(p, k):
    best, experts = ..., ...
    return best, experts
""",
    solution="""
def choose(p, k):
    best, experts = p.topk(k)
    return best / best.sum(1, keepdim=True), experts
""",
    hints=(
        "`topk` returns values and indices.",
        "What do the two kept probabilities sum to?",
        "Divide by `best.sum(1, keepdim=True)`.",
    ),
    wrong=(
        Wrong(
            "does not renormalise",
            says="must sum to one",
            old="best / best.sum(1, keepdim=True)",
            new="best",
        ),
        Wrong(
            "takes a second softmax",
            says="by division",
            old="best / best.sum(1, keepdim=True)",
            new="best.softmax(1)",
        ),
    ),
    judge=judge_gate,
)


def judge_room(answer):
    for case in ((100, 2, 8, 1.25), (10, 1, 4, 1.0), (7, 2, 3, 1.5)):
        tokens, k, experts, factor = case
        same(
            call(answer, *case),
            router.capacity(*case),
            {
                "each token takes k slots": router.capacity(
                    tokens, 1, experts, factor
                ),
                "round up: a share of a slot needs a whole one": int(
                    tokens * k / experts * factor
                ),
            },
            f"the room for {tokens} tokens",
        )


ROOM = Exercise(
    id="05.2",
    title="How much room an expert has",
    difficulty=1,
    minutes=5,
    task="""\
The number of slots that each expert reserves for `tokens` tokens with `k`
choices each: the even share times the capacity factor, rounded up.""",
    checks="three cases against `dsarch.router.capacity`",
    name="room",
    skeleton="""
def room(tokens, k, experts, factor):
    return ...
""",
    solution="""
def room(tokens, k, experts, factor):
    return math.ceil(tokens * k / experts * factor)
""",
    hints=(
        "How many slots are there in all?",
        "`tokens * k` slots over `experts` experts is the even share.",
        "Multiply by the factor, then `math.ceil`.",
    ),
    wrong=(
        Wrong(
            "counts tokens instead of slots",
            says="k slots",
            old="tokens * k / experts",
            new="tokens / experts",
        ),
        Wrong("rounds down", says="round up", old="math.ceil", new="int"),
    ),
    judge=judge_room,
)


def judge_loss(answer):
    p = scores(12, 4)
    experts = router.top_k(p, 2).experts
    want = balance.expert_loss(p, experts)
    chosen = p.gather(1, experts).sum() / 12
    same(
        call(answer, p, experts),
        want,
        {
            "count slots, not tokens: divide by k as well": 2 * want,
            "the even load must give one: scale by the experts": want / 4,
            "P is the mean of all scores, not only of the chosen": chosen,
        },
        "the balance loss",
    )


LOSS = Exercise(
    id="05.3",
    title="A loss that keeps experts busy",
    difficulty=3,
    minutes=10,
    task="""\
The sum of $f_i P_i$ from scores `p` `[z, e]` and chosen `experts` `[z, k]`,
without the coefficient. It must be one for an even load.""",
    checks="fp64 equality with `dsarch.balance.expert_loss`, top-2 of four",
    name="balance_loss",
    skeleton="""
def balance_loss(p, experts):
    share = ...  # f, the load over its even share
    mean = ...   # P, the mean score
    return ...
""",
    solution="""
def balance_loss(p, experts):
    z, e = p.shape
    counts = torch.bincount(experts.flatten(), minlength=e).type_as(p)
    share = counts * e / (experts.size(1) * z)
    return (share * p.mean(0)).sum()
""",
    hints=(
        "Two numbers per expert: how often chosen, how much wanted.",
        "`torch.bincount` counts; the even share is `k * z / e`.",
        "Divide the counts by the even share, multiply by `p.mean(0)`, sum.",
    ),
    wrong=(
        Wrong(
            "divides by tokens only",
            says="divide by k",
            old="(experts.size(1) * z)",
            new="z",
        ),
        Wrong(
            "forgets the number of experts",
            says="scale by the experts",
            old="counts * e /",
            new="counts /",
        ),
    ),
    judge=judge_loss,
)


def judge_bug(answer):
    torch.manual_seed(3)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    want = router.switch_top1(logits.softmax(1))
    got = call(answer, logits)
    ones = torch.ones_like(want.weights)
    if torch.is_tensor(got) and torch.equal(got.detach(), ones):
        raise Unsolved
    same(
        got,
        want.weights,
        {
            "weigh with the probability, not with the logit": logits.max(
                1, keepdim=True
            ).values,
        },
        "the weights",
    )
    (slope,) = torch.autograd.grad(got.sum(), logits, allow_unused=True)
    same(
        slope,
        torch.autograd.grad(want.weights.sum(), logits)[0],
        what="the gradient of the router",
    )


BUG = Exercise(
    id="05.4",
    title="Find the bug: a router that never learns",
    difficulty=2,
    minutes=6,
    task="""\
Top-1 routing, written like top-2. The loss falls, the router's weights do not
move at all. Return the weights `[z, 1]` that let it learn.""",
    checks="values and gradient against `dsarch.router.switch_top1`",
    name="top1_weight",
    skeleton="""
def top1_weight(logits):
    best = logits.softmax(1).topk(1).values
    return best / best.sum(1, keepdim=True)
""",
    solution="""
def top1_weight(logits):
    best = logits.softmax(1).topk(1).values
    return best
""",
    hints=(
        "Print the weights.",
        "What is the derivative of a number divided by itself?",
        "Switch weighs with the probability of the chosen expert.",
    ),
    wrong=(
        Wrong(
            "takes the logit",
            says="not with the logit",
            old="logits.softmax(1)",
            new="logits",
        ),
        Wrong(
            "cuts the gradient",
            says="stopped with",
            old="    return best",
            new="    return torch.tensor(best.numpy())",
        ),
    ),
    judge=judge_bug,
    mutation="05.switch-weight-is-one",
)


def judge_layer(answer):
    layer = moe.SparseMoE(6, 7, 4, 2).double().requires_grad_(False)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    flat = x.flatten(0, 1)
    routing = layer.route(flat)
    raw = routing._replace(weights=torch.full_like(routing.weights, 0.5))
    last = torch.zeros_like(flat)
    for slot in range(2):
        for z in range(10):
            e = int(routing.experts[z, slot])
            last[z] = routing.weights[z, slot] * layer.experts[e](flat[z])
    parts = nn.ModuleList(layer.experts)
    same(
        call(answer, layer.gate.weight, parts, x, 2),
        layer(x),
        {
            "weigh the answers by the router's weights": moe.dispatch_grouped(
                flat, raw, layer.experts
            ).unflatten(0, (2, 5)),
            "add the answers of both experts; one was overwritten": (
                last.unflatten(0, (2, 5))
            ),
        },
        "the layer's answer",
    )
    assert isinstance(parts[0], SwiGLU)


LAYER = Exercise(
    id="05.5",
    title="Your layer against the official one",
    difficulty=4,
    minutes=20,
    task="""\
The whole layer: `gate` is the router's weight `[e, d]`, `experts` a list of
modules, `x` `[b, t, d]`. Compute an expert only for the tokens it serves.""",
    checks="your code, with the same weights, equals `dsarch.SparseMoE`; "
    "the tests hold that class equal to transformers' Mixtral block",
    name="my_moe",
    skeleton="""
def my_moe(gate, experts, x, k):
    tokens = x.flatten(0, 1)
    weights, chosen = ..., ...
    y = torch.zeros_like(tokens)
    for i, expert in enumerate(experts):
        token, slot = (chosen == i).nonzero(as_tuple=True)
        y[token] += ...
    return y.unflatten(0, x.shape[:2])
""",
    solution="""
def my_moe(gate, experts, x, k):
    tokens = x.flatten(0, 1)
    weights, chosen = (tokens @ gate.T).softmax(1).topk(k)
    weights = weights / weights.sum(1, keepdim=True)
    y = torch.zeros_like(tokens)
    for i, expert in enumerate(experts):
        token, slot = (chosen == i).nonzero(as_tuple=True)
        y[token] += weights[token, slot, None] * expert(tokens[token])
    return y.unflatten(0, x.shape[:2])
""",
    hints=(
        "Scores, choice and weights are exercise 05.1.",
        "`token` and `slot` say who chose expert `i`, and as which choice.",
        "Add `weights[token, slot, None] * expert(tokens[token])`.",
    ),
    wrong=(
        Wrong(
            "takes equal weights",
            says="by the router's weights",
            old="weights[token, slot, None] *",
            new="0.5 *",
        ),
        Wrong(
            "ignores which choice it was",
            says="stopped with",
            old="weights[token, slot, None]",
            new="weights[token]",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [GATE, ROOM, LOSS, BUG, LAYER]
