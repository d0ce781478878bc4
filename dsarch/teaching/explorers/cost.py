"""The cost explorer: what a decoded token costs, dense and sparse."""

from dsarch.analysis import count, sparse
from dsarch.config import Config
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "find the context from which sparse attention is cheaper; then raise the "
    "batch and watch whether weights or caches are most of what is read."
)
NAMES = (
    "heads",
    "latent",
    "rotary",
    "indexHeads",
    "indexWidth",
    "latentBytes",
    "indexBytes",
)


def sizes(cfg: Config) -> list[int]:
    """The sizes that decide attention's cost, in the order of ``NAMES``."""
    latent, index = count.fp8_bytes_per_token(cfg)
    layers = cfg.num_hidden_layers
    return [
        cfg.num_attention_heads,
        *cfg.kv_widths,
        cfg.index_n_heads,
        cfg.index_head_dim,
        latent // layers,
        index // layers,
    ]


def config(
    heads: int, latent: int, rotary: int, index_heads: int, index_width: int
) -> Config:
    """An attention layer of these sizes."""
    return Config(
        num_hidden_layers=1,
        num_attention_heads=heads,
        kv_lora_rank=latent,
        qk_rope_head_dim=rotary,
        index_n_heads=index_heads,
        index_head_dim=index_width,
        index_topk=2048,
    )


def pair_flops(*widths: int) -> list[int]:
    """FLOP of attention and of the indexer for one query and one key."""
    return list(sparse.pair_flops(config(*widths)))


def attention_flops(*given: int) -> list[int]:
    """Dense and sparse, for one token in one layer."""
    *widths, k, context = given
    cfg = config(*widths).replace(index_topk=k)
    return [
        sparse.attention_flops(cfg, context, sparse=kind)
        for kind in (False, True)
    ]


def even(*given: int) -> float:
    """The context from which sparse attention needs fewer FLOP."""
    *widths, k = given
    return sparse.even(config(*widths).replace(index_topk=k))


def step(k: int, context: int, batch: int) -> list[float]:
    """FLOP and bytes of a step of V3.2: dense, then sparse."""
    cfg = Config.v3_2().replace(index_topk=k)
    found = [
        sparse.step(cfg, context, batch, sparse=kind) for kind in (False, True)
    ]
    return [number for cost in found for number in cost]


def model() -> dict[str, float]:
    """What a step of V3.2 needs besides its attention."""
    cfg = Config.v3_2()
    active = count.active_groups(cfg)
    routed = active.pop("routed experts")
    return {
        "layers": cfg.num_hidden_layers,
        "active": count.parameters(cfg)[1],
        "always": sum(active.values()),
        "expert": routed // cfg.num_experts_per_tok,
        "experts": cfg.n_routed_experts,
        "chosen": cfg.num_experts_per_tok,
    }


def step_of(model: dict, sizes: list, *given: int) -> list[float]:
    """:func:`step`, called as the page calls it."""
    return step(*given)


def _checks(found: list[int]) -> list[Check]:
    checks: list[Check] = [("pairFlops", found[:5], pair_flops(*found[:5]))]
    for context in (1_000, 2_048, 32_768, 131_072):
        args = [*found[:5], 2048, context]
        checks.append(("attentionFlops", args, attention_flops(*args)))
        for batch in (1, 64):
            given = [model(), found, 2048, context, batch]
            checks.append(("step", given, step(2048, context, batch)))
    args = [*found[:5], 2048]
    checks.append(("even", args, even(*args)))
    return checks


def _rows(found: list[int]) -> list[tuple[str, str, str, str]]:
    rows = []
    for context in (2_048, 8_192, 32_768, 131_072):
        dense, few = attention_flops(*found[:5], 2048, context)
        rows.append(
            (
                f"{context:,}",
                f"{dense / 1e9:.2f}",
                f"{few / 1e9:.2f}",
                f"{dense / few:.2f}",
            )
        )
    return rows


def cost(*, context: int = 131_072, k: int = 2048, batch: int = 1) -> Explorer:
    """Dense and sparse decoding of V3.2 for any context, k and batch.

    A context, k or batch below 1 raises ``ValueError``.
    """
    if min(context, k, batch) < 1:
        raise ValueError(
            f"context {context}, k {k} and batch {batch} start at 1"
        )
    found = sizes(Config.v3_2())
    return Explorer(
        "cost",
        {
            "sizes": found,
            "model": model(),
            "context": context,
            "k": k,
            "batch": batch,
        },
        title="What does a token of DeepSeek-V3.2 cost?",
        columns=["context", "dense, GFLOP per layer", "sparse", "ratio"],
        rows=_rows(found),
        checks=_checks(found),
        hint=HINT,
    )
