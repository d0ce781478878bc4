"""The routing explorer: recorded training steps, and one token's router."""

import json
from functools import cache
from typing import Any

import torch

from dsarch.balance import balance
from dsarch.config import Config
from dsarch.router import Routing, group_scores, limit_to_groups, route
from dsarch.teaching.explorers.base import Check, Explorer
from dsarch.teaching.pages import root

HINT = (
    "play the steps without balancing, then with each bias; follow a token "
    "and see in which step the bias changes its experts."
)
NAMES = {
    "nothing": "nothing",
    "loss": "a loss, α = {}",
    "bias": "the bias, γ = {}",
}


@cache
def recorded() -> dict[str, Any]:
    """What ``python -m benchmarks.balance`` wrote, command and seeds inside.

    ``FileNotFoundError`` where the package stands without the book.
    """
    path = root() / "chapters" / "data" / "balance.json"
    return json.loads(path.read_text(encoding="utf8"))


def label(method: str) -> str:
    """The name of a recorded method, as a reader sees it."""
    kind, _, strength = method.partition(" ")
    return NAMES[kind].format(strength)


def _config(
    experts: int, groups: int, keep: int, k: int, scale: float
) -> Config:
    return Config(
        n_routed_experts=experts,
        n_group=groups,
        topk_group=keep,
        num_experts_per_tok=k,
        routed_scaling_factor=scale,
    )


def _routed(
    scores: list, bias: list, groups: int, keep: int, k: int, scale: float
) -> Routing:
    cfg = _config(len(scores), groups, keep, k, scale)
    s, b = (torch.tensor([x], dtype=torch.float64) for x in (scores, bias))
    return route(s, b, cfg)


def worth(scores: list, bias: list, groups: int) -> list[float]:
    """What each group is worth to a token."""
    choice = torch.tensor([scores], dtype=torch.float64)
    choice = choice + torch.tensor(bias, dtype=torch.float64)
    return group_scores(choice, groups, 2)[0].tolist()


def kept(scores: list, bias: list, groups: int, keep: int) -> list[int]:
    """The groups that stay open."""
    choice = torch.tensor([scores], dtype=torch.float64)
    choice = choice + torch.tensor(bias, dtype=torch.float64)
    open_ = limit_to_groups(choice, groups, keep, 2).isfinite()
    return open_.view(groups, -1)[:, 0].nonzero()[:, 0].tolist()


def chosen(
    scores: list, bias: list, groups: int, keep: int, k: int
) -> list[int]:
    """The experts of one token, in order of their numbers."""
    routing = _routed(scores, bias, groups, keep, k, 1.0)
    return routing.experts[0].sort().values.tolist()


def weights(
    scores: list, bias: list, groups: int, keep: int, k: int, scale: float
) -> list[float]:
    """Their weights in the same order."""
    routing = _routed(scores, bias, groups, keep, k, scale)
    order = routing.experts[0].argsort()
    return routing.weights[0][order].tolist()


def violation(counts: list[int]) -> float:
    """How far the busiest expert is above the even load."""
    return balance(torch.tensor(counts)).max_violation


def moments(record: dict) -> list[dict]:
    """The recorded steps that are shown; all of them would be too large."""
    return [shot for shot in record["steps"] if shot["step"] != 5]


def base36(count: int) -> str:
    """A count below 1,296 in two letters or digits."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return letters[count // 36] + letters[count % 36]


def _method(name: str, record: dict) -> dict[str, Any]:
    shots = [
        {
            "bias": shot["bias"],
            "loads": "".join(map(base36, sum(shot["loads"], []))),
            "scores": "".join(f"{x:04}" for row in shot["scores"] for x in row),
        }
        for shot in moments(record)
    ]
    curves = {
        key: [round(x, 2) for x in record[key]]
        for key in ("violation", "excess")
    }
    return {"name": label(name), "steps": shots, **curves}


def _checks(found: dict, sizes: tuple) -> list[Check]:
    checks: list[Check] = []
    for records in found["methods"].values():
        for shot in records[0]["steps"][::4]:
            counts = torch.tensor(shot["loads"]).sum(0).tolist()
            checks.append(("violation", [counts], violation(counts)))
    shot = found["methods"]["bias 0.01"][0]["steps"][-1]
    for row in shot["scores"]:
        given = [[x / 1e4 for x in row], shot["bias"], *sizes[:3]]
        checks.append(("chosen", given, chosen(*given)))
    given = [*given, sizes[3]]
    checks.append(("weights", given, weights(*given)))
    return checks


def _rows(found: dict) -> list[tuple[str, str, str]]:
    rows = []
    for name, records in found["methods"].items():
        end = records[0]["final"]
        above = end["loss"]["all"] - end["floor"]["all"]
        rows.append((label(name), f"{end['violation']:.2f}", f"{above:.3f}"))
    return rows


def routing() -> Explorer:
    """Loads of recorded runs by expert, group and token; the V3 router.

    Runs of seed 0 of every method. ``FileNotFoundError`` without the book.
    """
    found = recorded()
    first = found["methods"]["nothing"][0]
    methods = [_method(n, rs[0]) for n, rs in found["methods"].items()]
    cfg = Config()
    sizes = (cfg.n_group, cfg.topk_group, cfg.num_experts_per_tok)
    return Explorer(
        "routing",
        {
            "methods": methods,
            "kept": [shot["step"] for shot in moments(first)],
            "every": found["every"],
            "domains": found["domains"],
            "tokens": found["tokens"],
            **dict(zip(("groups", "keep", "k"), sizes, strict=True)),
            "scale": cfg.routed_scaling_factor,
        },
        title="Where do tokens go while a mixture is trained?",
        columns=["balanced by", "MaxVio at the end", "loss above the floor"],
        rows=_rows(found),
        checks=_checks(found, (*sizes, cfg.routed_scaling_factor)),
        hint=HINT,
    )
