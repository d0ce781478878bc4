"""Walk 1: one token is decoded, the absorbed way, with a cache."""

import torch
from torch import Tensor

from dsarch import mla
from dsarch.analysis.watch import Moment, watch
from dsarch.teaching.walks.base import (
    Check,
    Grid,
    Run,
    Stage,
    Walk,
    grid,
    heads,
    letters,
    model,
    prompt,
    steady,
)

TEXT, LAYER = "The fox ", 2


def functions() -> list:
    """The watched functions as they are now."""
    kind = mla.MLA
    return [kind.forward, kind.queries, kind.memories, mla.absorbed]


@torch.no_grad()
def record() -> tuple[Tensor, list[Moment]]:
    """Prefill all but the last token, then watch that one."""
    tokens = prompt(TEXT)
    caches = model().caches()
    model()(tokens[:, :-1], caches)
    with watch(*functions()) as moments:
        model()(tokens[:, -1:], caches)
    return tokens, moments


def _per_head(name: str, moment: Moment, key: str) -> Grid:
    values = moment.values[key][0, 0]
    return grid(name, values, heads(len(values)))


def _scores(name: str, moment: Moment, key: str, names: list[str]) -> Grid:
    values = moment.values[key][0, :, 0]
    best = [[head, int(row.argmax())] for head, row in enumerate(values)]
    return grid(name, values, heads(len(values)), names, most=9, marks=best)


def attention() -> Walk:
    """One decode step of MLA in the third layer of the tiny model."""
    tokens, moments = record()
    run, names = Run("attention", moments, LAYER), letters(tokens)
    score = run.at("absorbed", "score", 1).values["score"][0, :, 0]
    p = run.at("absorbed", "p").values["p"][0, :, 0]
    rows = zip(score.tolist(), p.tolist(), strict=True)
    checks: list[Check] = [("softmax", [steady(s)], steady(r)) for s, r in rows]
    return Walk(
        "attention",
        "One decode step of MLA",
        "walk to the softmax and see which letter each head reads; then go "
        "back to the cache: where are the keys?",
        functions(),
        [
            *_inputs(run, names),
            *_scored(run, names),
            *_mixed(run, names),
            *_outputs(run),
        ],
        checks,
    )


def _inputs(run: Run, names: list[str]) -> list[Stage]:
    q, c = run.at("MLA.forward", "q"), run.at("MLA.memories", "return")
    kept = run.at("MLA.forward", "c", 1)
    latent, rope = (x[0] for x in c.values["return"])
    count, width = q.values["q"].shape[2:]
    said = f"{count} heads ask, each with {width} content numbers."
    last = names[-1:]
    left = [grid("latent c", latent, last), grid("turned key", rope, last)]
    each = latent.size(1) + rope.size(1)
    rows = grid("latents in the cache", kept.values["c"][0], names)
    held = f"{len(names)} rows, {len(names) * each} numbers with turned keys."
    return [
        run.stage("queries", q, [_per_head("content query", q, "q")], said),
        run.stage("memory", c, left, f"{each} numbers for this token."),
        run.stage("cache", kept, [rows], held),
    ]


def _scored(run: Run, names: list[str]) -> list[Stage]:
    q, score = run.at("absorbed", "q", 1), run.at("absorbed", "score")
    both = run.at("absorbed", "score", 1)
    width = q.values["q"].size(3)
    wide = f"Each query is now as wide as the latent: {width} numbers."
    content = [_scores("score by content", score, "score", names)]
    joined = [_scores("score", both, "score", names)]
    marks = [sum(g.marks, []) for g in (*content, *joined)]
    moved = sum(a != b for a, b in zip(*marks, strict=True))
    change = f"The highest score has moved in {moved} of 4 heads."
    return [
        run.stage("absorb", q, [_per_head("absorbed query", q, "q")], wide),
        run.stage("content", score, content, "Each head's highest is marked."),
        run.stage("position", both, joined, change),
    ]


def _mixed(run: Run, names: list[str]) -> list[Stage]:
    p, o = run.at("absorbed", "p"), run.at("absorbed", "o")
    share = p.values["p"][0, :, 0]
    head, key = divmod(int(share.argmax()), share.size(1))
    most = (
        f"Head {head} gives {share[head, key]:.1%} to “{names[key]}”, "
        f"position {key}."
    )
    read = "The cache was read twice, and no key or value was built."
    shares = [_scores("share of attention", p, "p", names)]
    return [
        run.stage("softmax", p, shares, most),
        run.stage("mix", o, [_per_head("mixed latent", o, "o")], read),
    ]


def _outputs(run: Run) -> list[Stage]:
    v, out = run.at("absorbed", "return"), run.at("MLA.forward", "return")
    made, joined = v.values["return"], out.values["return"]
    said = f"{made.size(3)} numbers for each head."
    left = [grid("output", joined[0], ["␣"])]
    return [
        run.stage("values", v, [_per_head("head output", v, "return")], said),
        run.stage("output", out, left, f"{joined.size(2)} numbers leave."),
    ]
