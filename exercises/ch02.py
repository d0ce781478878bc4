"""Exercises of chapter 2: keys shared in groups."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsarch import layers
from dsarch.attention import (
    GroupedQueryAttention,
    grouped,
    head_map,
    pool_heads,
    repeated,
)
from dsarch.cache import Cache
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, call, load, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from einops import rearrange
from torch import einsum, nn
from dsarch.layers import Linear, masked_softmax
"""


def judge_map(answer):
    for heads, kv_heads in ((12, 4), (6, 1), (5, 5), (64, 8)):
        want = head_map(heads, kv_heads).tolist()
        got = call(answer, heads, kv_heads)
        same(
            got.tolist() if torch.is_tensor(got) else list(got),
            want,
            {
                "neighbouring query heads share a key head: groups are "
                "contiguous, not dealt out in turn": [
                    h % kv_heads for h in range(heads)
                ],
                "key heads are counted from 0": [g + 1 for g in want],
                "each key head serves heads / kv_heads query heads": [
                    min(h // kv_heads, kv_heads - 1) for h in range(heads)
                ],
            },
            f"the map for {heads} query and {kv_heads} key heads",
        )


MAP = Exercise(
    id="02.1",
    title="Who reads which key head",
    difficulty=1,
    minutes=4,
    task="""\
Return a list with the number of the key head that each of `heads` query heads
reads, when `kv_heads` key heads are shared in contiguous groups.""",
    checks="four divisions of heads, from multi-query to multi-head",
    name="key_head",
    skeleton="""
def key_head(heads, kv_heads):
    return ...
""",
    solution="""
def key_head(heads, kv_heads):
    size = heads // kv_heads  # query heads in a group
    return [head // size for head in range(heads)]
""",
    hints=(
        "With 12 query and 4 key heads, heads 0, 1, 2 read key head 0.",
        "A group holds `heads // kv_heads` query heads.",
        "Divide the number of the query head by the size of a group, "
        "rounding down.",
    ),
    wrong=(
        Wrong(
            "deals heads out in turn",
            says="contiguous",
            old="head // size",
            new="head % kv_heads",
        ),
        Wrong(
            "counts from one",
            says="from 0",
            old="head // size",
            new="head // size + 1",
        ),
        Wrong(
            "divides by the number of groups",
            says="serves heads / kv_heads",
            old="head // size",
            new="min(head // kv_heads, kv_heads - 1)",
        ),
    ),
    judge=judge_map,
)


def judge_pool(answer):
    heads, kv_heads, width, dim = 6, 2, 5, 7
    weight = torch.randn(heads * width, dim, dtype=torch.float64)
    per_head = weight.unflatten(0, (heads, width))
    size = heads // kv_heads
    strided = per_head.unflatten(0, (size, kv_heads)).mean(0).flatten(0, 1)
    want = pool_heads(weight, heads, kv_heads)
    same(
        call(answer, weight, heads, kv_heads),
        want,
        {
            "this keeps the first head of each group and drops the rest": (
                per_head[::size].flatten(0, 1)
            ),
            "the sum is the mean times the size of the group": want * size,
            "these are heads of different groups: neighbours belong "
            "together": strided,
        },
        "the pooled weight",
    )


POOL = Exercise(
    id="02.2",
    title="From multi-head to grouped",
    difficulty=2,
    minutes=8,
    task="""\
Turn the key projection of a multi-head model, `[heads * n, d]`, into that of a
grouped model, `[kv_heads * n, d]`: average the heads of each group.""",
    checks="fp64 agreement with `dsarch.attention.pool_heads` on 6 heads in "
    "2 groups",
    name="pooled",
    skeleton="""
def pooled(weight, heads, kv_heads):
    groups = ...  # [kv_heads, heads per group, n, d]
    return ...    # [kv_heads * n, d]
""",
    solution="""
def pooled(weight, heads, kv_heads):
    groups = rearrange(
        weight, "(g q n) d -> g q n d", g=kv_heads, q=heads // kv_heads
    )
    return rearrange(groups.mean(1), "g n d -> (g n) d")
""",
    hints=(
        "Rows of one head lie together, heads of one group lie together.",
        "So the row index splits into (group, head in group, row), the "
        "slowest first.",
        '`rearrange(weight, "(g q n) d -> g q n d", …)`, mean over `q`, '
        "and back.",
    ),
    wrong=(
        Wrong(
            "keeps the first head",
            says="first head of each group",
            old="groups.mean(1)",
            new="groups[:, 0]",
        ),
        Wrong(
            "adds instead of averaging",
            says="size of the group",
            old="groups.mean(1)",
            new="groups.sum(1)",
        ),
        Wrong(
            "pools across groups",
            says="neighbours belong",
            old="(g q n) d",
            new="(q g n) d",
        ),
    ),
    judge=judge_pool,
)


class Largest(TorchDispatchMode):
    """The most bytes that one result of an operation takes."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            size = result.untyped_storage().nbytes()
            self.nbytes = max(self.nbytes, size)
        return result


def judge_grouped(answer):
    q = torch.randn(2, 1, 12, 16, dtype=torch.float64)
    k = torch.randn(2, 40, 4, 16, dtype=torch.float64)
    v = torch.randn(2, 40, 4, 10, dtype=torch.float64)
    mask = layers.causal_mask(layers.positions(2, 30, 1), 40)
    shuffled = q.unflatten(2, (3, 4)).transpose(2, 3).flatten(2, 3)
    wrong = grouped(shuffled, k, v, mask)
    wrong = wrong.unflatten(2, (4, 3)).transpose(2, 3).flatten(2, 3)
    with Largest() as seen:
        got = call(answer, q, k, v, mask)
    same(
        got,
        repeated(q, k, v, mask),
        {
            "query heads meet the wrong keys: the group is the slow index, "
            "as in `(g q)`": wrong,
            "the heads of the result are in another order than those of "
            "`q`": grouped(q, k, v, mask)
            .unflatten(2, (4, 3))
            .transpose(2, 3)
            .flatten(2, 3),
            "the scores need their scale: 1 / sqrt(n)": grouped(
                q * 4, k, v, mask
            ),
        },
        "the attention output",
    )
    copied = 3 * min(k.nbytes, v.nbytes)
    if seen.nbytes >= copied:
        raise Mistake(
            "right, but keys or values were copied for every query head: "
            f"one result takes {seen.nbytes} bytes, `k` itself {k.nbytes}"
        )


GROUPED = Exercise(
    id="02.3",
    title="Groups without copies",
    difficulty=3,
    minutes=12,
    task="""\
Attention with `q` `[b, t, h, n]`, `k` `[b, s, g, n]`, `v` `[b, s, g, v]`, as
many query heads to each key head as needed. Split the query heads into groups
and let `einsum` broadcast; never repeat a key.""",
    checks="fp64 agreement with the version that repeats keys, and the "
    "largest intermediate result stays below a repeated key",
    name="in_groups",
    skeleton="""
def in_groups(q, k, v, mask):
    q = ...  # [b, t, g, q, n]: q counts the heads inside a group
    score = ...
    p = masked_softmax(score, mask)
    o = ...
    return ...  # [b, t, h, v]
""",
    solution="""
def in_groups(q, k, v, mask):
    q = rearrange(q, "b t (g q) n -> b t g q n", g=k.size(2))
    score = einsum("btgqn,bsgn->bgqts", q, k) * q.size(-1) ** -0.5
    p = masked_softmax(score, mask)
    o = einsum("bgqts,bsgv->btgqv", p, v)
    return rearrange(o, "b t g q v -> b t (g q) v")
""",
    hints=(
        "What is repeated in memory can be broadcast in the einsum instead.",
        "Give `q` one more axis: the group, then the head inside the group.",
        'Scores: `einsum("btgqn,bsgn->bgqts", q, k)`, scaled; merge '
        "`(g q)` at the end.",
    ),
    wrong=(
        Wrong(
            "splits with the group as the fast index",
            says="slow index",
            new="""
def in_groups(q, k, v, mask):
    q = rearrange(q, "b t (q g) n -> b t g q n", g=k.size(2))
    score = einsum("btgqn,bsgn->bgqts", q, k) * q.size(-1) ** -0.5
    o = einsum("bgqts,bsgv->btgqv", masked_softmax(score, mask), v)
    return rearrange(o, "b t g q v -> b t (q g) v")
""",
        ),
        Wrong(
            "merges in another order",
            says="another order",
            old='-> b t (g q) v")',
            new='-> b t (q g) v")',
        ),
        Wrong(
            "copies the keys",
            says="were copied",
            new="""
from einops import repeat


def in_groups(q, k, v, mask):
    copies = q.size(2) // k.size(2)
    k = repeat(k, "b s g n -> b s (g copies) n", copies=copies)
    v = repeat(v, "b s g n -> b s (g copies) n", copies=copies)
    score = einsum("bthn,bshn->bhts", q, k) * q.size(-1) ** -0.5
    return einsum("bhts,bshv->bthv", masked_softmax(score, mask), v)
""",
        ),
        Wrong(
            "no scale",
            says="need their scale",
            old=" * q.size(-1) ** -0.5",
            new="",
        ),
    ),
    judge=judge_grouped,
)


def cache_bytes(layer_count, kv_heads, head_dim, length):
    cache = Cache()
    token = torch.zeros(1, length, kv_heads, head_dim, dtype=torch.bfloat16)
    cache.extend(k=token, v=token)
    return layer_count * cache.nbytes


def judge_budget(answer):
    for layer_count, heads, width, length, spare in (
        (4, 12, 8, 50, 7.9),
        (3, 12, 16, 30, 4.0),
        (2, 8, 4, 10, 0.5),
        (2, 8, 4, 10, 99),
    ):
        one = cache_bytes(layer_count, 1, width, length)
        budget = int(spare * one)
        fits = [g for g in range(1, heads + 1) if g * one <= budget]
        want = max((g for g in fits if heads % g == 0), default=0)
        half = [g for g in range(1, heads + 1) if g * one // 2 <= budget]
        same(
            call(answer, budget, layer_count, heads, width, length),
            want,
            {
                "the number of key heads must divide that of the query "
                "heads": max(fits, default=0),
                "keys and values both take room": max(
                    (g for g in half if heads % g == 0), default=0
                ),
                "a budget that is met exactly still fits": max(
                    (g for g in fits if heads % g == 0 and g * one < budget),
                    default=0,
                ),
            },
            f"the choice for {heads} heads and {budget} bytes",
        )


BUDGET = Exercise(
    id="02.4",
    title="As many key heads as the memory allows",
    difficulty=3,
    minutes=10,
    task="""\
One sequence of `length` tokens may cache at most `budget` bytes in bf16. Return
the largest number of key heads that divides `heads` and fits into all `layers`
layers, or 0 if not even one fits.""",
    checks="four budgets against the bytes of real caches, exact and "
    "impossible ones among them",
    name="most_key_heads",
    skeleton="""
def most_key_heads(budget, layers, heads, head_dim, length):
    return ...
""",
    solution="""
def most_key_heads(budget, layers, heads, head_dim, length):
    one = layers * length * 2 * head_dim * 2  # one key head, in bf16
    for kv_heads in range(heads, 0, -1):
        if heads % kv_heads == 0 and kv_heads * one <= budget:
            return kv_heads
    return 0
""",
    hints=(
        "First the bytes for a single key head: layers, tokens, two vectors.",
        "Which numbers between 1 and `heads` are allowed at all?",
        "Count down from `heads`; the first divisor that fits is the answer.",
    ),
    wrong=(
        Wrong(
            "takes any number",
            says="must divide",
            old="heads % kv_heads == 0 and ",
            new="",
        ),
        Wrong(
            "forgets the values",
            says="keys and values",
            old="2 * head_dim * 2",
            new="head_dim * 2",
        ),
        Wrong(
            "refuses an exact fit",
            says="exactly still fits",
            old="<= budget",
            new="< budget",
        ),
    ),
    judge=judge_budget,
)


def judge_repeat(answer):
    k = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    got = call(answer, k, 12)
    planted = k.repeat(1, 1, 3, 1)
    if torch.is_tensor(got) and torch.equal(got, planted):
        raise Unsolved
    same(
        got,
        k.repeat_interleave(3, 2),
        {
            "each key stays where it is, but its numbers are repeated: "
            "repeat heads, not widths": k.repeat_interleave(3, 3)
            .unflatten(3, (3, 5))
            .flatten(2, 3),
            "this copies one key head to all query heads": k[:, :, :1].expand(
                -1, -1, 12, -1
            ),
        },
        "the repeated keys",
    )


FIND_BUG = Exercise(
    id="02.5",
    title="Find the bug: a checkpoint that speaks nonsense",
    difficulty=2,
    minutes=6,
    task="""\
With this helper a model trains well, but a Llama checkpoint loaded into it
produces nonsense; with one key head, or as many as query heads, all is well.
Which query head reads which key head? Mend it.""",
    checks="the order of the copies, 12 query heads on 4 key heads",
    name="copy_keys",
    skeleton="""
from einops import repeat


def copy_keys(k, heads):
    copies = heads // k.size(2)
    return repeat(k, "b s g n -> b s (copies g) n", copies=copies)
""",
    solution="""
from einops import repeat


def copy_keys(k, heads):
    copies = heads // k.size(2)
    return repeat(k, "b s g n -> b s (g copies) n", copies=copies)
""",
    hints=(
        "Why can a model that is trained with the bug not notice it?",
        "Print which key head query heads 0, 1, 2 read, and compare with "
        "the first exercise.",
        "The copies of one key head must lie next to each other.",
    ),
    wrong=(
        Wrong(
            "repeats numbers instead of heads",
            says="repeat heads, not widths",
            new="""
from einops import repeat


def copy_keys(k, heads):
    copies = heads // k.size(2)
    return repeat(k, "b s g n -> b s g (n c)", c=copies).reshape(
        *k.shape[:2], heads, k.size(3)
    )
""",
        ),
        Wrong(
            "copies one head to all",
            says="one key head to all",
            old="""repeat(k, "b s g n -> b s (g copies) n", copies=copies)""",
            new="""k[:, :, :1].expand(-1, -1, copies * k.size(2), -1)""",
        ),
    ),
    judge=judge_repeat,
    mutation="02.copies-dealt-out",
)


def judge_layer(answer):
    dim, heads, width = 20, 6, 8
    for kv_heads in (2, 6, 1):
        reference = GroupedQueryAttention(dim, heads, kv_heads, width)
        reference = reference.double()
        mine = load(call(answer, dim, heads, kv_heads, width), reference)
        x = torch.randn(2, 8, dim, dtype=torch.float64)
        mask = layers.causal_mask(layers.positions(2, 0, 8), 8)
        want = reference(x, None, mask)
        got, case = call(mine, x, mask), f"with {kv_heads} key heads"
        same(got, want, what=f"{case}, the output")
        cache, parts = Cache(), []
        for start, stop in ((0, 3), (3, 4), (4, 8)):
            position = layers.positions(2, start, stop - start)
            mask = layers.causal_mask(position, stop)
            parts.append(call(mine, x[:, start:stop], mask, cache))
        same(torch.cat(parts, 1), want, what=f"{case}, in chunks, the output")
        if cache.nbytes != 2 * 8 * 2 * kv_heads * width * 8:
            raise Mistake(f"{case}, the cache holds {cache.nbytes} bytes")


LAYER = Exercise(
    id="02.6",
    title="Your layer against the official one",
    difficulty=3,
    minutes=15,
    task="""\
Finish a grouped-query attention layer with the parameter names of
`dsarch.GroupedQueryAttention`. It gets that layer's weights and must give the
same output with two, six and one key heads, at once and in uneven chunks
through a `Cache`.""",
    checks="your layer, with the same weights, equals "
    "`dsarch.GroupedQueryAttention` at once and in chunks of 3, 1 and 4 "
    "tokens; the tests hold that class equal to transformers' Llama",
    name="MyGQA",
    skeleton="""
class MyGQA(nn.Module):
    def __init__(self, dim, heads, kv_heads, head_dim):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = Linear(dim, heads * head_dim)
        self.k_proj = ...
        self.v_proj = ...
        self.o_proj = ...

    def forward(self, x, mask, cache=None):
        return ...
""",
    solution="""
class MyGQA(nn.Module):
    def __init__(self, dim, heads, kv_heads, head_dim):
        super().__init__()
        self.kv_heads = kv_heads
        self.q_proj = Linear(dim, heads * head_dim)
        self.k_proj = Linear(dim, kv_heads * head_dim)
        self.v_proj = Linear(dim, kv_heads * head_dim)
        self.o_proj = Linear(heads * head_dim, dim)
        self.head_dim = head_dim

    def forward(self, x, mask, cache=None):
        g, n = self.kv_heads, self.head_dim
        q = rearrange(self.q_proj(x), "b t (g q n) -> b t g q n", g=g, n=n)
        k = rearrange(self.k_proj(x), "b t (g n) -> b t g n", g=g)
        v = rearrange(self.v_proj(x), "b t (g n) -> b t g n", g=g)
        if cache is not None:
            k, v = cache.extend(k=k, v=v)
        score = einsum("btgqn,bsgn->bgqts", q, k) * n**-0.5
        o = einsum("bgqts,bsgn->btgqn", masked_softmax(score, mask), v)
        return self.o_proj(rearrange(o, "b t g q n -> b t (g q n)"))
""",
    hints=(
        "Only two of the four maps change their width against chapter 1.",
        "Project, split into groups and heads, extend the cache, attend, "
        "merge.",
        "Split queries as `(g q n)`; cache `k` and `v` before any copy.",
    ),
    wrong=(
        Wrong(
            "keys for every query head",
            says="has shape",
            old="self.k_proj = Linear(dim, kv_heads * head_dim)",
            new="self.k_proj = Linear(dim, heads * head_dim)",
        ),
        Wrong(
            "deals query heads out in turn",
            says="with 2 key heads, the output",
            old='"b t (g q n) -> b t g q n"',
            new='"b t (q g n) -> b t g q n"',
        ),
        Wrong(
            "caches nothing",
            says="stopped with",
            old="k, v = cache.extend(k=k, v=v)",
            new="pass",
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [MAP, POOL, GROUPED, BUDGET, FIND_BUG, LAYER]
