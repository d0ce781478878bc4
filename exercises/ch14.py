"""Exercises of chapter 14: sparse attention and an agent's losses."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from dsarch import dsa, indexing
from dsarch.analysis import sparse
from dsarch.config import Config
from dsarch.layers import causal_mask, masked_softmax, positions
from dsarch.post.agent import CALL, demonstration, desks
from dsarch.rope import phases
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, call, same

# What the chapter has imported before its exercises begin.
SETUP = """
import torch
from einops import rearrange
from torch import einsum
from dsarch.dsa import take
from dsarch.layers import masked_softmax
from dsarch.post.agent import CALL, ERROR, RESULT
from dsarch.rope import rotate
"""

SMALL = Config(
    model_type="deepseek_v32",
    hidden_size=30,
    num_attention_heads=5,
    q_lora_rank=22,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=6,
    v_head_dim=7,
    index_topk=5,
    index_n_heads=9,
    index_head_dim=10,
)


def draw(*shape, seed=14):
    """Normal numbers in fp64 that depend on shape and seed alone."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def judge_scores(answer):
    q, k, w = draw(2, 3, 9, 10), draw(2, 7, 10), draw(2, 3, 9)
    want = dsa.index_scores(q, k, w)
    raw = torch.einsum("btim,bsm->bits", q, k)
    unit = 90**-0.5
    summed = torch.einsum("bits,bti->bts", raw, w)
    soft = torch.einsum("bits,bti->bts", raw.relu(), w.softmax(-1))
    hard = torch.einsum("bits,bti->bts", raw.relu(), w)
    same(
        call(answer, q, k, w),
        want,
        {
            "the ReLU acts on each head, before the heads are summed": (
                summed.relu() * unit
            ),
            "head weights are not softmaxed; they may be negative": soft * unit,
            "the scale is missing: heads and width, both under a root": hard,
            "the scale has the number of heads in it too": hard * 10**-0.5,
            "without the ReLU all heads are one linear map": summed * unit,
        },
        "the index scores",
    )


SCORES = Exercise(
    id="14.1",
    title="The lightning indexer",
    difficulty=2,
    minutes=8,
    task="""\
Write {eq}`eq-index-scores` for queries `q` `[b, t, i, m]`, keys `k` `[b, s, m]`
and head weights `w` `[b, t, i]`. Return `[b, t, s]`, scaled by
$1/\\sqrt{H m}$.""",
    checks="fp64 equality with `dsarch.dsa.index_scores`, weights below zero "
    "included",
    name="index",
    skeleton="""
def index(q, k, w):
    heads, width = q.shape[2:]
    score = ...  # [b, i, t, s]
    return ...   # [b, t, s]
""",
    solution="""
def index(q, k, w):
    heads, width = q.shape[2:]
    score = einsum("btim,bsm->bits", q, k).relu()
    return einsum("bits,bti->bts", score, w) * (heads * width) ** -0.5
""",
    hints=(
        "One key serves all index heads: which letter is missing on `k`?",
        'Products are `einsum("btim,bsm->bits", q, k)`; then comes the ReLU.',
        "Contract the index heads with `w` last, and divide by the root of "
        "heads times width.",
    ),
    wrong=(
        Wrong(
            "ReLU after the sum",
            says="before the heads are summed",
            new="""
def index(q, k, w):
    heads, width = q.shape[2:]
    score = einsum("btim,bsm,bti->bts", q, k, w)
    return score.relu() * (heads * width) ** -0.5
""",
        ),
        Wrong(
            "softmaxes the weights",
            says="not softmaxed",
            old="score, w)",
            new="score, w.softmax(-1))",
        ),
        Wrong(
            "scales by the width alone",
            says="number of heads in it",
            old="(heads * width)",
            new="width",
        ),
    ),
    judge=judge_scores,
)


def judge_select(answer):
    score = draw(2, 9, 9)
    score[:, :, 6:] += 5  # the future looks best
    mask = causal_mask(positions(2, 0, 9), 9)
    want = dsa.chosen(dsa.top_k(score, mask, 4), mask)
    got = call(answer, score, mask, 4)
    late = score.topk(4).indices
    blind = dsa.top_k(score, mask, 4)
    same(
        got,
        want,
        {
            "mask before choosing: hidden keys have taken the places of "
            "visible ones": dsa.chosen(late, mask),
            "apply the mask again: a query with few keys names hidden ones": (
                torch.zeros_like(mask).scatter(-1, blind, True)
            ),
            "that is every visible key; only the best k stay": mask,
        },
        "the keys that may be read",
    )


SELECT = Exercise(
    id="14.2",
    title="Choose, then look again",
    difficulty=2,
    minutes=8,
    task="""\
From scores `[b, t, s]` and a causal mask `[b, t, s]`, return the Boolean mask
of the keys that each query reads: its `k` best *visible* ones. Queries with
fewer than `k` visible keys read all of those, and nothing else.""",
    checks="equality with `dsarch.dsa.chosen` where the future has the best "
    "scores",
    name="select",
    skeleton="""
def select(score, mask, k):
    index = ...  # [b, t, k]
    return ...   # [b, t, s], Boolean
""",
    solution="""
def select(score, mask, k):
    index = score.masked_fill(~mask, -torch.inf).topk(k).indices
    return torch.zeros_like(mask).scatter(-1, index, True) & mask
""",
    hints=(
        "What does the best key of the future do to a query that may not see "
        "it?",
        "Hidden keys get minus infinity before `topk`.",
        "`torch.zeros_like(mask).scatter(-1, index, True)`, and the mask once "
        "more, because early queries run out of visible keys.",
    ),
    wrong=(
        Wrong(
            "chooses before masking",
            says="mask before choosing",
            old="score.masked_fill(~mask, -torch.inf)",
            new="score",
        ),
        Wrong(
            "does not mask again",
            says="apply the mask again",
            old=" & mask",
            new="",
        ),
    ),
    judge=judge_select,
)


def pieces(t=3, s=40):
    """q, q_rope, c, k_rope, W_UK, W_UV of a layer, a mask and a choice."""
    h, (n, r) = SMALL.num_attention_heads, SMALL.qk_widths
    c, v = SMALL.kv_lora_rank, SMALL.v_head_dim
    shapes = [(2, t, h, n), (2, t, h, r), (2, s, c), (2, s, r)]
    made = [draw(*x) for x in [*shapes, (h, n, c), (h, v, c)]]
    # The first queries see fewer keys than they choose.
    mask = causal_mask(positions(2, 3, t), s)
    return made, mask, dsa.top_k(draw(2, t, s), mask, 5)


def judge_gather(answer):
    made, mask, index = pieces()
    with FlopCounterMode(display=False) as official:
        want = dsa.gathered(*made, mask, index, 0.3)
    with FlopCounterMode(display=False) as mine:
        got = call(answer, *made, mask, index, 0.3)
    everywhere = torch.ones_like(mask)
    same(
        got,
        want,
        {
            "some chosen keys are hidden: gather the mask as well": (
                dsa.gathered(*made, everywhere, index, 0.3)
            ),
            "the scale is missing": dsa.gathered(*made, mask, index, 1.0),
        },
        "the output of the heads",
    )
    if mine.get_total_flops() > official.get_total_flops():
        raise Mistake(
            f"right, with {mine.get_total_flops():,} FLOP where "
            f"{official.get_total_flops():,} are enough: score the gathered "
            "keys only"
        )


GATHER = Exercise(
    id="14.3",
    title="Less work, not less result",
    difficulty=3,
    minutes=15,
    task="""\
The absorbed form of chapter 3 over the chosen latents alone. `index` is
`[b, t, k]`; `take(c, index)` gives `[b, t, k, c]`. Apply `scale` to the scores,
and remember that some chosen keys may be hidden.""",
    checks="fp64 agreement with `dsarch.dsa.gathered`, with no more FLOP than "
    "it needs; the tests hold that equal to masked attention",
    name="attend",
    skeleton="""
def attend(q, q_rope, c, k_rope, w_uk, w_uv, mask, index, scale):
    c, k_rope = ..., ...   # [b, t, k, c], [b, t, k, r]
    q = ...                # [b, t, h, c]
    score = ...            # [b, h, t, k]
    p = masked_softmax(score * scale, ...)
    return ...             # [b, t, h, v]
""",
    solution="""
def attend(q, q_rope, c, k_rope, w_uk, w_uv, mask, index, scale):
    c, k_rope = take(c, index), take(k_rope, index)
    q = einsum("bthn,hnc->bthc", q, w_uk)
    score = einsum("bthc,btkc->bhtk", q, c)
    score = score + einsum("bthr,btkr->bhtk", q_rope, k_rope)
    p = masked_softmax(score * scale, mask.gather(-1, index))
    o = einsum("bhtk,btkc->bthc", p, c)
    return einsum("bthc,hvc->bthv", o, w_uv)
""",
    hints=(
        "Every query has keys of its own now: which letter do the gathered "
        "latents have that the cache has not?",
        'Scores are `einsum("bthc,btkc->bhtk", q, c)` and the rotary part.',
        "`mask.gather(-1, index)` says which of the chosen keys are visible.",
    ),
    wrong=(
        Wrong(
            "trusts the indices",
            says="gather the mask as well",
            old="mask.gather(-1, index)",
            new="torch.ones_like(index, dtype=torch.bool)",
        ),
        Wrong(
            "masks instead of gathering",
            says="score the gathered keys only",
            new="""
def attend(q, q_rope, c, k_rope, w_uk, w_uv, mask, index, scale):
    q = einsum("bthn,hnc->bthc", q, w_uk)
    score = einsum("bthc,bsc->bhts", q, c)
    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)
    seen = torch.zeros_like(mask).scatter(-1, index, True) & mask
    p = masked_softmax(score * scale, seen)
    o = einsum("bhts,bsc->bthc", p, c)
    return einsum("bthc,hvc->bthv", o, w_uv)
""",
        ),
    ),
    judge=judge_gather,
)


def judge_loss(answer):
    logits = draw(2, 4, 6, 8).requires_grad_()
    score = draw(2, 6, 8).requires_grad_()
    mask = causal_mask(positions(2, 2, 6), 8)
    p = masked_softmax(logits, mask).mean(1).detach()
    want = indexing.divergence(p, score, mask).mean()
    got = call(answer, logits, score, mask)
    one = masked_softmax(logits.mean(1), mask)
    log_q = score.masked_fill(~mask, -torch.inf).log_softmax(-1)
    log_q = log_q.masked_fill(~mask, 0.0)
    back = (log_q.exp() * (log_q - p.clamp(min=1e-30).log()) * mask).sum(-1)
    same(
        got,
        want,
        {
            "the target is the mean of probabilities, not the softmax of mean "
            "logits": indexing.divergence(one, score, mask).mean(),
            "that is the other direction, KL(indexer || attention)": (
                back.mean()
            ),
        },
        "the loss",
    )
    reached = torch.autograd.grad(got, logits, allow_unused=True)[0]
    if reached is not None and not (reached == 0).all():
        raise Mistake(
            "the value is right, but a gradient reaches attention: the target "
            "is a constant"
        )


LOSS = Exercise(
    id="14.4",
    title="What the indexer learns from",
    difficulty=3,
    minutes=15,
    task="""\
`logits` `[b, h, t, s]` are the scores of all heads, `score` `[b, t, s]` those
of the indexer. Return {eq}`eq-indexer-loss` for the keys in `mask` `[b, t, s]`,
a mean over all queries, so that no gradient reaches `logits`.""",
    checks="fp64 equality with `dsarch.indexing.divergence`, and where the "
    "gradient goes",
    name="indexer_kl",
    skeleton="""
def indexer_kl(logits, score, mask):
    p = ...      # [b, t, s], what all heads read
    log_q = score.masked_fill(~mask, -torch.inf).log_softmax(-1)
    log_q = log_q.masked_fill(~mask, 0.0)
    return ...
""",
    solution="""
def indexer_kl(logits, score, mask):
    p = masked_softmax(logits, mask).mean(1).detach()
    log_q = score.masked_fill(~mask, -torch.inf).log_softmax(-1)
    log_q = log_q.masked_fill(~mask, 0.0)
    return (torch.special.xlogy(p, p) - p * log_q).sum(-1).mean()
""",
    hints=(
        "Each head has a distribution of its own before they are averaged.",
        "Softmax first, then the mean over heads, then `detach`.",
        r"$KL(p\|q) = \sum p \log p - \sum p \log q$; `torch.special.xlogy` "
        "knows that $0 \\log 0 = 0$.",
    ),
    wrong=(
        Wrong(
            "averages the logits",
            says="mean of probabilities",
            old="masked_softmax(logits, mask).mean(1)",
            new="masked_softmax(logits.mean(1), mask)",
        ),
        Wrong(
            "lets the target move",
            says="a gradient reaches attention",
            old=".mean(1).detach()",
            new=".mean(1)",
        ),
        Wrong(
            "turns the divergence around",
            says="other direction",
            old="(torch.special.xlogy(p, p) - p * log_q).sum(-1)",
            new="((log_q.exp() * (log_q - p.clamp(min=1e-30).log())) * mask)"
            ".sum(-1)",
        ),
    ),
    judge=judge_loss,
)


def judge_cost(answer):
    for cfg in (Config.v3_2(), SMALL):
        attend, index = sparse.pair_flops(cfg)
        k = cfg.index_topk
        for context in (3, 2048, 131_072):
            want = tuple(
                sparse.attention_flops(cfg, context, sparse=kind)
                for kind in (False, True)
            )
            few = min(k, context)
            same(
                call(answer, attend, index, k, context),
                want,
                {
                    "the indexer is missing: it scores every key": (
                        attend * context,
                        attend * few,
                    ),
                    "a short text has fewer keys than k": (
                        attend * context,
                        attend * k + index * context,
                    ),
                    "the indexer scores all keys, not only the chosen": (
                        attend * context,
                        (attend + index) * few,
                    ),
                },
                f"FLOP for {context:,} tokens",
            )


COST = Exercise(
    id="14.5",
    title="Linear plus a little square",
    difficulty=2,
    minutes=8,
    task="""\
Attention costs `attend` FLOP for one query and one key, the indexer `index`.
What do dense and sparse attention cost one query that has `context` keys and
reads at most `k`? Return both numbers.""",
    checks="V3.2 and a small model at three lengths against "
    "`dsarch.analysis.sparse`, which the tests compare with the FLOP that "
    "PyTorch counts",
    name="both_costs",
    skeleton="""
def both_costs(attend, index, k, context):
    dense = ...
    few = ...
    return dense, few
""",
    solution="""
def both_costs(attend, index, k, context):
    dense = attend * context
    few = attend * min(k, context) + index * context
    return dense, few
""",
    hints=(
        "Which of the two still looks at every key?",
        "Attention reads `min(k, context)` keys.",
        "The indexer pays `index * context`, however many keys are chosen.",
    ),
    wrong=(
        Wrong(
            "forgets the indexer",
            says="indexer is missing",
            old=" + index * context",
            new="",
        ),
        Wrong(
            "always pays for k keys",
            says="fewer keys than k",
            old="min(k, context)",
            new="k",
        ),
        Wrong(
            "indexes the chosen keys only",
            says="not only the chosen",
            old="index * context",
            new="index * min(k, context)",
        ),
    ),
    judge=judge_cost,
)


def judge_mask(answer):
    tasks = desks(6, torch.Generator().manual_seed(6))
    tokens, want = demonstration(tasks)
    everything = torch.arange(tokens.size(1)).expand_as(tokens) >= 3
    without = want & (tokens != CALL)
    same(
        call(answer, tokens, 3),
        want,
        {
            "the tools' words are in it: the policy did not choose them": (
                everything
            ),
            "the token that ends a call is the policy's own": without,
            "the question is not the policy's": want
            | (torch.arange(tokens.size(1)) < 3),
        },
        "the tokens that are trained",
    )


MASK = Exercise(
    id="14.6",
    title="Whose words?",
    difficulty=2,
    minutes=10,
    task="""\
`tokens` `[b, t]` are whole conversations that begin with a question of `prompt`
tokens. After each `CALL` the tool answers with `RESULT` and one digit. Return
the Boolean mask of the tokens that the policy chose.""",
    checks="equality with the mask of `dsarch.post.agent.demonstration`, which "
    "the tests hold equal to that of sampled play",
    name="own_words",
    skeleton="""
def own_words(tokens, prompt):
    place = torch.arange(tokens.size(1)).expand_as(tokens)
    said = ...  # after the question
    tool = ...  # RESULT and the digit behind it
    return ...
""",
    solution="""
def own_words(tokens, prompt):
    place = torch.arange(tokens.size(1)).expand_as(tokens)
    said = place >= prompt
    tool = tokens == RESULT
    tool[:, 1:] |= tokens[:, :-1] == RESULT
    return said & ~tool
""",
    hints=(
        "Who wrote `RESULT`, and who wrote the digit behind it?",
        "`tokens == RESULT` finds the first; the second is one place later.",
        "`CALL` itself stays trained: stopping to ask is a choice.",
    ),
    wrong=(
        Wrong(
            "trains on everything",
            says="tools' words are in it",
            old="said & ~tool",
            new="said",
        ),
        Wrong(
            "forgets the question",
            says="question is not the policy's",
            old="said & ~tool",
            new="~tool",
        ),
        Wrong(
            "masks the end of a call",
            says="policy's own",
            old="tool = tokens == RESULT",
            new="tool = (tokens == RESULT) | (tokens == CALL)",
        ),
    ),
    judge=judge_mask,
)


def layer(cfg=SMALL):
    """A sparse layer in fp64 whose weights all matter."""
    made = dsa.SparseMLA(cfg).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(14)
    for name, weight in made.named_parameters():
        mean = float("norm.weight" in name)
        weight.normal_(mean, 0.3, generator=generator)
    return made


def judge_layer(answer):
    made, x = layer(), draw(2, 12, SMALL.hidden_size)
    position = positions(2, 0, 12)
    mask, phase = causal_mask(position, 12), phases(SMALL, position)
    want = made(x, phase, mask)
    got = call(answer, made, x, phase, mask)
    dense = layer(SMALL.replace(index_topk=12))(x, phase, mask)
    with_plain = layer()
    with_plain.indexer.k_norm = torch.nn.Identity()
    same(
        got,
        want,
        {
            "every visible key is read: nothing was selected": dense,
            "the index key is normed before it is turned": with_plain(
                x, phase, mask
            ),
        },
        "the output of the layer",
    )


LAYER = Exercise(
    id="14.7",
    title="Your sparse layer against the official one",
    difficulty=4,
    minutes=25,
    task="""\
The whole layer for a text at once, with the projections of `m`, a
`dsarch.dsa.SparseMLA`. `m.indexer` has `wq_b`, `wk`, `k_norm`, `weights_proj`,
`heads` and `widths`, the rotary width first. Index queries come from the latent
that `m.queries` returns last; index queries and keys are turned half-split,
`rotate(x, phase, interleaved=False)`, in their *first* part. Your own functions
from above may help.""",
    checks="your code, with the same weights, equals `dsarch.dsa.SparseMLA`, "
    "which the tests hold equal to transformers' deepseek_v32",
    name="my_sparse_layer",
    skeleton="""
def my_sparse_layer(m, x, phase, mask):
    q, q_rope, latent = m.queries(x, phase)
    c, k_rope = m.memories(x, phase)

    def turn(y):
        rope, rest = y.split(m.indexer.widths, -1)
        return torch.cat([rotate(rope, phase, interleaved=False), rest], -1)

    iq = ...     # [b, t, i, m]
    ik = ...     # [b, t, m]
    score = ...  # [b, t, s], by 14.1
    index = ...  # the m.topk best visible keys
    o = ...      # [b, t, h, v], by 14.3
    return m.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    solution="""
def my_sparse_layer(m, x, phase, mask):
    q, q_rope, latent = m.queries(x, phase)
    c, k_rope = m.memories(x, phase)

    def turn(y):
        rope, rest = y.split(m.indexer.widths, -1)
        return torch.cat([rotate(rope, phase, interleaved=False), rest], -1)

    iq = m.indexer.wq_b(latent)
    iq = turn(rearrange(iq, "b t (i m) -> b t i m", i=m.indexer.heads))
    ik = turn(m.indexer.k_norm(m.indexer.wk(x)))
    score = einsum("btim,bsm->btis", iq, ik).relu()
    score = einsum("btis,bti->bts", score, m.indexer.weights_proj(x))
    index = score.masked_fill(~mask, -torch.inf).topk(m.topk).indices
    seen = torch.zeros_like(mask).scatter(-1, index, True) & mask
    q = einsum("bthn,hnc->bthc", q, m.up()[0])
    logit = einsum("bthc,bsc->bhts", q, c)
    logit = logit + einsum("bthr,bsr->bhts", q_rope, k_rope)
    p = masked_softmax(logit * m.scale, seen)
    o = einsum("bhts,bsc,hvc->bthv", p, c, m.up()[1])
    return m.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    hints=(
        "Four steps: index queries and keys, scores, choice, attention.",
        "The index key is `wk(x)`, through `k_norm`, then turned; the index "
        "queries are `wq_b(latent)`, cut into heads, then turned.",
        "A positive factor on the scores does not change the choice; then "
        "scatter the indices into a mask and attend absorbed, as in 14.3.",
    ),
    wrong=(
        Wrong(
            "reads everything",
            says="nothing was selected",
            old="p = masked_softmax(logit * m.scale, seen)",
            new="p = masked_softmax(logit * m.scale, mask)",
        ),
        Wrong(
            "forgets the norm of the key",
            says="index key is normed",
            old="m.indexer.k_norm(m.indexer.wk(x))",
            new="m.indexer.wk(x)",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [SCORES, SELECT, GATHER, LOSS, COST, MASK, LAYER]
