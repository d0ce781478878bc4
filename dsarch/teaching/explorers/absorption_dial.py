"""The absorption dial: FLOP, bytes and time of MLA's orders of evaluation."""

from dsarch.analysis import decode
from dsarch.analysis.decode import Cost
from dsarch.analysis.presets import MACHINES, Machine
from dsarch.config import Config
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "one query, then 256: the winner changes. Take 8 heads, as after an "
    "eightfold tensor-parallel split: when is absorbing limited by arithmetic?"
)
ORDERS = {
    "expanded": decode.expanded,
    "reexpanding": decode.reexpanding,
    "absorbed": decode.absorbed,
}
NAMES = ("DeepSeek-V2-Lite", "DeepSeek-V2", "DeepSeek-V3")


def config(heads: int, nope: int, rope: int, value: int, latent: int) -> Config:
    """A config with these attention sizes."""
    return Config(
        num_attention_heads=heads,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
        kv_lora_rank=latent,
    )


def order(name: str, sizes: list[int], context: int, queries: int) -> Cost:
    """The cost of one order with BF16 numbers for these five sizes."""
    return ORDERS[name](config(*sizes), context, queries)


def crossover(nope: int, value: int, latent: int, context: int) -> float:
    """Queries per step from which re-expanding needs fewer FLOP."""
    return decode.crossover_queries(config(1, nope, 2, value, latent), context)


def roofline(flops: int, size: float, rate: float, bandwidth: float) -> float:
    """Seconds on a machine with these peak rates."""
    return Cost(flops, size).seconds(Machine("", rate, bandwidth, ""))


def _sizes(cfg: Config) -> list[int]:
    heads, latent = cfg.num_attention_heads, cfg.kv_lora_rank
    return [heads, *cfg.qk_widths, cfg.v_head_dim, latent]


def _models() -> list[dict[str, str | int]]:
    keys = ("heads", "nope", "rope", "value", "latent")
    configs = (Config.v2_lite(), Config.v2(), Config.v3())
    return [
        {"name": name, **dict(zip(keys, _sizes(cfg), strict=True))}
        for name, cfg in zip(NAMES, configs, strict=True)
    ]


def _checks() -> list[Check]:
    sizes = _sizes(Config.v3())
    checks: list[Check] = []
    for context in (1_024, 32_768, 131_072):
        for name in ORDERS:
            args = [*sizes, context, 4, 2]
            checks.append((name, args, order(name, sizes, context, 4)))
        near = [*sizes[1:2], *sizes[3:], context]
        checks.append(("crossover", near, crossover(*near)))
    return checks


def _rows(context: int) -> list[tuple[str, ...]]:
    return [
        (name, f"{cost.flops:,}", f"{cost.bytes:,}")
        for name in ORDERS
        for cost in [order(name, _sizes(Config.v3()), context, 1)]
    ]


def absorption_dial(
    *, context: int = 32_768, queries: int = 1, model: str = "DeepSeek-V3"
) -> Explorer:
    """Three ways to evaluate the same attention, on any machine.

    ``model`` is one of V2-Lite, V2 and V3, else ``ValueError``.
    """
    if model not in NAMES:
        raise ValueError(f"model {model!r} is none of {NAMES}")
    return Explorer(
        "absorption_dial",
        {
            "models": _models(),
            "machines": [m._asdict() for m in MACHINES],
            "start": NAMES.index(model),
            "context": context,
            "queries": queries,
        },
        title="Expand the latent, or absorb the projection?",
        columns=["order", "FLOP per layer", "bytes per layer"],
        rows=_rows(context),
        checks=_checks(),
        hint=HINT,
    )
