"""Scaling laws: how to spend a budget of compute, by three fits."""

from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.train import scaling
from dsarch.train.scaling import Chinchilla

HINT = (
    "Gopher's budget of 5.76 · 10²³ FLOP: one formula, three fits, and from "
    "18 to 93 tokens per parameter. Then V3's: 3.3 · 10²⁴."
)
LAWS = {
    "as printed": scaling.CHINCHILLA_PRINTED,
    "TeX exponents": scaling.CHINCHILLA_TEX,
    "refitted": scaling.CHINCHILLA_REFITTED,
}


def loss(n: float, d: float, constants: list[float]) -> float:
    """The loss of a model of ``n`` parameters after ``d`` tokens."""
    return Chinchilla(*constants).loss(n, d)


def optimum(flops: float, constants: list[float]) -> list[float]:
    """Parameters and tokens of least loss."""
    return list(Chinchilla(*constants).optimum(flops))


def hours(flops: float, peak: float, share: float) -> float:
    """Device hours at a share of the peak rate."""
    return flops / (peak * share) / 3600


def _checks() -> list[Check]:
    checks: list[Check] = []
    for law in LAWS.values():
        for flops in (1e19, 5.76e23):
            checks.append(
                ("optimum", [flops, list(law)], optimum(flops, list(law)))
            )
        args = [7e10, 1.4e12, list(law)]
        checks.append(("loss", args, loss(7e10, 1.4e12, list(law))))
    for flops in (1e18, 1e22):
        checks.append(("deepseekRate", [flops], scaling.deepseek_rate(flops)))
        checks.append(("deepseekBatch", [flops], scaling.deepseek_batch(flops)))
        found = list(scaling.deepseek_optimum(flops))
        checks.append(("deepseekOptimum", [flops], found))
    checks.append(("hours", [3e24, 1e15, 0.35], hours(3e24, 1e15, 0.35)))
    return checks


def _rows(flops: float) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, law in LAWS.items():
        n, d = law.optimum(flops)
        cells = f"{n / 1e9:.1f}B", f"{d / 1e12:.2f}T", f"{d / n:.1f}"
        rows.append((name, *cells, f"{law.loss(n, d):.3f}"))
    return rows


def scaling_planner(flops: float = 5.76e23) -> Explorer:
    """Size and tokens for a budget; ``ValueError`` outside 1e15 to 1e27."""
    if not 1e15 <= flops <= 1e27:
        raise ValueError(f"a budget between 1e15 and 1e27, found {flops}")
    return Explorer(
        "scaling_planner",
        {
            "flops": flops,
            "laws": [
                {"name": name, "constants": list(law)}
                for name, law in LAWS.items()
            ],
        },
        title="Spend a budget of compute",
        columns=["fit", "parameters", "tokens", "tokens / parameter", "loss"],
        rows=_rows(flops),
        checks=_checks(),
        hint=HINT,
    )
