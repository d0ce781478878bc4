"""The rotation explorer: positions as turning pairs, and YaRN."""

import torch
from torch import Tensor

from dsarch import rope
from dsarch.config import Config, Yarn
from dsarch.teaching.explorers.base import Check, Explorer

HINT = (
    "play with steps of 256 tokens and watch the slow pairs; set the factor "
    "to 1; look at the distance with the key 64 and 4,000 tokens back."
)


def yarn(factor: float, window: int, fast: float, slow: float) -> Yarn:
    """YaRN with these four numbers."""
    return Yarn(
        factor=factor,
        original_max_position_embeddings=window,
        beta_fast=fast,
        beta_slow=slow,
    )


def plain(width: int, theta: float) -> list[float]:
    """Radians per token of each pair, without YaRN."""
    return rope.frequencies(width, theta).tolist()


def stretched(
    width: int,
    theta: float,
    factor: float,
    window: int,
    fast: float,
    slow: float,
) -> list[float]:
    """Radians per token of each pair, with YaRN."""
    found = yarn(factor, window, fast, slow)
    return rope.frequencies(width, theta, found).tolist()


def ramp_range(
    width: int, theta: float, window: int, fast: float, slow: float
) -> list[float]:
    """First and last pair of the ramp."""
    found = yarn(1.0, window, fast, slow)
    return list(rope.correction_range(width, theta, found))


def softmax_scale(width: int, nope: int, factor: float, weight: float) -> float:
    """What DeepSeek multiplies every logit with."""
    found = Yarn(factor=factor, mscale_all_dim=weight)
    return (width + nope) ** -0.5 * rope.softmax_factor(found)


def _turned(
    x: list[float], position: int, speeds: list[float], interleaved: bool
) -> Tensor:
    angle = position * torch.tensor(speeds, dtype=torch.float64)
    phase = torch.polar(torch.ones_like(angle), angle)
    row = torch.tensor(x, dtype=torch.float64)
    return rope.rotate(row[None, None], phase[None, None], interleaved)[0, 0]


def rotate(
    x: list[float], position: int, speeds: list[float], interleaved: bool
) -> list[float]:
    """``x`` turned to ``position``, in fp64."""
    return _turned(x, position, speeds, interleaved).tolist()


def score(
    query: list[float],
    key: list[float],
    at: int,
    behind: int,
    speeds: list[float],
    interleaved: bool,
) -> float:
    """The dot product of a query and a key, each at its own position."""
    q = _turned(query, at, speeds, interleaved)
    return float(q @ _turned(key, behind, speeds, interleaved))


def _vectors() -> list[list[float]]:
    drawn = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    return [[round(x, 3) for x in row] for row in drawn.tolist()]


def _checks(cfg: Config, found: Yarn) -> list[Check]:
    width, theta = cfg.qk_rope_head_dim, cfg.rope_theta
    window = found.original_max_position_embeddings
    betas = (found.beta_fast, found.beta_slow)
    speeds = (width, theta, found.factor, window, *betas)
    bounds = (width, theta, window, *betas)
    logits = (width, cfg.qk_nope_head_dim, found.factor, found.mscale_all_dim)
    turned = (_vectors()[0][:8], 77, plain(8, theta), True)
    return [
        ("plain", [width, theta], plain(width, theta)),
        ("stretched", [*speeds], stretched(*speeds)),
        ("range", [*bounds], ramp_range(*bounds)),
        ("softmaxScale", [*logits], softmax_scale(*logits)),
        ("rotate", [*turned], rotate(*turned)),
    ]


def _start(cfg: Config, found: Yarn) -> dict[str, object]:
    query, key = _vectors()
    return {
        "width": cfg.qk_rope_head_dim,
        "theta": cfg.rope_theta,
        "factor": found.factor,
        "window": found.original_max_position_embeddings,
        "fast": found.beta_fast,
        "slow": found.beta_slow,
        "weight": found.mscale_all_dim,
        "nope": cfg.qk_nope_head_dim,
        "query": query,
        "key": key,
    }


def rotation(cfg: Config | None = None) -> Explorer:
    """Turning pairs, YaRN's speeds, scores by distance and both layouts.

    Starts with the sizes of ``cfg``, by default V3's; ``ValueError`` if it
    has no ``rope_scaling``.
    """
    cfg = Config.v3() if cfg is None else cfg
    found = cfg.rope_scaling
    if found is None:
        raise ValueError("the config has no rope_scaling to explore")
    width, theta = cfg.qk_rope_head_dim, cfg.rope_theta
    after = rope.frequencies(width, theta, found).tolist()
    pairs = zip(plain(width, theta), after, strict=True)
    return Explorer(
        "rotation",
        _start(cfg, found),
        title="Positions as rotating pairs",
        columns=["pair", "radians per token", "with YaRN"],
        rows=[(m, f"{a:.6g}", f"{b:.6g}") for m, (a, b) in enumerate(pairs)],
        checks=_checks(cfg, found),
        hint=HINT,
    )
