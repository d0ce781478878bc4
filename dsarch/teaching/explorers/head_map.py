"""The head-sharing explorer: which KV head does a query head read?"""

from dsarch.analysis import count
from dsarch.attention import head_map as reads
from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.teaching.explorers.kv_cache import model

HINT = (
    "walk through the heads with the arrow keys; set G = H and G = 1; then "
    "G = 6 for 32 query heads."
)


def kv_head(query: int, heads: int, kv_heads: int) -> int:
    """The KV head that query head ``query`` reads."""
    return int(reads(heads, kv_heads)[query])


def sharers(query: int, heads: int, kv_heads: int) -> list[int]:
    """All query heads that read the same KV head as ``query``."""
    found = reads(heads, kv_heads)
    return (found == found[query]).nonzero()[:, 0].tolist()


def cache_bytes(kv_heads: int, head_dim: int, layers: int, size: int) -> float:
    """Bytes of one token of any grouped-query attention."""
    sizes = model("GQA", layers, kv_heads, kv_heads, head_dim, 0, 0)
    return count.kv_bytes_per_token(sizes, size)


def head_map(
    heads: int = 32,
    kv_heads: int = 8,
    *,
    head_dim: int = 128,
    layers: int = 32,
    query: int = 13,
) -> Explorer:
    """Query heads above the KV head that they share; first a Llama-3.1-8B.

    ``ValueError`` if ``kv_heads`` does not divide ``heads``, or without a
    head ``query``.
    """
    reads(heads, kv_heads)
    if not 0 <= query < heads:
        raise ValueError(f"no query head {query} among {heads}")
    shared = [(q, heads, kv_heads) for q in range(0, heads, 3)]
    checks: list[Check] = [("kvHead", [*a], kv_head(*a)) for a in shared]
    checks += [("sharers", [*a], sharers(*a)) for a in shared]
    sizes = {"heads": heads, "kvHeads": kv_heads, "headDim": head_dim}
    return Explorer(
        "head_map",
        {**sizes, "layers": layers, "element": 2, "query": query},
        title="Which key-value head does a query head read?",
        columns=["KV head", "read by query heads"],
        rows=_rows(heads, kv_heads),
        checks=checks,
        hint=HINT,
    )


def _rows(heads: int, kv_heads: int) -> list[tuple[str, str]]:
    firsts = range(0, heads, heads // kv_heads)
    shared = [sharers(first, heads, kv_heads) for first in firsts]
    return [(f"KV {g}", ", ".join(map(str, s))) for g, s in enumerate(shared)]
