"""Exercises of chapter 13: what a student can learn from a teacher."""

import torch

from dsarch.post import distill
from dsarch.post.loop import Batch, curate
from dsarch.post.rollout import Rollout
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, agree, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
"""


def draws(*shape, scale=2.0):
    """Logits in fp64 that differ in every entry."""
    return scale * torch.randn(*shape, dtype=torch.float64)


def judge_soften(answer):
    logits = draws(3, 7)
    want = (logits / 3.0).softmax(-1)
    same(
        call(answer, logits, 3.0),
        want,
        {
            "a high temperature must flatten: divide the logits": (
                (logits * 3.0).softmax(-1)
            ),
            "the temperature divides the logits, not the probabilities": (
                logits.softmax(-1) / 3.0
            ),
            "this is the distribution at temperature 1": logits.softmax(-1),
            "normalise over the vocabulary, the last axis": (
                (logits / 3.0).softmax(0)
            ),
        },
        "the soft targets",
    )
    large = torch.tensor([3000.0, 2997.0], dtype=torch.float64)
    got = call(answer, large, 3.0)
    if not agree(got, (large / 3.0).softmax(-1)):
        raise Mistake(
            "logits of 3000 overflow: exponentiate differences to the "
            "largest logit, or leave that to softmax"
        )


SOFTEN = Exercise(
    id="13.1",
    title="Soft targets",
    difficulty=1,
    minutes=5,
    task="""\
Turn logits `[..., w]` into the probabilities at a temperature. They must also
stand for logits in the thousands.""",
    checks="fp64 equality at T = 3, then logits of 3000",
    name="soften",
    skeleton="""
def soften(logits, temperature):
    return ...
""",
    solution="""
def soften(logits, temperature):
    return (logits / temperature).softmax(-1)
""",
    hints=(
        "The temperature acts before the exponential.",
        "$e^{z/T}$ overflows for large $z$; only differences matter.",
        "`softmax(-1)` of `logits / temperature` subtracts the maximum.",
    ),
    wrong=(
        Wrong(
            "multiplies by the temperature",
            says="must flatten",
            old="logits / temperature",
            new="logits * temperature",
        ),
        Wrong(
            "divides the probabilities",
            says="not the probabilities",
            old="(logits / temperature).softmax(-1)",
            new="logits.softmax(-1) / temperature",
        ),
        Wrong(
            "exponentiates at once",
            says="overflow",
            new="""
def soften(logits, temperature):
    e = (logits / temperature).exp()
    return e / e.sum(-1, keepdim=True)
""",
        ),
    ),
    judge=judge_soften,
)


def judge_kl(answer):
    zero = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    wide = torch.tensor([0.7, 0.1, 0.2, 0.0], dtype=torch.float64)
    p = draws(5, 6).log_softmax(-1)
    q = draws(5, 6).log_softmax(-1)
    want = distill.divergence(p, q)
    same(
        call(answer, p, q),
        want,
        {
            "the first argument weighs the terms": distill.divergence(q, p),
            "sum over the vocabulary: a mean depends on its size": want / 6,
            "one number for each position, not one for all": want.sum(),
        },
        "the divergence",
    )
    same(
        call(answer, zero.log(), wide.log()),
        distill.divergence(zero.log(), wide.log()),
        what="where p is 0 a term adds 0 and never NaN; the result",
    )


KL = Exercise(
    id="13.2",
    title="A divergence that survives zeros",
    difficulty=2,
    minutes=8,
    task="""\
$KL(p\\,\\|\\,q)$ for each position, from log-probabilities `[..., w]`. A masked
vocabulary entry has probability 0 and log-probability $-\\infty$; it must add
nothing.""",
    checks="fp64 equality with `dsarch.post.distill.divergence`, once with "
    "entries that both distributions forbid",
    name="kl",
    skeleton="""
def kl(log_p, log_q):
    p = log_p.exp()
    terms = ...
    return ...
""",
    solution="""
def kl(log_p, log_q):
    p = log_p.exp()
    terms = p * (log_p - log_q).masked_fill(p == 0, 0.0)
    return terms.sum(-1)
""",
    hints=(
        "What is $0 \\cdot \\log 0$ in the definition, and what in a computer?",
        "$-\\infty - (-\\infty)$ is NaN, and NaN times 0 is NaN.",
        "Replace the difference by 0 with `masked_fill(p == 0, 0.0)` before "
        "you multiply.",
    ),
    wrong=(
        Wrong(
            "multiplies infinity by zero",
            says="never NaN",
            old=".masked_fill(p == 0, 0.0)",
            new="",
        ),
        Wrong(
            "weighs by q",
            says="the first argument weighs",
            new="""
def kl(log_p, log_q):
    q = log_q.exp()
    return (q * (log_q - log_p).masked_fill(q == 0, 0.0)).sum(-1)
""",
        ),
        Wrong(
            "averages over the vocabulary",
            says="depends on its size",
            old="terms.sum(-1)",
            new="terms.mean(-1)",
        ),
    ),
    judge=judge_kl,
)


def judge_gradient(answer):
    teacher, student = draws(9), draws(9).requires_grad_()
    loss = distill.kd_loss(student, teacher, temperature=2.5)
    (want,) = torch.autograd.grad(loss, student)
    p, q = (x.detach().div(2.5).softmax(-1) for x in (teacher, student))
    same(
        call(answer, student.detach(), teacher, 2.5),
        want,
        {
            "this is the gradient without the factor T²": (q - p) / 2.5,
            "the chain rule divides by T once: T² / T remains": q - p,
            "this points uphill for the teacher: the gradient is positive "
            "where the student says too much": 2.5 * (p - q),
            "soften both before you subtract": (
                2.5 * (student.detach().softmax(-1) - teacher.softmax(-1))
            ),
        },
        "the gradient",
    )


GRADIENT = Exercise(
    id="13.3",
    title="What the loss does to a logit",
    difficulty=2,
    minutes=10,
    task="""\
The gradient of Hinton's loss $T^2\\,KL(p\\,\\|\\,q)$ for the student's logits
`[w]` at one position, in closed form: no autograd.""",
    checks="what autograd finds for `dsarch.post.distill.kd_loss` at T = 2.5",
    name="kd_gradient",
    skeleton="""
def kd_gradient(student, teacher, temperature):
    p = ...  # softened teacher
    q = ...  # softened student
    return ...
""",
    solution="""
def kd_gradient(student, teacher, temperature):
    p = (teacher / temperature).softmax(-1)
    q = (student / temperature).softmax(-1)
    return temperature * (q - p)
""",
    hints=(
        "At T = 1 it is the gradient of cross-entropy with soft labels.",
        "That is $q - p$; at other temperatures the chain rule adds $1/T$.",
        "$T^2 \\cdot \\frac1T\\,(q - p)$.",
    ),
    wrong=(
        Wrong(
            "forgets the factor",
            says="without the factor",
            old="temperature * (q - p)",
            new="(q - p) / temperature",
        ),
        Wrong(
            "forgets the chain rule",
            says="T² / T remains",
            old="temperature * (q - p)",
            new="q - p",
        ),
        Wrong(
            "has the other sign",
            says="says too much",
            old="(q - p)",
            new="(p - q)",
        ),
    ),
    judge=judge_gradient,
)


def judge_layers(answer):
    cases = [(4, 12), (3, 8), (5, 5), (1, 6), (3, 61)]
    want = [distill.layer_map(*case) for case in cases]
    planted = [[j * big // small for j in range(small)] for small, big in cases]
    got = [call(answer, *case) for case in cases]
    if agree(got, planted):
        raise Unsolved
    same(
        got,
        want,
        {
            "the last layer is there, but the others should be spread "
            "evenly over the whole depth": [
                list(range(big - small, big)) for small, big in cases
            ],
            "layers are numbered from 0": [
                [layer + 1 for layer in row] for row in want
            ],
        },
        "the layers for 4 of 12, 3 of 8, 5 of 5, 1 of 6 and 3 of 61",
    )


LAYERS = Exercise(
    id="13.4",
    title="Find the bug: the layer that the head expects",
    difficulty=2,
    minutes=6,
    task="""\
A student starts from every $k$-th layer of its teacher, and its first loss is
far worse than that of a colleague who wrote the same thing. Which teacher layer
does the student's last layer come from? Mend the map so that the last stands
for the last.""",
    checks="equality with `dsarch.post.distill.layer_map` for five pairs of "
    "depths, uneven ones among them",
    name="layers_of",
    skeleton="""
def layers_of(student, teacher):
    return [j * teacher // student for j in range(student)]
""",
    solution="""
def layers_of(student, teacher):
    return [(j + 1) * teacher // student - 1 for j in range(student)]
""",
    hints=(
        "Print the map for 4 of 12.",
        "It has to end with 11, the layer that the output head reads.",
        "Map the *end* of each block: $(j+1) L_t / L_s$, rounded down, "
        "minus one.",
    ),
    wrong=(
        Wrong(
            "takes the last layers only",
            says="spread evenly",
            new="""
def layers_of(student, teacher):
    return list(range(teacher - student, teacher))
""",
        ),
        Wrong(
            "counts from one",
            says="numbered from 0",
            old="// student - 1",
            new="// student",
        ),
    ),
    judge=judge_layers,
    mutation="13.layers-from-the-front",
)


def rows_kept(samples, rewards, most):
    """The texts that the package keeps of each question."""
    tokens = torch.tensor([[ord(c) for c in s] for row in samples for s in row])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    made = Rollout(tokens, mask, torch.zeros(len(tokens), tokens.size(1) - 1))
    earned = torch.tensor(rewards, dtype=torch.float64)
    kept, _ = curate(Batch(made, earned), most)
    return ["".join(map(chr, row)) for row in kept.tolist()]


def judge_curate(answer):
    samples = [
        ["2+2=4", "2+2=5", "2+2=4", "4=2+2", "2*2=4"],
        ["1+1=3", "1+1=1", "1+1=0", "1+1=9", "1+1=8"],
        ["3+1=4", "4=3+1", "1+3=4", "4=1+3", "3+1=4"],
    ]
    rewards = [
        [1.0, 0.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 1.0, 1.0],
    ]
    want = rows_kept(samples, rewards, 2)
    right = [
        [s for s, r in zip(*pair, strict=True) if r >= 1]
        for pair in zip(samples, rewards, strict=True)
    ]
    once = [list(dict.fromkeys(row)) for row in right]
    same(
        call(answer, samples, rewards, 2),
        want,
        {
            "wrong answers are kept too": [s for r in samples for s in r[:2]],
            "a text that was sampled twice teaches twice: keep it once": [
                s for row in right for s in row[:2]
            ],
            "easy questions fill the data: stop at `most` for each": [
                s for row in once for s in row
            ],
            "the limit is for each question, not for all": once[0][:2],
        },
        "the texts",
    )


CURATE = Exercise(
    id="13.5",
    title="R1's filter",
    difficulty=3,
    minutes=10,
    task="""\
Rejection sampling: `samples[i]` are the texts sampled for question `i`,
`rewards[i]` their rewards. Return one list of the texts to fine-tune on: only
right ones (reward 1), none twice, at most `most` for a question, in order.""",
    checks="the rows that `dsarch.post.loop.curate` keeps for three "
    "questions, one of them without a right answer",
    name="keep_right",
    skeleton="""
def keep_right(samples, rewards, most):
    kept = []
    for texts, earned in zip(samples, rewards, strict=True):
        good = ...
        kept += good
    return kept
""",
    solution="""
def keep_right(samples, rewards, most):
    kept = []
    for texts, earned in zip(samples, rewards, strict=True):
        pairs = zip(texts, earned, strict=True)
        good = list(dict.fromkeys(t for t, r in pairs if r >= 1))
        kept += good[:most]
    return kept
""",
    hints=(
        "Three conditions; in which order do they have to be applied?",
        "First what is right, then what is new, then how many.",
        "`dict.fromkeys` removes repetitions and keeps the order.",
    ),
    wrong=(
        Wrong(
            "keeps repetitions",
            says="teaches twice",
            old="list(dict.fromkeys(t for t, r in pairs if r >= 1))",
            new="[t for t, r in pairs if r >= 1]",
        ),
        Wrong(
            "has no limit",
            says="easy questions",
            old="good[:most]",
            new="good",
        ),
        Wrong(
            "keeps wrong answers",
            says="wrong answers",
            new="""
def keep_right(samples, rewards, most):
    return [text for texts in samples for text in texts[:most]]
""",
        ),
    ),
    judge=judge_curate,
)


def judge_mixed(answer):
    student, teacher = draws(2, 6, 8), draws(2, 6, 8)
    tokens = torch.randint(8, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()

    def loss(mask, temperature=2.0, weight=0.3, swap=False):
        pair = (teacher, student) if swap else (student, teacher)
        return distill.mixed_loss(
            *pair, tokens, mask, temperature=temperature, weight=weight
        )

    want = loss(mask)
    hard = distill.sft_loss(student, tokens, mask)
    soft = (want - 0.7 * hard) / 0.3
    same(
        call(answer, student, teacher, tokens, mask, 2.0, 0.3),
        want,
        {
            "the weight belongs to the soft term": 0.3 * hard + 0.7 * soft,
            "the soft term has lost its T²": 0.7 * hard + 0.3 * soft / 4,
            "the prompt and the padding are not trained: use the mask": loss(
                torch.ones_like(mask)
            ),
            "position j predicts token j + 1: the mask belongs to the "
            "targets": loss(mask.roll(1, 1)),
        },
        "the loss",
    )


MIXED = Exercise(
    id="13.6",
    title="Labels and teacher in one loss",
    difficulty=3,
    minutes=15,
    task="""\
$(1-\\lambda)\\,CE + \\lambda\\,T^2 KL(p\\,\\|\\,q)$ on `[b, t, w]` logits.
`mask` `[b, t]` marks the trained *tokens*; both terms are means over the same
targets. Remember which logit predicts which token.""",
    checks="fp64 equality with `dsarch.post.distill.mixed_loss`, whose two "
    "terms the tests hold equal to torch",
    name="two_terms",
    skeleton="""
def two_terms(student, teacher, tokens, mask, temperature, weight):
    target, m = tokens[:, 1:], mask[:, 1:]
    logp = student[:, :-1].log_softmax(-1)
    hard = ...
    soft = ...
    return (1 - weight) * hard + weight * soft
""",
    solution="""
def two_terms(student, teacher, tokens, mask, temperature, weight):
    target, m = tokens[:, 1:], mask[:, 1:]
    logp = student[:, :-1].log_softmax(-1)
    hard = -logp.gather(-1, target[..., None]).squeeze(-1)[m].mean()
    log_q = (student[:, :-1] / temperature).log_softmax(-1)
    log_p = (teacher[:, :-1] / temperature).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    soft = temperature**2 * kl[m].mean()
    return (1 - weight) * hard + weight * soft
""",
    hints=(
        "The last logit predicts nothing, and nothing predicts the first "
        "token.",
        "Cut the logits with `[:, :-1]`, targets and mask with `[:, 1:]`.",
        "Sum the KL over the vocabulary, take the mean over `m`, multiply "
        "by $T^2$.",
    ),
    wrong=(
        Wrong(
            "swaps the weights",
            says="belongs to the soft term",
            old="(1 - weight) * hard + weight * soft",
            new="weight * hard + (1 - weight) * soft",
        ),
        Wrong(
            "forgets the factor",
            says="lost its T²",
            old="temperature**2 * kl[m].mean()",
            new="kl[m].mean()",
        ),
        Wrong(
            "trains everything",
            says="not trained",
            old="tokens[:, 1:], mask[:, 1:]",
            new="tokens[:, 1:], torch.ones_like(mask[:, 1:])",
        ),
        Wrong(
            "uses the mask of the inputs",
            says="belongs to the targets",
            old="tokens[:, 1:], mask[:, 1:]",
            new="tokens[:, 1:], mask[:, :-1]",
        ),
    ),
    judge=judge_mixed,
)


def judge_gkd(answer):
    student, teacher = draws(2, 5, 7), draws(2, 5, 7)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()

    def value(beta, mask=mask[:, 1:], swap=False):
        pair = (teacher, student) if swap else (student, teacher)
        return distill.jsd_loss(
            *(x[:, :-1] for x in pair), beta=beta, temperature=1.7, mask=mask
        )

    zero = student.new_tensor(0.0)
    for beta in (0.3, 0.0, 1.0):
        wrong = {
            "the mixture and its weights are swapped: beta belongs to the "
            "teacher": value(1 - beta),
            "a mean over the unmasked targets: prompt and padding do not "
            "count": value(beta, mask=None),
        }
        if beta in (0.0, 1.0):
            wrong |= {
                f"at beta = {beta:g} the formula is 0: that end is a plain "
                "divergence by definition": zero
            }
        same(
            call(answer, student, teacher, mask, beta, 1.7),
            value(beta),
            wrong,
            f"at beta = {beta:g} the loss",
        )


GKD = Exercise(
    id="13.7",
    title="Your loss against GKD's",
    difficulty=4,
    minutes=20,
    task="""\
The whole loss of generalised knowledge distillation: both logits divided by the
temperature, shifted against `mask` `[b, t]` of the trained tokens, then
$\\beta KL(p\\|M) + (1-\\beta) KL(q\\|M)$ with $M = \\beta p + (1-\\beta) q$;
the teacher is $p$. At $\\beta = 0$ it is $KL(p\\|q)$, at 1 it is $KL(q\\|p)$.
No $T^2$.""",
    checks="your code equals `dsarch.post.distill.jsd_loss` at three values "
    "of beta; the tests hold that function and its gradients equal to "
    "`generalized_jsd_loss` of TRL 1.16",
    name="my_gkd",
    skeleton="""
def my_gkd(student, teacher, mask, beta, temperature):
    log_q = ...
    log_p = ...

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)[mask[:, 1:]].mean()

    # first the two ends
    log_m = ...
    return ...
""",
    solution="""
def my_gkd(student, teacher, mask, beta, temperature):
    log_q = (student[:, :-1] / temperature).log_softmax(-1)
    log_p = (teacher[:, :-1] / temperature).log_softmax(-1)

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)[mask[:, 1:]].mean()

    if beta in (0, 1):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    log_m = torch.logaddexp(
        log_p + math.log(beta), log_q + math.log(1 - beta)
    )
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
""",
    hints=(
        "Four parts: soften and shift, the two ends, the mixture, the sum.",
        "The mixture in log space is "
        "`torch.logaddexp(log_p + log β, log_q + log(1 − β))`.",
        "Test for `beta == 0` and `beta == 1` before the logarithms.",
    ),
    wrong=(
        Wrong(
            "swaps the weights",
            says="beta belongs to the teacher",
            new="""
def my_gkd(student, teacher, mask, beta, temperature):
    log_p = (student[:, :-1] / temperature).log_softmax(-1)
    log_q = (teacher[:, :-1] / temperature).log_softmax(-1)

    def kl(log_a, log_b):
        return (log_a.exp() * (log_a - log_b)).sum(-1)[mask[:, 1:]].mean()

    log_m = torch.logaddexp(
        log_p + math.log(beta), log_q + math.log(1 - beta)
    )
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
""",
        ),
        Wrong(
            "has no ends",
            says="a plain divergence",
            old="    if beta in (0, 1):\n"
            "        return kl(log_q, log_p) if beta else kl(log_p, log_q)\n",
            new="    if beta in (0, 1):\n        return 0 * kl(log_p, log_q)\n",
        ),
        Wrong(
            "counts everything",
            says="do not count",
            old="[mask[:, 1:]].mean()",
            new=".mean()",
        ),
    ),
    judge=judge_gkd,
)

EXERCISES = [SOFTEN, KL, GRADIENT, LAYERS, CURATE, MIXED, GKD]
