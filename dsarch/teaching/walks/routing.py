"""Walk 2: one token and its experts."""

import torch
from torch import Tensor

from dsarch import router
from dsarch.analysis.trace import trace
from dsarch.analysis.watch import Moment, watch
from dsarch.teaching.walks.base import (
    Check,
    Grid,
    Run,
    Stage,
    Walk,
    grid,
    model,
    prompt,
    steady,
)

TEXT, GATE = "The fox ", "model.layers.1.mlp.gate"


def functions() -> list:
    """The watched functions as they are now."""
    return [
        router.gate_logits,
        router.affinities,
        router.route,
        router.group_scores,
        router.limit_to_groups,
    ]


def last_state() -> Tensor:
    """What the last token of the text brings to the router."""
    with torch.no_grad(), trace(model(), GATE, inputs=True) as seen:
        model()(prompt(TEXT))
    return seen[f"{GATE}.input.0"][-1:]


def record() -> list[Moment]:
    """The router of the second layer decides about one token."""
    x = last_state()
    with torch.no_grad(), watch(*functions()) as moments:
        model().get_submodule(GATE)(x)
    return moments


def _experts(name: str, values: Tensor, marks: list[int] | None = None) -> Grid:
    """Sixteen experts, one row for each group."""
    count = model().cfg.n_group
    table = values.reshape(count, -1)
    size = table.size(1)
    columns = [f"+{place}" for place in range(size)]
    rows = [f"experts {size * group} +" for group in range(count)]
    places = [list(divmod(expert, size)) for expert in marks or []]
    return grid(name, table, rows, columns, digits=3, marks=places)


def routing() -> Walk:
    """One decision of the router in the second layer of the tiny model."""
    run = Run("routing", record(), 0)
    scores = run.at("affinities", "return").values["return"][0]
    logits = run.at("affinities", "u").values["u"][0]
    pairs = zip(logits.tolist(), scores.tolist(), strict=True)
    checks: list[Check] = [
        ("sigmoid", [steady(u)], steady(s)) for u, s in pairs
    ]
    return Walk(
        "routing",
        "One decision of the router",
        "find the closed expert whose biased score is higher than that of an "
        "expert who was chosen.",
        functions(),
        [*_scoring(run), *_choosing(run), *_weighing(run)],
        checks,
    )


def _scoring(run: Run) -> list[Stage]:
    u, s = run.at("affinities", "u"), run.at("affinities", "return")
    choice = run.at("route", "choice")
    scores, biased = s.values["return"][0], choice.values["choice"][0]
    moved = biased - scores
    best, most = int(scores.argmax()), int(moved.argmax())
    count = f"{len(scores)} experts, one number each."
    suits = f"Expert {best} suits best: {scores[best]:.3f}."
    gains = f"Expert {most} gains most: {moved[most]:+.3f}."
    return [
        run.stage("logits", u, [_experts("logit", u.values["u"][0])], count),
        run.stage("scores", s, [_experts("score", scores, [best])], suits),
        run.stage("bias", choice, [_experts("biased score", biased)], gains),
    ]


def _choosing(run: Run) -> list[Stage]:
    worth = run.at("group_scores", "return")
    closed, chosen = run.at("limit_to_groups", "return"), _chosen(run)
    experts = chosen.values["experts"][0].tolist()
    groups, left = worth.values["return"], closed.values["return"][0]
    kept = groups[0].topk(model().cfg.topk_group).indices.tolist()
    marks = [[0, group] for group in kept]
    names = [f"group {group}" for group in range(groups.size(1))]
    sums = grid("best two", groups, ["sum"], names, digits=3, marks=marks)
    open_ = f"{int(left.isfinite().sum())} of {len(left)} experts are left."
    said = f"Experts {', '.join(map(str, experts))} are chosen."
    stay = f"Groups {kept[0]} and {kept[1]} stay open."
    return [
        run.stage("groups", worth, [sums], stay),
        run.stage("closed", closed, [_experts("may be chosen", left)], open_),
        run.stage("chosen", chosen, [_experts("chosen", left, experts)], said),
    ]


def _chosen(run: Run) -> Moment:
    return run.at("route", "experts")


def _weighing(run: Run) -> list[Stage]:
    experts = _chosen(run).values["experts"][0].tolist()
    names = [f"expert {expert}" for expert in experts]
    bare, even = (run.at("route", "weights", nth) for nth in (0, 1))
    end = run.at("route", "return")
    found = {
        "weights": (bare, bare.values["weights"]),
        "shares": (even, even.values["weights"]),
        "scaled": (end, end.values["return"].weights),
    }
    return [
        run.stage(
            key,
            moment,
            [grid("weight", values, ["g"], names, digits=3)],
            f"They add up to {float(values.sum()):.3f}.",
        )
        for key, (moment, values) in found.items()
    ]
