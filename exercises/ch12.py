"""Exercises of chapter 12: masks, rewards, advantages, preferences."""

import math

import torch

from dsarch.post.dpo import dpo_loss
from dsarch.post.logprobs import sequence_logprobs, shift, token_logprobs
from dsarch.post.ppo import gae
from dsarch.post.reward import bradley_terry_loss, pass_at_k
from dsarch.post.sft import Message, Template, render, sft_loss
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from torch.nn.functional import logsigmoid
"""

TEMPLATE = Template()


def dialogue():
    return [
        Message("user", [5, 6]),
        Message("assistant", [7, 8, 9]),
        Message("tool", [3]),
        Message("assistant", [4]),
    ]


def judge_mask(answer):
    example = render(dialogue(), TEMPLATE, train="all")
    tokens, want = example.tokens, example.mask
    t = TEMPLATE
    ends = [x == t.eos for x in tokens]
    marks = [x == t.assistant for x in tokens]
    same(
        call(answer, tokens, t),
        want,
        {
            "the end token is trained, or the model never stops": [
                m and not e for m, e in zip(want, ends, strict=True)
            ],
            "the marker is given by the program, not learnt": [
                m or e for m, e in zip(want, marks, strict=True)
            ],
            "only the assistant's words are trained": [
                x not in t.special or x == t.eos for x in tokens
            ],
            "a tool's words are read, not learnt": [
                m or i in (9, 10) for i, m in enumerate(want)
            ],
        },
        "the mask",
    )


MASK = Exercise(
    id="12.1",
    title="What is learnt",
    difficulty=2,
    minutes=8,
    task="""\
`tokens` is a rendered dialogue, a list of ids; `t.user`, `t.assistant`,
`t.tool` open turns and `t.eos` ends an assistant's. Return a list that is true
for every token that is trained, all assistant turns counted.""",
    checks="the mask of `dsarch.post.sft.render` for a dialogue with a tool",
    name="learnt",
    skeleton="""
def learnt(tokens, t):
    mask, speaking = [], False
    for token in tokens:
        ...
    return ...
""",
    solution="""
def learnt(tokens, t):
    mask, speaking = [], False
    for token in tokens:
        if token in (t.user, t.tool, t.assistant):
            speaking = token == t.assistant
            mask.append(False)
        else:
            mask.append(speaking)
    return mask
""",
    hints=(
        "Walk through the tokens and remember who speaks.",
        "A marker changes the speaker; is the marker itself written by the "
        "model?",
        "No marker is trained; every other token is, if the assistant speaks, "
        "its end token included.",
    ),
    wrong=(
        Wrong(
            "leaves the end token out",
            says="never stops",
            old="mask.append(speaking)",
            new="mask.append(speaking and token != t.eos)",
        ),
        Wrong(
            "trains the marker",
            says="not learnt",
            old="mask.append(False)",
            new="mask.append(speaking)",
        ),
        Wrong(
            "learns the tool's words",
            says="tool's words",
            old="""        if token in (t.user, t.tool, t.assistant):
            speaking = token == t.assistant
            mask.append(False)""",
            new="""        if token in (t.user, t.assistant):
            speaking = token == t.assistant
            mask.append(False)
        elif token == t.tool:
            speaking = True
            mask.append(True)""",
        ),
    ),
    judge=judge_mask,
)


def texts():
    """Logits of a policy and a reference, tokens, and masks of answers."""
    generator = torch.Generator().manual_seed(12)
    shape = (3, 7, 11)
    logits = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for _ in range(4)
    ]
    tokens = [torch.randint(11, (3, 7), generator=generator) for _ in range(2)]
    starts = torch.tensor([[2, 3, 4], [3, 2, 2]])
    ends = torch.tensor([[5, 7, 6], [7, 6, 7]])
    place = torch.arange(7)
    masks = [
        (place >= a[:, None]) & (place < b[:, None])
        for a, b in zip(starts, ends, strict=True)
    ]
    return logits, tokens, masks


def judge_shift(answer):
    (logits, *_), (tokens, _), (mask, _) = texts()
    logp = token_logprobs(logits, tokens)
    early = logp.masked_fill(~mask[:, :-1], 0.0).sum() / mask[:, :-1].sum()
    own = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    same(
        call(answer, logits, tokens, mask),
        sft_loss(logits, tokens, mask),
        {
            "the mask is not shifted along: it drops the first token of each "
            "answer and trains the one behind it": -early,
            "each token is scored by the logit that has already seen it": (
                -own[mask].mean()
            ),
            "the mean goes over the trained tokens, not over all": (
                -logp.masked_fill(~shift(mask), 0.0).mean()
            ),
        },
        "the loss",
    )


SHIFT = Exercise(
    id="12.2",
    title="Find the bug: a wonderful loss",
    difficulty=2,
    minutes=8,
    task="""\
The loss falls to almost nothing, and every answer begins with nonsense.
`logits` `[b, t, w]`, `tokens` and `mask` `[b, t]`; the mask is true on answers.
Mend it.""",
    checks="equality with `dsarch.post.sft.sft_loss`, which the tests hold "
    "equal to the loss of transformers",
    name="my_sft_loss",
    skeleton="""
def my_sft_loss(logits, tokens, mask):
    logp = logits[:, :-1].log_softmax(-1)
    logp = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    keep = ...  # was: mask[:, :-1]
    return -logp.masked_select(keep).mean()
""",
    solution="""
def my_sft_loss(logits, tokens, mask):
    logp = logits[:, :-1].log_softmax(-1)
    logp = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    keep = mask[:, 1:]
    return -logp.masked_select(keep).mean()
""",
    hints=(
        "Which token does `logp[:, 0]` belong to?",
        "To the second one: targets are `tokens[:, 1:]`.",
        "The mask belongs to tokens, so it loses its first column, too.",
    ),
    wrong=(
        Wrong(
            "keeps the bug",
            says="not shifted along",
            old="keep = mask[:, 1:]",
            new="keep = mask[:, :-1]",
        ),
        Wrong(
            "does not shift at all",
            says="already seen it",
            new="""
def my_sft_loss(logits, tokens, mask):
    logp = logits.log_softmax(-1)
    logp = logp.gather(-1, tokens[:, :, None]).squeeze(-1)
    return -logp[mask].mean()
""",
        ),
        Wrong(
            "averages over everything",
            says="not over all",
            old="return -logp.masked_select(keep).mean()",
            new="return -(logp * keep).mean()",
        ),
    ),
    judge=judge_shift,
    mutation="12.mask-not-shifted",
)


def judge_reward(answer):
    chosen = torch.tensor([1.2, 0.3, -2.0], dtype=torch.float64)
    rejected = torch.tensor([0.7, 0.9, 1.0], dtype=torch.float64)
    margin = torch.tensor([0.5, 0.0, 0.2], dtype=torch.float64)
    log = torch.nn.functional.logsigmoid
    gap = chosen - rejected
    same(
        call(answer, chosen, rejected, margin),
        bradley_terry_loss(chosen, rejected, margin=margin),
        {
            "a margin is what must be exceeded: subtract it": (
                -log(gap + margin).mean()
            ),
            "the chosen answer should win, not the rejected one": (
                -log(margin - gap).mean()
            ),
            "average over the pairs": -log(gap - margin).sum(),
            "the margin is missing": -log(gap).mean(),
        },
        "the loss",
    )
    far = torch.tensor([-2000.0], dtype=torch.float64)
    none = torch.zeros(1, dtype=torch.float64)
    same(
        call(answer, far, none, none),
        bradley_terry_loss(far, none, margin=none),
        {
            "the sigmoid of -2000 rounds to 0 and its logarithm is infinite: "
            "use logsigmoid": torch.tensor(math.inf, dtype=torch.float64),
        },
        "a pair that is 2000 apart the wrong way",
    )


REWARD = Exercise(
    id="12.3",
    title="Learn to compare",
    difficulty=2,
    minutes=7,
    task="""\
Rewards of the chosen and the rejected answers `[b]`, and a margin for each pair
`[b]`. Return the mean Bradley-Terry loss, finite also for hopeless pairs.""",
    checks="fp64 equality with `dsarch.post.reward.bradley_terry_loss`, which "
    "the tests hold equal to TRL",
    name="compare",
    skeleton="""
def compare(chosen, rejected, margin):
    gap = ...
    return ...
""",
    solution="""
def compare(chosen, rejected, margin):
    gap = chosen - rejected - margin
    return -logsigmoid(gap).mean()
""",
    hints=(
        "The probability that the chosen one wins is a sigmoid of a gap.",
        "A margin asks for more: the gap has to exceed it.",
        "`-logsigmoid(chosen - rejected - margin).mean()`.",
    ),
    wrong=(
        Wrong(
            "adds the margin",
            says="subtract it",
            old="rejected - margin",
            new="rejected + margin",
        ),
        Wrong(
            "lets the rejected one win",
            says="should win",
            old="-logsigmoid(gap)",
            new="-logsigmoid(-gap)",
        ),
        Wrong(
            "takes the logarithm of a sigmoid",
            says="rounds to 0",
            old="logsigmoid(gap)",
            new="gap.sigmoid().log()",
        ),
    ),
    judge=judge_reward,
    mutation="12.margin-added",
)


def judge_gae(answer):
    generator = torch.Generator().manual_seed(4)
    rewards, values = torch.randn(2, 6, generator=generator).double()
    every = torch.ones(1, 6, dtype=torch.bool)
    want, returns = gae(rewards[None], values[None], every, lam=0.9)
    lost = gae(rewards[None], values[None], every, lam=1.0)
    ended = rewards.clone()
    ended[-1] += values[-1]
    beyond = gae(ended[None], values[None], every, lam=0.9)
    short = gae(rewards[None], values[None], every, lam=0.0)
    same(
        call(answer, rewards, values, 0.9),
        (want[0], returns[0]),
        {
            "lambda has no effect: it weighs the advantage that follows": (
                lost[0][0],
                lost[1][0],
            ),
            "nothing is worth anything after the last token": (
                beyond[0][0],
                beyond[0][0] + values,
            ),
            "the surprises that follow are missing": (
                short[0][0],
                short[1][0],
            ),
            "returns are advantages plus values": (want[0], want[0]),
        },
        "advantages and returns",
    )


GAE = Exercise(
    id="12.4",
    title="Who earned it?",
    difficulty=3,
    minutes=12,
    task="""\
`rewards` and `values` `[t]` of one answer. Return its advantages and returns
`[t]` for $\\gamma = 1$.""",
    checks="fp64 equality with `dsarch.post.ppo.gae`",
    name="earned",
    skeleton="""
def earned(rewards, values, lam):
    found, after, carried = [], 0.0, 0.0
    for reward, value in zip(rewards.flip(0), values.flip(0)):
        found.append(...)
    advantages = torch.stack(found[::-1])
    return advantages, ...
""",
    solution="""
def earned(rewards, values, lam):
    found, after, carried = [], 0.0, 0.0
    for reward, value in zip(rewards.flip(0), values.flip(0)):
        delta = reward + after - value
        carried = delta + lam * carried
        after = value
        found.append(carried)
    advantages = torch.stack(found[::-1])
    return advantages, advantages + values
""",
    hints=(
        "From the back: which two numbers does a token need from the next?",
        "The next value for its surprise, the next advantage for the sum.",
        "`carried = reward + after - value + lam * carried`, then "
        "`after = value`.",
    ),
    wrong=(
        Wrong(
            "forgets lambda",
            says="no effect",
            old="lam * carried",
            new="carried",
        ),
        Wrong(
            "hopes for more after the end",
            says="after the last token",
            old="found, after, carried = [], 0.0, 0.0",
            new="found, after, carried = [], values[-1], 0.0",
        ),
        Wrong(
            "takes single surprises",
            says="that follow are missing",
            old="carried = delta + lam * carried",
            new="carried = delta",
        ),
    ),
    judge=judge_gae,
    mutation="12.lambda-on-the-error",
)


def judge_pass(answer):
    for n, c, k in ((8, 2, 4), (16, 1, 8), (5, 0, 3), (6, 5, 2)):
        same(
            call(answer, n, c, k),
            pass_at_k(n, c, k),
            {
                "samples are drawn without putting back: count subsets": (
                    1 - (1 - c / n) ** k
                ),
                "that is the chance that all are wrong": (
                    math.comb(n - c, k) / math.comb(n, k)
                ),
                "pass@1 is the mean; k samples have k chances": c / n,
            },
            f"pass@{k} with {c} of {n} right",
        )


PASS = Exercise(
    id="12.5",
    title="At least one of k",
    difficulty=1,
    minutes=5,
    task="""\
`c` of `n` samples were right. Return the unbiased estimate of pass@`k`.""",
    checks="`dsarch.post.reward.pass_at_k`, which the tests hold equal to a "
    "count over all subsets",
    name="at_least_one",
    skeleton="""
def at_least_one(n, c, k):
    return ...
""",
    solution="""
def at_least_one(n, c, k):
    return 1 - math.comb(n - c, k) / math.comb(n, k)
""",
    hints=(
        "In how many ways can k samples be taken from n?",
        "In how many of them is none right?",
        "`math.comb(n - c, k)` of `math.comb(n, k)`.",
    ),
    wrong=(
        Wrong(
            "puts samples back",
            says="without putting back",
            old="math.comb(n - c, k) / math.comb(n, k)",
            new="(1 - c / n) ** k",
        ),
        Wrong(
            "forgets the complement",
            says="all are wrong",
            old="1 - math.comb",
            new="math.comb",
        ),
    ),
    judge=judge_pass,
)


def judge_weight(answer):
    generator = torch.Generator().manual_seed(7)
    four = 5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    leaves = [row.clone().requires_grad_() for row in four]
    beta = 0.3
    loss = dpo_loss(*leaves, beta=beta)
    slope = -torch.autograd.grad(loss, leaves[0])[0] * 6
    margin = beta * (four[0] - four[2] - four[1] + four[3])
    same(
        call(answer, *four, beta),
        slope,
        {
            "wrong pairs pull hardest: sigmoid of minus the margin": (
                beta * margin.sigmoid()
            ),
            "the slope has a factor beta": (-margin).sigmoid(),
            "the reference is forgotten": (
                beta * (-beta * (four[0] - four[1])).sigmoid()
            ),
        },
        "the weights",
    )


WEIGHT = Exercise(
    id="12.6",
    title="How hard does a pair pull?",
    difficulty=3,
    minutes=10,
    task="""\
From the four sums `[b]` return, for each pair, the weight with which DPO pushes
its chosen answer up: minus the slope of that pair's loss.""",
    checks="the gradient of `dsarch.post.dpo.dpo_loss` by automatic "
    "differentiation",
    name="pull",
    skeleton="""
def pull(policy_c, policy_r, ref_c, ref_r, beta):
    margin = ...
    return ...
""",
    solution="""
def pull(policy_c, policy_r, ref_c, ref_r, beta):
    margin = beta * ((policy_c - ref_c) - (policy_r - ref_r))
    return beta * (-margin).sigmoid()
""",
    hints=(
        "What is the derivative of $-\\log\\sigma(x)$?",
        "It is $-\\sigma(-x)$, and $x = \\beta\\Delta$ brings another factor.",
        "`beta * (-margin).sigmoid()`.",
    ),
    wrong=(
        Wrong(
            "pulls right pairs hardest",
            says="wrong pairs pull hardest",
            old="(-margin).sigmoid()",
            new="margin.sigmoid()",
        ),
        Wrong(
            "loses beta",
            says="a factor beta",
            old="return beta * ",
            new="return ",
        ),
        Wrong(
            "forgets the reference",
            says="reference is forgotten",
            old="((policy_c - ref_c) - (policy_r - ref_r))",
            new="(policy_c - policy_r)",
        ),
    ),
    judge=judge_weight,
    mutation="12.reference-forgotten",
)


def judge_dpo(answer):
    (pc, pr, rc, rr), (tc, tr), (mc, mr) = texts()
    chosen, rejected = (pc, rc, tc, mc), (pr, rr, tr, mr)

    def four(score):
        return [
            score(text[model], text[2], text[3])
            for model in (0, 1)
            for text in (chosen, rejected)
        ]

    def summed(logits, tokens, mask):
        return sequence_logprobs(token_logprobs(logits, tokens), shift(mask))[0]

    def mean(logits, tokens, mask):
        return summed(logits, tokens, mask) / shift(mask).sum(1)

    def early(logits, tokens, mask):
        return sequence_logprobs(token_logprobs(logits, tokens), mask[:, :-1])[
            0
        ]

    def whole(logits, tokens, mask):
        return token_logprobs(logits, tokens).sum(1)

    same(
        call(answer, chosen, rejected, 0.2),
        dpo_loss(*four(summed), beta=0.2),
        {
            "DPO takes sums over an answer, not means": dpo_loss(
                *four(mean), beta=0.2
            ),
            "the mask is not shifted along with the targets": dpo_loss(
                *four(early), beta=0.2
            ),
            "only the answer counts, not the prompt": dpo_loss(
                *four(whole), beta=0.2
            ),
            "chosen and rejected are exchanged": dpo_loss(
                *(four(summed)[i] for i in (1, 0, 3, 2)), beta=0.2
            ),
        },
        "the loss",
    )


OWN = Exercise(
    id="12.7",
    title="Your DPO against TRL's",
    difficulty=4,
    minutes=20,
    task="""\
From logits to loss. `chosen` and `rejected` are each
`(policy_logits, ref_logits, tokens, mask)`; the mask is true on the answer.
Return DPO's loss. The functions above may help.""",
    checks="equality with `dsarch.post.dpo.dpo_loss` on answers of unequal "
    "length; the tests hold it equal to TRL 1.16.0 with gradients",
    name="my_dpo",
    skeleton="""
def my_dpo(chosen, rejected, beta):
    def gain(policy, reference, tokens, mask):
        target, keep = ..., ...
        return ...  # [b], the sum of policy minus reference

    margin = ...
    return ...
""",
    solution="""
def my_dpo(chosen, rejected, beta):
    def gain(policy, reference, tokens, mask):
        target, keep = tokens[:, 1:, None], mask[:, 1:]
        new, old = (
            z[:, :-1].log_softmax(-1).gather(-1, target).squeeze(-1)
            for z in (policy, reference)
        )
        return (keep * (new - old)).sum(1)

    margin = beta * (gain(*chosen) - gain(*rejected))
    return -logsigmoid(margin).mean()
""",
    hints=(
        "Three steps: log-probability of each token, sum over the answer, "
        "difference of differences.",
        "Logits lose their last place, tokens and mask their first.",
        "`(keep * (new - old)).sum(1)` is $h$; the loss is "
        "`-logsigmoid(beta * (h_c - h_r)).mean()`.",
    ),
    wrong=(
        Wrong(
            "takes means",
            says="not means",
            old="(keep * (new - old)).sum(1)",
            new="(keep * (new - old)).sum(1) / keep.sum(1)",
        ),
        Wrong(
            "leaves the mask where it is",
            says="not shifted along",
            old="mask[:, 1:]",
            new="mask[:, :-1]",
        ),
        Wrong(
            "scores the prompt",
            says="not the prompt",
            old="(keep * (new - old)).sum(1)",
            new="(new - old).sum(1)",
        ),
        Wrong(
            "exchanges the two",
            says="exchanged",
            old="gain(*chosen) - gain(*rejected)",
            new="gain(*rejected) - gain(*chosen)",
        ),
    ),
    judge=judge_dpo,
    mutation="12.beta-outside",
)

EXERCISES = [MASK, SHIFT, REWARD, GAE, PASS, WEIGHT, OWN]
