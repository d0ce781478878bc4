"""Exercises of chapter 7: multi-token prediction and speculation."""

from types import SimpleNamespace

import torch

from dsarch.analysis.speculation import expected_tokens, speedup
from dsarch.block import Block
from dsarch.config import Config
from dsarch.layers import causal_mask, positions
from dsarch.model import DeepSeek
from dsarch.mtp import advance, mtp_losses, nll
from dsarch.rope import phases
from dsarch.sampling import residual
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, agree, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import torch

from dsarch.mtp import nll
"""

SMALL = Config(
    vocab_size=31,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    q_lora_rank=20,
    n_routed_experts=8,
    initializer_range=0.2,
)


def judge_tokens(answer):
    chances = [0.9, 0.5, 0.4]
    drafted = 0.9 + 0.9 * 0.5 + 0.9 * 0.5 * 0.4
    mean = sum(chances) / 3
    same(
        call(answer, chances),
        expected_tokens(chances),
        {
            "every pass gives one token of its own: add 1": drafted,
            "a draft counts only if all before it were kept: multiply the "
            "chances up": 1 + sum(chances),
            "the closed formula needs one chance for all places": (
                (1 - mean**4) / (1 - mean)
            ),
            "rounds with some refusals count too, not only full ones": (
                1 + 3 * 0.9 * 0.5 * 0.4
            ),
        },
        "the expected tokens of a pass",
    )
    same(call(answer, []), 1.0, what="without drafts")


TOKENS = Exercise(
    id="07.1",
    title="What a pass yields",
    difficulty=1,
    minutes=6,
    task="""\
`chances[j]` is the chance that draft `j + 1` is kept, given that all before it
were. Return the expected number of tokens of one pass, its own token
included.""",
    checks="three unequal chances and none against "
    "`dsarch.analysis.speculation.expected_tokens`",
    name="tokens_of_a_pass",
    skeleton="""
def tokens_of_a_pass(chances):
    total = ...
    for chance in chances:
        ...
    return total
""",
    solution="""
def tokens_of_a_pass(chances):
    total = kept = 1.0
    for chance in chances:
        kept *= chance
        total += kept
    return total
""",
    hints=(
        "When does the third draft become a token?",
        "Only if the first, the second and the third are kept: the product "
        "of three chances.",
        "Add up 1, then the running product after each chance.",
    ),
    wrong=(
        Wrong(
            "forgets the model's own token",
            says="add 1",
            old="return total",
            new="return total - 1",
        ),
        Wrong(
            "adds the chances",
            says="multiply the",
            old="        kept *= chance\n        total += kept\n",
            new="        total += chance\n",
        ),
        Wrong(
            "uses the closed formula with a mean",
            says="one chance for all places",
            new="""
def tokens_of_a_pass(chances):
    k = len(chances)
    mean = sum(chances) / max(k, 1)
    return (1 - mean ** (k + 1)) / (1 - mean)
""",
        ),
    ),
    judge=judge_tokens,
)


def judge_shifts(answer):
    tokens = torch.arange(100, 220).view(2, 60)[:, :12]
    for depth in (1, 2, 3):
        got = call(answer, tokens, depth)
        if not isinstance(got, tuple) or len(got) != 3:
            raise Mistake("return the number of states, inputs and targets")
        want = (11 - depth, tokens[:, depth:-1], tokens[:, depth + 1 :])
        same(
            got,
            want,
            {
                "state i already knows token i; the input is token i + k": (
                    want[0],
                    tokens[:, depth - 1 : -2],
                    want[2],
                ),
                "the target is one token after the input, not the input": (
                    want[0],
                    want[1],
                    want[1],
                ),
                "the last state has no target at this depth: T - k states": (
                    11,
                    want[1],
                    want[2],
                ),
            },
            f"the windows of depth {depth}",
        )


SHIFTS = Exercise(
    id="07.2",
    title="Which token where",
    difficulty=2,
    minutes=8,
    task="""\
`tokens` `[b, T + 1]` are a text; the model has seen the first `T` and has `T`
states. Module `depth` joins state $i$ with token $t_{i+k}$ and predicts
$t_{i+k+1}$, with $k$ the depth. Return how many states it can use, the tokens
that it reads, and its targets.""",
    checks="depths 1 to 3 on two rows of 12 different tokens",
    name="windows",
    skeleton="""
def windows(tokens, depth):
    states = ...
    read = ...
    target = ...
    return states, read, target
""",
    solution="""
def windows(tokens, depth):
    states = tokens.size(1) - 1 - depth
    read = tokens[:, depth:-1]
    target = tokens[:, depth + 1 :]
    return states, read, target
""",
    hints=(
        "Write a text of five tokens down and mark what position 1 reads at "
        "depth 1.",
        "With indices from 0: state `i` reads token `i + depth` and predicts "
        "the one after it.",
        "Targets start at `depth + 1` and go to the end; the inputs are one "
        "to the left of them.",
    ),
    wrong=(
        Wrong(
            "reads its own token",
            says="already knows token i",
            old="tokens[:, depth:-1]",
            new="tokens[:, depth - 1 : -2]",
        ),
        Wrong(
            "predicts what it reads",
            says="one token after the input",
            old="tokens[:, depth + 1 :]",
            new="tokens[:, depth:-1]",
        ),
        Wrong(
            "uses all states",
            says="T - k states",
            old="tokens.size(1) - 1 - depth",
            new="tokens.size(1) - 1",
        ),
    ),
    judge=judge_shifts,
)


def made():
    """A small model in fp64 whose norms all matter, and a text."""
    net = DeepSeek(SMALL, torch.Generator().manual_seed(1)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, x in net.named_parameters():
            if "norm" in name and x.ndim == 1:
                x.normal_(1.0, 0.3, generator=generator)
    text = torch.randint(31, (2, 10), generator=generator)
    return net.requires_grad_(False), text


def parts(module):
    """The pieces of the MTP layer under the names of the checkpoint."""
    names = "embed_tokens enorm hnorm eh_proj shared_head".split()
    return SimpleNamespace(**{name: getattr(module, name) for name in names})


def judge_merge(answer):
    net, text = made()
    module, hidden = net.mtp[0], net.hidden(text[:, :-1])
    m, known = parts(module), text[:, 1:]
    e, g = m.enorm(m.embed_tokens(known)), m.hnorm(hidden)
    got = call(answer, m, hidden, known)
    if agree(got, m.eh_proj(torch.cat([g, e], -1))):
        raise Unsolved
    same(
        got,
        module.merge(hidden, known),
        {
            "each half has a norm of its own: enorm for the embedding, "
            "hnorm for the state": m.eh_proj(
                torch.cat([m.hnorm(m.embed_tokens(known)), m.enorm(hidden)], -1)
            ),
            "both halves are normed before they are joined": m.eh_proj(
                torch.cat([m.embed_tokens(known), hidden], -1)
            ),
        },
        "the joined states",
    )


MERGE = Exercise(
    id="07.3",
    title="Find the bug: every draft is refused",
    difficulty=2,
    minutes=6,
    task="""\
Written straight from the report, it trains well. With the released weights all
names and shapes fit, nothing fails, and hardly a draft is ever kept. `m` holds
the layer's parts under the checkpoint's names. Mend it.""",
    checks="fp64 equality with `dsarch.MTP.merge`, with norms that are not one",
    name="join",
    skeleton="""
def join(m, hidden, following):
    e = m.enorm(m.embed_tokens(following))
    g = m.hnorm(hidden)
    return m.eh_proj(torch.cat([g, e], -1))
""",
    solution="""
def join(m, hidden, following):
    e = m.enorm(m.embed_tokens(following))
    g = m.hnorm(hidden)
    return m.eh_proj(torch.cat([e, g], -1))
""",
    hints=(
        "Both halves have the same width, so no shape can tell.",
        "Which half comes first in the released weights?",
        "The report prints the state first; the checkpoint expects the "
        "embedding first.",
    ),
    wrong=(
        Wrong(
            "exchanges the norms instead",
            says="a norm of its own",
            new="""
def join(m, hidden, following):
    e = m.hnorm(m.embed_tokens(following))
    g = m.enorm(hidden)
    return m.eh_proj(torch.cat([e, g], -1))
""",
        ),
        Wrong(
            "drops the norms",
            says="both halves are normed",
            new="""
def join(m, hidden, following):
    e = m.embed_tokens(following)
    return m.eh_proj(torch.cat([e, hidden], -1))
""",
        ),
    ),
    judge=judge_merge,
    mutation="07.state-first",
)


def judge_leftover(answer):
    generator = torch.Generator().manual_seed(4)
    p, q = torch.randn(2, 7, generator=generator).double().softmax(-1)
    left = residual(p[None, None], q[None, None])[0, 0]
    want = (torch.minimum(p, q).sum(), left / left.sum())
    gap = (p - q).abs()
    got = call(answer, p, q)
    same(
        got,
        want,
        {
            "after a refusal p itself is not what is left: p - q, cut at 0": (
                want[0],
                p,
            ),
            "what is left must sum to one": (want[0], left),
            "only tokens that p likes better than q: cut p - q at zero": (
                want[0],
                gap / gap.sum(),
            ),
            "the chance is the overlap of p and q, the sum of the smaller "
            "values": ((p * q).sum(), want[1]),
            "the chance of acceptance is averaged over drafts from q": (
                (p / q).clamp(max=1).mean(),
                want[1],
            ),
        },
        "chance and leftover",
    )


LEFTOVER = Exercise(
    id="07.4",
    title="Kept, and what is left",
    difficulty=3,
    minutes=10,
    task="""\
A draft is drawn from `q` `[w]` and kept with probability $\\min(1, p/q)$.
Return the chance that this happens, before the draft is known, and the
distribution from which the replacement is drawn.""",
    checks="fp64 equality with the overlap and `dsarch.sampling.residual` on "
    "seven tokens",
    name="kept_and_left",
    skeleton="""
def kept_and_left(p, q):
    chance = ...
    left = ...
    return chance, left
""",
    solution="""
def kept_and_left(p, q):
    chance = torch.minimum(p, q).sum()
    left = (p - q).clamp(min=0)
    return chance, left / left.sum()
""",
    hints=(
        "Sum over all tokens: the chance to draft it times the chance to "
        "keep it.",
        "$q \\min(1, p/q) = \\min(p, q)$. What does $p$ still lack then?",
        "`torch.minimum(p, q).sum()`, and `(p - q).clamp(min=0)` divided by "
        "its sum.",
    ),
    wrong=(
        Wrong(
            "draws again from p",
            says="p itself is not",
            old="return chance, left / left.sum()",
            new="return chance, p",
        ),
        Wrong(
            "does not normalise",
            says="sum to one",
            old="left / left.sum()",
            new="left",
        ),
        Wrong(
            "takes the distance",
            says="cut p - q at zero",
            old="(p - q).clamp(min=0)",
            new="(p - q).abs()",
        ),
        Wrong(
            "multiplies the distributions",
            says="overlap",
            old="torch.minimum(p, q).sum()",
            new="(p * q).sum()",
        ),
    ),
    judge=judge_leftover,
)


def kept_rows():
    """Uniform numbers and probabilities in which every rule differs."""
    u = torch.tensor([0.1, 0.55, 0.2, 0.3])
    p = torch.tensor([0.3, 0.5, 0.1, 0.4])
    q = torch.tensor([0.2, 0.8, 0.6, 0.4])
    return u, p, q


def judge_kept(answer):
    u, p, q = kept_rows()
    got = call(answer, u, p, q)
    threshold = int((p / q >= 0.7).long().cumprod(0).sum())
    if isinstance(got, int | torch.Tensor) and int(got) == threshold:
        raise Unsolved
    same(
        got,
        2,
        {
            "what stands behind a refused draft is never reached": 3,
            "the ratio is that of the model to the drafter, p / q": 0,
        },
        "the drafts that are kept",
    )
    late = torch.tensor([0.9, 0.0, 0.0, 0.0])
    same(call(answer, late, q / 2, q), 0, what="when the first is refused")


KEPT = Exercise(
    id="07.5",
    title="Find the bug: fast, and no longer the model",
    difficulty=2,
    minutes=8,
    task="""\
Four drafts were made with probabilities `q`, the model gives them `p`, and `u`
are uniform numbers. This decoder writes faster than any other and its text is
slightly off. Mend the rule and return how many drafts are kept.""",
    checks="two rounds in which wrong rules give other counts; "
    "`dsarch.sampling.verify` uses the rule",
    name="kept_drafts",
    skeleton="""
def kept_drafts(u, p, q):
    good = p / q >= 0.7
    return int(good.long().cumprod(0).sum())
""",
    solution="""
def kept_drafts(u, p, q):
    good = u < p / q
    return int(good.long().cumprod(0).sum())
""",
    hints=(
        "Which of the three arguments does the code not use?",
        "A ratio of 0.5 must be kept every second time, not never.",
        "Compare `u` with the ratio; the product of all before stays.",
    ),
    wrong=(
        Wrong(
            "goes on behind a refusal",
            says="never reached",
            old="good.long().cumprod(0).sum()",
            new="good.long().sum()",
        ),
        Wrong(
            "turns the ratio round",
            says="p / q",
            old="u < p / q",
            new="u > p / q",
        ),
    ),
    judge=judge_kept,
    mutation="07.threshold",
)


def judge_speedup(answer):
    args = (0.8, 3, 0.1, 0.05)
    gained = (1 - 0.8**4) / 0.2
    same(
        call(answer, *args),
        speedup(*args),
        {
            "the pass itself costs 1, beside drafts and extra tokens": (
                gained / (3 * 0.15)
            ),
            "a pass over k + 1 tokens has k more than a plain one": (
                gained / (1 + 3 * 0.1 + 4 * 0.05)
            ),
            "each of the k drafts costs": gained / (1 + 0.1 + 3 * 0.05),
            "the pass gives a token of its own: k + 1 powers": (
                (gained - 1) / (1 + 3 * 0.15)
            ),
            "tokens alone are no speed: divide by the time": gained,
        },
        "the speed-up",
    )
    same(call(answer, 0.4, 1, 0.5, 0.5), 1.4 / 2, what="where it does not pay")


SPEEDUP = Exercise(
    id="07.6",
    title="Does it pay?",
    difficulty=3,
    minutes=8,
    task="""\
A draft costs `draft` plain passes, every further token in the verified pass
costs `extra`. Each of `drafts` drafts is kept with chance `chance`. Return how
many times faster than plain decoding this is; below 1 it does not pay.""",
    checks="a case that pays and one that does not against "
    "`dsarch.analysis.speculation.speedup`",
    name="gain",
    skeleton="""
def gain(chance, drafts, draft, extra):
    tokens = ...
    time = ...
    return tokens / time
""",
    solution="""
def gain(chance, drafts, draft, extra):
    tokens = (1 - chance ** (drafts + 1)) / (1 - chance)
    time = 1 + drafts * (draft + extra)
    return tokens / time
""",
    hints=(
        "Count time in plain passes: what does a round consist of?",
        "One pass, `drafts` drafts, and `drafts` tokens more in that pass.",
        "Tokens: the closed formula with `drafts + 1` in the exponent.",
    ),
    wrong=(
        Wrong(
            "forgets the pass",
            says="costs 1",
            old="1 + drafts * (draft + extra)",
            new="drafts * (draft + extra)",
        ),
        Wrong(
            "charges all tokens of the pass",
            says="k more than a plain one",
            old="1 + drafts * (draft + extra)",
            new="1 + drafts * draft + (drafts + 1) * extra",
        ),
        Wrong(
            "forgets the time",
            says="divide by the time",
            old="return tokens / time",
            new="return tokens",
        ),
    ),
    judge=judge_speedup,
)


def layer_of(net):
    """The decoder layer of the MTP module alone, from position 0."""

    def layer(x):
        place = positions(x.size(0), 0, x.size(1))
        mask = causal_mask(place, x.size(1))
        return Block.forward(net.mtp[0], x, phases(SMALL, place), mask)

    return layer


def judge_loss(answer):
    net, text = made()
    module, hidden, layer = net.mtp[0], net.hidden(text[:, :-1]), layer_of(net)
    m, count = parts(module), text.size(1) - 1
    state = advance(module, hidden[:, :-1], text[:, 1:-1])
    head = m.shared_head.head
    each = nll(head(state), text[:, 2:])
    bare = layer(module.merge(hidden[:, :-1], text[:, 1:-1]))
    own = advance(module, hidden[:, :-1], text[:, :-2])
    skipped = nll(head(net.model.norm(bare)), text[:, 2:])
    share = (count - 1) / count
    same(
        call(answer, m, layer, hidden, text),
        mtp_losses(net.mtp, hidden, text)[0],
        {
            "the report divides by T, not by the T - 1 terms": each.mean(),
            "shared_head.norm is missing before the head": (
                nll(head(bare), text[:, 2:]).mean() * share
            ),
            "the final norm is the module's own, not model.norm": (
                skipped.mean() * share
            ),
            "the embedding is that of the next token": (
                nll(head(own), text[:, 2:]).mean() * share
            ),
            "the target is the token after the one that was read": (
                nll(head(state), text[:, 1:-1]).mean() * share
            ),
        },
        "the loss",
    )


LOSS = Exercise(
    id="07.7",
    title="Your module against the official one",
    difficulty=4,
    minutes=20,
    task="""\
The whole loss of depth 1. `hidden` `[b, T, d]` are the model's states, `text`
`[b, T + 1]` its tokens, `m` holds the module's parts under the checkpoint's
names (`shared_head.norm`, `shared_head.head`), `layer(x)` runs its decoder
layer. `nll(logits, target)` gives the loss of every place.""",
    checks="fp64 equality with `dsarch.mtp.mtp_losses` and `dsarch.MTP`; the "
    "tests hold that layer equal to the MTP layer of transformers' deepseek_v3",
    name="my_mtp_loss",
    skeleton="""
def my_mtp_loss(m, layer, hidden, text):
    states = ...  # the states that have a target
    e = ...       # what they are told, normed
    x = ...       # joined: [b, T - 1, d]
    logits = ...  # of the token after next
    target = ...
    return ...
""",
    solution="""
def my_mtp_loss(m, layer, hidden, text):
    states = m.hnorm(hidden[:, :-1])
    e = m.enorm(m.embed_tokens(text[:, 1:-1]))
    x = m.eh_proj(torch.cat([e, states], -1))
    logits = m.shared_head.head(m.shared_head.norm(layer(x)))
    target = text[:, 2:]
    terms = nll(logits, target)
    return terms.sum() / (text.size(0) * hidden.size(1))
""",
    hints=(
        "Four stages: join, layer, norm and head, loss. Which state has no "
        "target?",
        "State i is told token i + 1 and predicts token i + 2, so the last "
        "state is left out.",
        "Divide the sum of `nll` by all `b * T` positions, although only "
        "`T - 1` have a term.",
    ),
    wrong=(
        Wrong(
            "takes the mean over the terms",
            says="divides by T",
            old="terms.sum() / (text.size(0) * hidden.size(1))",
            new="terms.mean()",
        ),
        Wrong(
            "forgets the norm before the head",
            says="shared_head.norm is missing",
            old="m.shared_head.norm(layer(x))",
            new="layer(x)",
        ),
        Wrong(
            "tells the token that the state knows",
            says="that of the next token",
            old="text[:, 1:-1]",
            new="text[:, :-2]",
        ),
        Wrong(
            "predicts what it was told",
            says="after the one that was read",
            old="target = text[:, 2:]",
            new="target = text[:, 1:-1]",
        ),
        Wrong(
            "joins the state first",
            says="off by",
            old="[e, states]",
            new="[states, e]",
        ),
    ),
    judge=judge_loss,
)

EXERCISES = [TOKENS, SHIFTS, MERGE, LEFTOVER, KEPT, SPEEDUP, LOSS]
