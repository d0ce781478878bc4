"""Scaling laws: values worked out elsewhere, and fits that find the truth."""

import math

import pytest
import torch

from dsarch.train import scaling

GOPHER = 5.76e23


@pytest.mark.parametrize(
    ("law", "parameters", "tokens", "ratio"),
    (
        (scaling.CHINCHILLA_PRINTED, 32.2e9, 2.98e12, 93),
        (scaling.CHINCHILLA_TEX, 40.3e9, 2.38e12, 59),
        (scaling.CHINCHILLA_REFITTED, 72.2e9, 1.33e12, 18.4),
    ),
)
def test_chinchilla_at_gophers_compute(law, parameters, tokens, ratio):
    n, d = law.optimum(GOPHER)
    assert (n, d) == pytest.approx((parameters, tokens), rel=3e-3)
    assert d / n == pytest.approx(ratio, rel=6e-3)
    assert 6 * n * d == pytest.approx(GOPHER)


def test_chinchilla_losses():
    printed = scaling.CHINCHILLA_PRINTED.loss(70e9, 1.4e12)
    rounded = scaling.Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
    refitted = rounded.loss(70e9, 1.4e12)
    assert printed == pytest.approx(1.9366, abs=5e-5)
    assert refitted == pytest.approx(1.9739, abs=1e-4)
    assert scaling.CHINCHILLA_REFITTED.exponent == pytest.approx(
        0.5126, abs=1e-4
    )


@pytest.mark.parametrize(
    "law", (scaling.CHINCHILLA_PRINTED, scaling.CHINCHILLA_REFITTED)
)
def test_the_optimum_is_one(law, witness):
    """A search along the line of equal compute ends where the formula says."""
    n, d = law.optimum(1e21)
    best = law.loss(n, d)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(n * factor, d / factor) > best
    low, high = math.log(n) - 2, math.log(n) + 2
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        a, b = high - golden * (high - low), low + golden * (high - low)
        at_a, at_b = (
            law.loss(math.exp(x), 1e21 / 6 / math.exp(x)) for x in (a, b)
        )
        low, high = (low, b) if at_a < at_b else (a, high)
    found = math.exp((low + high) / 2)
    assert found == pytest.approx(n, rel=1e-6)
    witness(
        "eq-compute-split",
        abs(found / n - 1),
        code="dsarch.train.scaling.Chinchilla.optimum",
        reference="identity: golden-section search",
    )
    size = torch.tensor(n, dtype=torch.float64, requires_grad=True)
    data = 1e21 / 6 / size
    (law.A / size**law.alpha + law.B / data**law.beta).backward()
    slope = (size.grad * size).abs().item()
    assert slope < 1e-10
    witness(
        "eq-optimum",
        slope,
        code="dsarch.train.scaling.Chinchilla.optimum",
        reference="torch autograd: no slope along the line of equal compute",
    )


def test_kaplan():
    """Limits: infinite data leaves capacity alone, and the other way."""
    assert scaling.kaplan_loss(1e9, 1e30) == pytest.approx(
        (6.4e13 / 1e9) ** 0.076, rel=1e-6
    )
    assert scaling.kaplan_loss(1e30, 1e9) == pytest.approx(
        (1.8e13 / 1e9) ** 0.103, rel=1e-6
    )
    assert scaling.kaplan_compute_loss(3.1e8 * 8.64e19) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("flops", "rate", "batch", "model", "data"),
    (
        (1e17, 2.338e-3, 1.062e5, 1.404e8, 7.123e8),
        (1e19, 1.315e-3, 4.789e5, 1.570e9, 6.369e9),
        (1e22, 5.545e-4, 4.588e6, 5.873e10, 1.703e11),
    ),
)
def test_deepseeks_laws(flops, rate, batch, model, data, witness):
    assert scaling.deepseek_rate(flops) == pytest.approx(rate, rel=1e-3)
    assert scaling.deepseek_batch(flops) == pytest.approx(batch, rel=1e-3)
    m, d = scaling.deepseek_optimum(flops)
    assert (m, d) == pytest.approx((model, data), rel=1e-3)
    assert m * d == pytest.approx(flops, rel=1e-3)
    witness(
        "eq-deepseek-laws",
        max(
            abs(scaling.deepseek_rate(flops) / rate - 1),
            abs(m * d / flops - 1),
        ),
        code="dsarch.train.scaling.deepseek_optimum",
        reference="values worked out from the report; model times data = C",
    )


def test_deepseeks_7b():
    """The batch is in tokens: 2252 sequences of 4096, the paper used 2304."""
    m = scaling.deepseek_flops_per_token(30, 4096, 4096)
    assert m == pytest.approx(4.228e10, rel=1e-3)
    assert scaling.deepseek_batch(m * 2e12) / 4096 == pytest.approx(
        2252, rel=1e-3
    )
    assert scaling.deepseek_rate(m * 2e12) == pytest.approx(4.25e-4, rel=1e-3)


def runs(law, noise=0.0):
    g = torch.Generator().manual_seed(0)
    sizes = [10 ** (7 + 0.5 * k) for k in range(7)]
    columns = [], [], []
    for n in sizes:
        for ratio in (3, 10, 30, 100):
            error = noise * torch.randn((), generator=g).item()
            columns[0].append(n)
            columns[1].append(n * ratio)
            columns[2].append(law.loss(n, n * ratio) * math.exp(error))
    return columns


def test_the_fit_finds_the_law(witness):
    law = scaling.CHINCHILLA_REFITTED
    n, d, losses = runs(law)
    fit = scaling.fit_chinchilla(n, d, losses)
    logs = torch.tensor([n, d], dtype=torch.float64).log()
    e, a, b = (math.log(x) for x in law[:3])
    parts = [a - law.alpha * logs[0], b - law.beta * logs[1]]
    sums = torch.stack([*parts, torch.full_like(logs[0], e)]).logsumexp(0)
    witness(
        "eq-chinchilla",
        (sums.exp() - torch.tensor(losses)).abs().max(),
        code="dsarch.train.scaling.Chinchilla.loss",
        reference="torch logsumexp, the form that was fitted",
    )
    assert fit.alpha == pytest.approx(law.alpha, rel=1e-4)
    assert fit.beta == pytest.approx(law.beta, rel=1e-4)
    assert fit.E == pytest.approx(law.E, rel=1e-4)


def test_one_bad_run_does_not_bend_the_fit():
    """Huber's loss: a run that diverged pulls with a bounded force."""
    law = scaling.CHINCHILLA_REFITTED
    n, d, losses = runs(law)
    losses[13] *= 1.5
    fit = scaling.fit_chinchilla(n, d, losses)
    assert fit.exponent == pytest.approx(law.exponent, abs=5e-3)


def test_bootstrap_covers_the_law(generator):
    law = scaling.CHINCHILLA_REFITTED
    fits = scaling.bootstrap(
        *runs(law, noise=3e-3), draws=12, generator=generator
    )
    exponents = sorted(fit.exponent for fit in fits)
    assert exponents[0] < law.exponent < exponents[-1]
    assert exponents[-1] - exponents[0] > 1e-3


def test_power_law_against_lstsq(generator):
    """Slope, level and errors equal the normal equations of a line."""
    x = torch.linspace(1, 9, 12, dtype=torch.float64)
    noise = torch.randn(12, generator=generator, dtype=torch.float64)
    y = 3.0 * x**-0.4 * (0.1 * noise).exp()
    law = scaling.fit_power_law(x.tolist(), y.tolist())
    design = torch.stack([torch.ones_like(x), x.log()], 1)
    solution = torch.linalg.lstsq(design, y.log()[:, None])
    level, slope = solution.solution.flatten().tolist()
    variance = (design @ solution.solution - y.log()[:, None]).square().sum()
    errors = (design.T @ design).inverse().diagonal() * variance / 10
    assert law.exponent == pytest.approx(slope)
    assert law.scale == pytest.approx(math.exp(level))
    assert law.exponent_error == pytest.approx(errors[1].sqrt().item())
    assert law.scale_error == pytest.approx(errors[0].sqrt().item())
    assert law(2.0) == pytest.approx(math.exp(level) * 2.0**slope)


def test_v3_utilisation():
    """14.8T tokens in 2.664M H800 hours: a third of the BF16 peak."""
    share = scaling.utilisation(14.8e12, 6 * 37e9, 2.664e6, 989e12)
    assert share == pytest.approx(0.346, abs=1e-3)


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="6 runs.*5"):
        scaling.fit_chinchilla([1] * 5, [1] * 5, [1] * 5)
    with pytest.raises(ValueError, match="3 points.*2"):
        scaling.fit_power_law([1, 2], [1, 2])
