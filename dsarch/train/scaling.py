r"""Scaling laws with their sources, and fits of our own runs.

Compute $C$ is in FLOPs, parameters $N$ and tokens $D$ are counts, losses are
nats per token.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Number = int | float
PF_DAY = 1e15 * 24 * 3600


def kaplan_loss(parameters: Number, tokens: Number) -> float:
    r"""$L(N, D) = [(N_c/N)^{\alpha_N/\alpha_D} + D_c/D]^{\alpha_D}$.

    $N$ leaves the embedding out. Source: Kaplan et al. 2020, eq. 1.5 with the
    constants of the joint fit, table 2.
    """
    capacity = (6.4e13 / parameters) ** (0.076 / 0.103)
    return (capacity + 1.8e13 / tokens) ** 0.103


def kaplan_compute_loss(flops: Number) -> float:
    r"""$L(C) = (C_c/C)^{0.050}$ with $C_c$ = 3.1e8 PF-days (eq. 1.3)."""
    return (3.1e8 * PF_DAY / flops) ** 0.050


class Chinchilla(NamedTuple):
    r"""$\hat L(N, D) = E + A/N^\alpha + B/D^\beta$, embeddings counted.

    Source: Hoffmann et al. 2022, approach 3.
    """

    E: Number
    A: Number
    B: Number
    alpha: Number
    beta: Number

    def loss(self, parameters: Number, tokens: Number) -> float:
        """The loss of a model of this size after this many tokens."""
        capacity = self.A / parameters**self.alpha
        return self.E + capacity + self.B / tokens**self.beta

    @property
    def exponent(self) -> float:
        r"""$a = \beta/(\alpha+\beta)$: how $N$ grows with compute."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: Number) -> tuple[float, float]:
        r"""Parameters and tokens of least loss at $C = 6ND$.

        $N = G\,(C/6)^a$, $D = C/(6N)$,
        $G = (\alpha A/\beta B)^{1/(\alpha+\beta)}$.
        """
        ratio = self.alpha * self.A / (self.beta * self.B)
        scale = ratio ** (1 / (self.alpha + self.beta))
        parameters = scale * (flops / 6) ** self.exponent
        return parameters, flops / 6 / parameters


# As printed (eq. 10), with the exponents of the paper's TeX source, and as
# refitted by Besiroglu et al. 2024 to the data read off the figures.
CHINCHILLA_PRINTED = Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28)
CHINCHILLA_TEX = CHINCHILLA_PRINTED._replace(alpha=0.3392, beta=0.2849)
CHINCHILLA_REFITTED = Chinchilla(
    1.81686, 482.00572, 2085.43420, 0.34781303, 0.36585412
)


def deepseek_flops_per_token(layers: int, hidden: int, length: int) -> int:
    r"""$M = 72\,n_{layer}d^2 + 12\,n_{layer}\,d\,l_{seq}$.

    Attention counts, the vocabulary does not; the 72 holds for a block of
    $12d^2$ parameters. Source: DeepSeek LLM, eq. 2.
    """
    return 72 * layers * hidden**2 + 12 * layers * hidden * length


def deepseek_rate(flops: Number) -> float:
    r"""$\eta_{opt} = 0.3118\,C^{-0.1250}$ (DeepSeek LLM, eq. 1)."""
    return 0.3118 * flops**-0.1250


def deepseek_batch(flops: Number) -> float:
    r"""$B_{opt} = 0.2920\,C^{0.3271}$, in tokens (DeepSeek LLM, eq. 1)."""
    return 0.2920 * flops**0.3271


def deepseek_optimum(flops: Number) -> tuple[float, float]:
    r"""FLOPs per token and tokens: $M = 0.1715\,C^{0.5243}$, $D =
    5.8316\,C^{0.4757}$, so that $C = MD$ (DeepSeek LLM, eq. 4)."""
    return 0.1715 * flops**0.5243, 5.8316 * flops**0.4757


class PowerLaw(NamedTuple):
    r"""$y = c\,x^{k}$ fitted in the logarithm, with standard errors."""

    scale: float
    exponent: float
    scale_error: float
    exponent_error: float

    def __call__(self, x: Number) -> float:
        """The law's value at ``x``."""
        return self.scale * x**self.exponent


def fit_power_law(x: Sequence[Number], y: Sequence[Number]) -> PowerLaw:
    r"""Least squares of $\ln y$ on $\ln x$.

    The errors are those of a straight line with unknown noise: from the
    residuals, with $n-2$ degrees of freedom. ``scale_error`` is relative.
    Raises ``ValueError`` for fewer than three points.
    """
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(
            f"a line with an error needs 3 points, found {len(x)}, {len(y)}"
        )
    lx = torch.tensor([math.log(v) for v in x], dtype=torch.float64)
    ly = torch.tensor([math.log(v) for v in y], dtype=torch.float64)
    spread = (lx - lx.mean()).square().sum()
    slope = ((lx - lx.mean()) * ly).sum() / spread
    level = ly.mean() - slope * lx.mean()
    noise = (ly - level - slope * lx).square().sum() / (len(x) - 2)
    level_error = noise * (1 / len(x) + lx.mean() ** 2 / spread)
    return PowerLaw(
        level.exp().item(),
        slope.item(),
        level_error.sqrt().item(),
        (noise / spread).sqrt().item(),
    )


def fit_chinchilla(
    parameters: Sequence[Number],
    tokens: Sequence[Number],
    losses: Sequence[Number],
    *,
    delta: float = 1e-3,
    starts: Iterable[tuple[Number, ...]] | None = None,
) -> Chinchilla:
    r"""Fit the five constants to finished runs.

    $$\min \sum_i \mathrm{Huber}_\delta\Big(\mathrm{LSE}\big(a-\alpha\ln N_i,
    \; b-\beta\ln D_i,\; e\big) - \ln L_i\Big)$$

    by L-BFGS from a grid of starts $(e, a, b, \alpha, \beta)$. The Huber
    terms are summed: averaging them makes the optimizer stop early, which is
    what went wrong in the original fit. Raises ``ValueError`` for fewer than
    six runs.
    """
    if not len(parameters) == len(tokens) == len(losses) or len(losses) < 6:
        raise ValueError(
            "five constants need at least 6 runs, found "
            f"{len(parameters)}, {len(tokens)}, {len(losses)}"
        )
    runs = torch.tensor([parameters, tokens, losses], dtype=torch.float64).log()
    grid = product((0.0,), (0.0, 5.0, 10.0), (0.0, 5.0, 10.0), (0.5,), (0.5,))
    fits = [_descend(runs, start, delta) for start in starts or grid]
    best = min(fits, key=lambda fit: fit[0])[1]
    e, a, b, alpha, beta = best.tolist()
    return Chinchilla(math.exp(e), math.exp(a), math.exp(b), alpha, beta)


def _descend(
    runs: Tensor, start: tuple[Number, ...], delta: float
) -> tuple[float, Tensor]:
    """One L-BFGS run; the value is infinite where it has run away."""
    theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = _huber(runs, theta, delta)
        value.backward()
        return value

    optimizer.step(objective)
    value = _huber(runs, theta, delta).item()
    return value if math.isfinite(value) else math.inf, theta.detach()


def _huber(runs: Tensor, theta: Tensor, delta: float) -> Tensor:
    """The summed Huber loss of the law's misses in the logarithm."""
    n, d, loss = runs
    e, a, b, alpha, beta = theta
    parts = torch.stack([a - alpha * n, b - beta * d, e.expand_as(n)])
    law = parts.logsumexp(0)
    return F.huber_loss(law, loss, reduction="sum", delta=delta)


def bootstrap(
    parameters: Sequence[Number],
    tokens: Sequence[Number],
    losses: Sequence[Number],
    *,
    draws: int = 30,
    generator: torch.Generator,
) -> list[Chinchilla]:
    """Refit resampled runs; the spread of the fits is the uncertainty."""
    best = fit_chinchilla(parameters, tokens, losses)
    start = [math.log(v) for v in best[:3]]
    fits = []
    for _ in range(draws):
        pick = torch.randint(len(losses), (len(losses),), generator=generator)
        chosen = [
            [column[i] for i in pick.tolist()]
            for column in (parameters, tokens, losses)
        ]
        begin = (*start, best.alpha, best.beta)
        fits.append(fit_chinchilla(*chosen, starts=[begin]))
    return fits


def utilisation(
    tokens: Number, flops_per_token: Number, hours: Number, peak: Number
) -> float:
    """Model FLOPs per second and device as a share of ``peak``."""
    return tokens * flops_per_token / (hours * 3600) / peak
