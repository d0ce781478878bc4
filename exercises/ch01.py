"""Exercises of chapter 1: one key head for all queries."""

import torch

from dsarch import layers
from dsarch.attention import GroupedQueryAttention, grouped
from dsarch.cache import Cache
from dsarch.teaching.exercises import Exercise, Wrong
from dsarch.teaching.judge import Mistake, Unsolved, call, load, same

# What the chapter has imported before its exercises begin.
SETUP = """
import math
import torch
from einops import rearrange
from torch import einsum, nn
from dsarch.layers import Linear
"""


def measured_bytes(layer_count, kv_heads, head_dim, dtype):
    """Bytes that real caches hold after one token."""
    cache = Cache()
    token = torch.zeros(1, 1, kv_heads, head_dim, dtype=dtype)
    cache.extend(k=token, v=token)
    return cache.nbytes * layer_count


def judge_bytes(answer):
    for sizes in ((32, 32, 128), (80, 8, 96), (5, 1, 24)):
        for dtype in (torch.float32, torch.bfloat16):
            want = measured_bytes(*sizes, dtype)
            got = call(answer, *sizes, dtype.itemsize)
            same(
                got,
                want,
                {
                    "half of the cache is missing: "
                    "a layer keeps keys and values": want // 2,
                    "this is one layer; every layer has a cache": want
                    // sizes[0],
                    "these are numbers, not bytes": want // dtype.itemsize,
                    "a token is cached once for each key head": want
                    // sizes[1],
                },
                f"the size for layers, heads, width {sizes}",
            )


BYTES = Exercise(
    id="01.1",
    title="What one token leaves behind",
    difficulty=1,
    minutes=4,
    task="""\
Write the number of bytes that one more token adds to the cache of a model
with `layers` layers, each with `kv_heads` key heads of width `head_dim`.""",
    checks="three models in two precisions against the bytes that real "
    "caches hold",
    name="added_bytes",
    skeleton="""
def added_bytes(layers, kv_heads, head_dim, bytes_per_element=2):
    return ...
""",
    solution="""
def added_bytes(layers, kv_heads, head_dim, bytes_per_element=2):
    numbers = 2 * kv_heads * head_dim  # a key and a value
    return layers * numbers * bytes_per_element
""",
    hints=(
        "Draw what one layer stores when it has read one token.",
        "Two vectors for each key head, each `head_dim` numbers long.",
        "Layers times two times heads times width times bytes per number.",
    ),
    wrong=(
        Wrong(
            "forgets the values",
            says="keys and values",
            old="2 * kv_heads",
            new="kv_heads",
        ),
        Wrong(
            "counts one layer",
            says="every layer",
            old="layers * numbers",
            new="numbers",
        ),
        Wrong(
            "counts numbers",
            says="not bytes",
            old=" * bytes_per_element",
            new="",
        ),
    ),
    judge=judge_bytes,
)


def judge_multi_query(answer):
    q = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    k, v = torch.randn(2, 7, 8).double(), torch.randn(2, 7, 4).double()
    mask = layers.causal_mask(layers.positions(2, 2, 5), 7)
    want = grouped(q, k[:, :, None], v[:, :, None], mask)
    score = torch.einsum("bthn,bsn->bhts", q, k)

    def attend(score):
        p = layers.masked_softmax(score, mask)
        return torch.einsum("bhts,bsv->bthv", p, v)

    same(
        call(answer, q, k, v, mask),
        want,
        {
            "the scores need their scale: 1 / sqrt(n)": attend(score),
            "divide by the root of the width, not by the width": attend(
                score / 8
            ),
            "the width in the scale is that of one head": attend(
                score / (6 * 8) ** 0.5
            ),
            "a query may not look at a later key: use the mask": torch.einsum(
                "bhts,bsv->bthv", (score / 8**0.5).softmax(-1), v
            ),
        },
        "the attention output",
    )


MULTI_QUERY = Exercise(
    id="01.2",
    title="One key for all heads",
    difficulty=2,
    minutes=8,
    task="""\
Attention in which all query heads share one key and one value for each
position. `q` is `[b, t, h, n]`, `k` is `[b, s, n]`, `v` is `[b, s, v]`, and
`mask[b, t, s]` is true where query `t` may look at key `s`. Return
`[b, t, h, v]` without copying `k` or `v`.""",
    checks="fp64 agreement with the package's attention, five queries that "
    "continue a cache of two",
    name="multi_query",
    skeleton="""
def multi_query(q, k, v, mask):
    score = ...  # [b, h, t, s]
    p = ...      # softmax over the visible keys
    return ...   # [b, t, h, v]
""",
    solution="""
def multi_query(q, k, v, mask):
    score = einsum("bthn,bsn->bhts", q, k) * q.size(-1) ** -0.5
    score = score.masked_fill(~mask[:, None], -math.inf)
    p = score.softmax(-1)
    return einsum("bhts,bsv->bthv", p, v)
""",
    hints=(
        "A letter that stands in only one operand is broadcast by einsum.",
        "The head letter `h` occurs in `q` and in the result, never in `k`.",
        'Scores: `einsum("bthn,bsn->bhts", q, k)`, scaled by n to the '
        "power -1/2; hidden keys get minus infinity before the softmax.",
    ),
    wrong=(
        Wrong(
            "no scale",
            says="need their scale",
            old=" * q.size(-1) ** -0.5",
            new="",
        ),
        Wrong(
            "divides by n",
            says="root of the width",
            old="** -0.5",
            new="** -1.0",
        ),
        Wrong(
            "no mask",
            says="later key",
            old="~mask[:, None]",
            new="mask[:, None] & ~mask[:, None]",
        ),
        Wrong(
            "softmax over the queries",
            says="off by",
            old="softmax(-1)",
            new="softmax(-2).nan_to_num()",
        ),
    ),
    judge=judge_multi_query,
)


def judge_mask(answer):
    for start, count, length in ((0, 5, 5), (4, 3, 7), (6, 1, 7)):
        position = layers.positions(1, start, count)
        want = layers.causal_mask(position, length)[0]
        row = torch.arange(count)[:, None]
        key = torch.arange(length)
        same(
            call(answer, start, count, length),
            want,
            {
                "query 0 of this chunk stands at position `start`, not at 0": (
                    key <= row
                ),
                "a token may look at itself": key < row + start,
                "true means visible: this is the mask upside down": ~want,
            },
            f"the mask for start {start}, {count} queries, {length} keys",
        )


MASK = Exercise(
    id="01.3",
    title="The mask of a chunk",
    difficulty=2,
    minutes=6,
    task="""\
A chunk of `count` new tokens starts at position `start`; the cache then holds
`length` keys. Return the boolean mask `[count, length]` that is true where a
query may look at a key.""",
    checks="a prompt, a later chunk and a single decoded token",
    name="may_see",
    skeleton="""
def may_see(start, count, length):
    query = ...  # positions of the queries
    key = ...    # positions of the keys
    return ...
""",
    solution="""
def may_see(start, count, length):
    query = torch.arange(start, start + count)
    key = torch.arange(length)
    return key <= query[:, None]
""",
    hints=(
        "Write down the positions of the queries and of the keys first.",
        "The queries stand at `start` to `start + count - 1`.",
        "Compare a column of query positions with a row of key positions; "
        "a token sees itself.",
    ),
    wrong=(
        Wrong(
            "forgets the offset",
            says="position `start`",
            old="torch.arange(start, start + count)",
            new="torch.arange(count)",
        ),
        Wrong(
            "hides the token itself",
            says="look at itself",
            old="<=",
            new="<",
        ),
        Wrong(
            "marks the hidden keys",
            says="upside down",
            old="key <= query",
            new="key > query",
        ),
    ),
    judge=judge_mask,
)


def judge_crossover(answer):
    for weights, token, length in (
        (14_000_000_000, 524_288, 4096),
        (14_000_000_000, 16_384, 4096),
        (4096 * 512 * 3, 512, 4096),
    ):
        want = 1
        while want * length * token < weights:
            want += 1
        same(
            call(answer, weights, token, length),
            want,
            {
                "a sequence holds `length` tokens, each with its bytes": -(
                    -weights // token
                ),
                "one sequence fewer than needed: round up": want - 1,
                "at equality the cache already costs as much": want + 1,
            },
            f"the batch for {weights} bytes of weights",
        )


CROSSOVER = Exercise(
    id="01.4",
    title="When the cache outweighs the weights",
    difficulty=2,
    minutes=6,
    task="""\
Each decoded token reads all weights once for the whole batch, and the cache of
every sequence. Return the smallest batch at which the caches, each `length`
tokens of `token_bytes`, take at least as many bytes as the weights.""",
    checks="a search over batches for multi-head and multi-query sizes, and "
    "a case of exact equality",
    name="crossover_batch",
    skeleton="""
def crossover_batch(weight_bytes, token_bytes, length):
    return ...
""",
    solution="""
def crossover_batch(weight_bytes, token_bytes, length):
    sequence_bytes = length * token_bytes
    return -(-weight_bytes // sequence_bytes)  # rounded up, in integers
""",
    hints=(
        "How many bytes does one sequence hold?",
        "The batch times that number must reach the bytes of the weights.",
        "Divide and round up; `-(-a // b)` does it without floats.",
    ),
    wrong=(
        Wrong(
            "forgets the length",
            says="`length` tokens",
            old="length * token_bytes",
            new="token_bytes",
        ),
        Wrong(
            "rounds down",
            says="round up",
            old="-(-weight_bytes // sequence_bytes)",
            new="weight_bytes // sequence_bytes",
        ),
        Wrong(
            "asks for more, not for at least as much",
            says="at equality",
            old="-(-weight_bytes // sequence_bytes)",
            new="weight_bytes // sequence_bytes + 1",
        ),
    ),
    judge=judge_crossover,
)


def judge_softmax(answer):
    score = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    mask = layers.causal_mask(layers.positions(2, 2, 4), 6)
    got = call(answer, score, mask)
    p = score.softmax(-1)
    planted = p.masked_fill(~mask[:, None], 0)
    if torch.is_tensor(got) and torch.equal(got, planted):
        raise Unsolved
    same(
        got,
        layers.masked_softmax(score, mask),
        {
            "hidden keys still get a share; a score of 0 is not 'hidden'": (
                score.masked_fill(~mask[:, None], 0).softmax(-1)
            ),
            "now a query sees every later key: hide them": p,
        },
        "the weights",
    )


FIND_BUG = Exercise(
    id="01.5",
    title="Find the bug: weights that do not sum to one",
    difficulty=2,
    minutes=6,
    task="""\
This softmax passes a test of shapes, and hidden keys do get weight zero. Yet
the first tokens of every text are attended to too weakly. Print the sum over
the last axis for the first query, then mend the function.""",
    checks="fp64 agreement with the package's masked softmax",
    name="visible_softmax",
    skeleton="""
def visible_softmax(score, mask):
    p = score.softmax(-1)
    return p.masked_fill(~mask[:, None], 0)
""",
    solution="""
def visible_softmax(score, mask):
    score = score.masked_fill(~mask[:, None], -math.inf)
    return score.softmax(-1)
""",
    hints=(
        "Which weights add up to one: those of the visible keys, or of all?",
        "A hidden key must not take part in the sum of the softmax.",
        "Fill hidden scores with minus infinity first, then take the softmax.",
    ),
    wrong=(
        Wrong(
            "fills with zero",
            says="not 'hidden'",
            old="-math.inf",
            new="0",
        ),
        Wrong(
            "hides nothing",
            says="later key",
            old="~mask[:, None]",
            new="~mask[:, None] & False",
        ),
    ),
    judge=judge_softmax,
    mutation="01.mask-after-softmax",
)


def judge_layer(answer):
    dim, heads, width = 20, 3, 8
    reference = GroupedQueryAttention(dim, heads, 1, width).double()
    mine = load(call(answer, dim, heads, width), reference)
    x = torch.randn(2, 8, dim, dtype=torch.float64)
    mask = layers.causal_mask(layers.positions(2, 0, 8), 8)
    want = reference(x, None, mask)
    same(call(mine, x, mask), want, what="without a cache, the output")
    cache, parts = Cache(), []
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        position = layers.positions(2, start, stop - start)
        mask = layers.causal_mask(position, stop)
        parts.append(call(mine, x[:, start:stop], mask, cache))
    if len(cache) != 8:
        raise Mistake(f"the cache holds {len(cache)} tokens after 8")
    same(torch.cat(parts, 1), want, what="in chunks of 3, 1, 4, the output")
    if cache.nbytes != 2 * 8 * 2 * width * 8:
        raise Mistake("cache one key and one value for each token, no copies")


LAYER = Exercise(
    id="01.6",
    title="Your layer against the official one",
    difficulty=3,
    minutes=15,
    task="""\
Finish a multi-query attention layer. It gets the weights of
`dsarch.GroupedQueryAttention` with one key head, and must give the same
output, at once and in uneven chunks through a `Cache`
(`k, v = cache.extend(k=k, v=v)`). Your `multi_query` may help.""",
    checks="your layer, with the same weights, equals "
    "`dsarch.GroupedQueryAttention` at once and in chunks of 3, 1 and 4 "
    "tokens; the tests hold that class equal to transformers' Llama",
    name="MyMQA",
    skeleton="""
class MyMQA(nn.Module):
    def __init__(self, dim, heads, head_dim):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(dim, heads * head_dim)
        self.k_proj = ...
        self.v_proj = ...
        self.o_proj = ...

    def forward(self, x, mask, cache=None):
        return ...
""",
    solution="""
class MyMQA(nn.Module):
    def __init__(self, dim, heads, head_dim):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(dim, heads * head_dim)
        self.k_proj = Linear(dim, head_dim)
        self.v_proj = Linear(dim, head_dim)
        self.o_proj = Linear(heads * head_dim, dim)

    def forward(self, x, mask, cache=None):
        q = rearrange(self.q_proj(x), "b t (h n) -> b t h n", h=self.heads)
        k, v = self.k_proj(x), self.v_proj(x)
        if cache is not None:
            k, v = cache.extend(k=k, v=v)
        score = einsum("bthn,bsn->bhts", q, k) * q.size(-1) ** -0.5
        p = score.masked_fill(~mask[:, None], -math.inf).softmax(-1)
        o = einsum("bhts,bsv->bthv", p, v)
        return self.o_proj(rearrange(o, "b t h v -> b t (h v)"))
""",
    hints=(
        "Only the queries have heads: what width do the other two maps have?",
        "Project, split `q` into heads, extend the cache, attend, merge.",
        "`k_proj` and `v_proj` map to `head_dim`; extend the cache before "
        "the scores, so that old keys take part.",
    ),
    wrong=(
        Wrong(
            "a key for every head",
            says="has shape",
            old="self.k_proj = Linear(dim, head_dim)",
            new="self.k_proj = Linear(dim, heads * head_dim)",
        ),
        Wrong(
            "attends to the new keys only",
            says="stopped with",
            old="k, v = cache.extend(k=k, v=v)",
            new="cache.extend(k=k, v=v)",
        ),
        Wrong(
            "heads are read in the wrong order",
            says="off by",
            old='"b t (h n) -> b t h n"',
            new='"b t (n h) -> b t h n"',
        ),
    ),
    judge=judge_layer,
)

EXERCISES = [BYTES, MULTI_QUERY, MASK, CROSSOVER, FIND_BUG, LAYER]
