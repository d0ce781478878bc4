"""Walk 3: three tokens are drafted, two hold."""

import importlib

import torch
from torch import Tensor

from dsarch import sampling
from dsarch.analysis.watch import Moment, watch
from dsarch.sampling import Sampling
from dsarch.teaching.walks.base import (
    Check,
    Grid,
    Run,
    Stage,
    Walk,
    grid,
    letter,
    letters,
    model,
    prompt,
    steady,
)

TEXT, SEED, DRAFTS = "A fox ", 1, 3
# A token below this chance is not worth a column.
LEAST = 0.004
# The package's own name `generate` is the function.
generating = importlib.import_module("dsarch.generate")


def functions() -> list:
    """The watched functions as they are now."""
    return [
        generating.speculate,
        generating.draft,
        sampling.verify,
        sampling.residual,
    ]


def record(seed: int = SEED) -> tuple[list[Tensor], list[Moment]]:
    """The first pieces, with the round that makes the second one."""
    chance = Sampling(1.0, generator=torch.Generator().manual_seed(seed))
    with watch(*functions()) as moments:
        pieces = generating.speculate(model(), prompt(TEXT), chance, DRAFTS)
        found = [next(pieces) for _ in range(3)]
        pieces.close()
    return found, moments


def _likely(name: str, chances: Tensor, rows: list[str]) -> Grid:
    """The tokens that matter in a few distributions, at most six."""
    peak, order = chances.max(0).values.sort(descending=True, stable=True)
    tokens = order[peak > LEAST][:6].tolist()
    table = chances[:, tokens]
    named = [f"“{letter(token)}”" for token in tokens]
    best = [[i, int(row.argmax())] for i, row in enumerate(table)]
    return grid(name, table, rows, named, digits=3, marks=best)


def _places(count: int) -> list[str]:
    return [f"place {place}" for place in range(1, count + 1)]


def speculation() -> Walk:
    """One speculative round of the tiny model with its MTP layer."""
    _, moments = record()
    run = Run("speculation", moments, 0)
    drafts, q = _drafted(run)
    p = run.at("speculate", "p").values["p"]
    chosen = drafts[..., None]
    ps = p[:, :DRAFTS].gather(-1, chosen).flatten().tolist()
    qs = q.gather(-1, chosen).flatten().tolist()
    checks: list[Check] = [
        ("keep", [steady(a), steady(b)], steady(min(1.0, a / b)))
        for a, b in zip(ps, qs, strict=True)
    ]
    return Walk(
        "speculation",
        "One speculative round",
        "compare p and q at the refused place, then look at what is left "
        "after q is taken away from p.",
        functions(),
        [*_proposed(run), *_judged(run), *_settled(run)],
        checks,
    )


def _proposed(run: Run) -> list[Stage]:
    made, seen = run.at("draft", "return"), run.at("speculate", "p")
    drafts, q = made.values["return"]
    names = "".join(letters(drafts))
    proposed = _likely("q, the drafter", q[0], _places(DRAFTS))
    p = seen.values["p"][0]
    judged = _likely("p, the model", p, _places(DRAFTS + 1))
    told = f"After “A fox s” the drafter proposes “{names}”."
    places = f"One pass, {DRAFTS + 1} distributions."
    return [
        run.stage("draft", made, [proposed], told),
        run.stage("pass", seen, [judged], places),
    ]


def _drafted(run: Run) -> tuple[Tensor, Tensor]:
    return run.at("draft", "return").values["return"]


def _judged(run: Run) -> list[Stage]:
    named = [f"“{name}”" for name in letters(_drafted(run)[0])]
    found = [run.at("verify", key) for key in ("ratio", "u", "kept", "good")]
    ratio, u, kept = (
        m.values[k] for m, k in zip(found, ("ratio", "u", "kept"), strict=False)
    )
    good = found[3].values["good"]

    def row(name: str, x: Tensor) -> list[Grid]:
        return [grid(name, x, ["draft"], named, digits=3)]

    least = int(ratio[0].argmin())
    doubt = f"Draft {least + 1} is the doubtful one: {ratio[0, least]:.4f}."
    luck = f"From {float(u.min()):.3f} to {float(u.max()):.3f}, by chance."
    return [
        run.stage("ratio", found[0], row("p / q", ratio), doubt),
        run.stage("coin", found[1], row("u", u), luck),
        run.stage(
            "kept", found[2], row("kept", kept), f"{good} of {DRAFTS} are kept."
        ),
    ]


def _settled(run: Run) -> list[Stage]:
    left, end = run.at("residual", "return"), run.at("verify", "return")
    cut = run.at("speculate", "hidden", 2)
    good = run.at("verify", "good").values["good"]
    piece, rest = end.values["return"], left.values["return"][0]
    text = "".join(letters(piece))
    named = [f"“{name}”" for name in letters(piece)]
    p, q = run.at("speculate", "p").values["p"], _drafted(run)[1]
    rows = torch.cat([p[0, good : good + 1], q[0, good : good + 1], rest])
    total = f"All that is left adds up to {float(rest.sum()):.3f}."
    row = grid("token", piece, ["number"], named, digits=0)
    states = cut.values["hidden"][0]
    names = _places(len(states))
    told = f"One pass of the model gave {good + 1} tokens: “{text}”."
    return [
        run.stage(
            "residual",
            left,
            [_likely(f"place {good + 1}", rows, ["p", "q", "left of p"])],
            total,
        ),
        run.stage("piece", end, [row], told),
        run.stage(
            "forget",
            cut,
            [grid("states kept", states, names)],
            f"{len(states)} states of {DRAFTS + 1} stay.",
        ),
    ]
