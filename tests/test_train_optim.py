"""What an optimizer must do beyond agreeing with torch."""

import pytest
import torch
from torch import nn

from dsarch.train import muon, optim
from tests.conftest import close


def singular_values(coefficients) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 32, generator=g, dtype=torch.float64)
    out = muon.orthogonalise(matrix, coefficients, dtype=torch.float64)
    return torch.linalg.svdvals(out)


def test_newton_schulz_spreads_around_one():
    values = singular_values(5 * (muon.NS_COEFFICIENTS,))
    assert 0.67 < values.min() and values.max() < 1.21
    sharp = singular_values(muon.NS_V4)
    assert (sharp - 1).abs().max() < 1e-3


def test_newton_schulz_keeps_directions():
    """Only the singular values change: the result is close to U V^T."""
    g = torch.Generator().manual_seed(1)
    matrix = torch.randn(9, 14, generator=g, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    out = muon.orthogonalise(matrix, muon.NS_V4, dtype=torch.float64)
    assert (out - u @ vh).abs().max() < 1e-2


def test_moonlight_scale_gives_adamws_rms():
    g = torch.Generator().manual_seed(2)
    for rows, columns in ((24, 40), (40, 24)):
        matrix = torch.randn(rows, columns, generator=g)
        direction = muon.orthogonalise(matrix, muon.NS_V4).float()
        scale = muon.muon_scale(rows, columns, "match_rms_adamw")
        rms = (direction * scale).square().mean().sqrt().item()
        assert rms == pytest.approx(0.2, rel=0.02)


def test_v4_coefficients_reach_the_update():
    """A triple per step and a repeated triple are the same."""
    results = []
    for coefficients, steps in (
        (muon.NS_COEFFICIENTS, 3),
        (3 * (muon.NS_COEFFICIENTS,), 5),
    ):
        w = nn.Parameter(torch.ones(4, 3).tril())
        optimizer = optim.Muon(
            [w], ns_coefficients=coefficients, ns_steps=steps
        )
        w.grad = torch.arange(12.0).reshape(4, 3)
        optimizer.step()
        results.append(w.detach())
    assert torch.equal(*results)


def test_first_step_is_the_rate_whatever_the_gradient():
    """Bias correction: the first update has size lr for any gradient."""
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    w.grad = torch.tensor([1e-3, -1.0, 1e3], dtype=torch.float64)
    optim.AdamW([w], lr=0.5, eps=0.0, weight_decay=0.0).step()
    close(w.detach(), torch.tensor([-0.5, 0.5, -0.5], dtype=torch.float64))


def bf16_run(beta2: float) -> float:
    """The second moment of a constant gradient of one."""
    w = nn.Parameter(torch.zeros(1))
    optimizer = optim.AdamW([w], betas=(0.9, beta2), state_dtype=torch.bfloat16)
    for _ in range(3000):
        w.grad = torch.ones(1)
        optimizer.step()
    return optimizer.state[w]["exp_avg_sq"].item()


def test_bf16_moments_need_a_small_beta2():
    """A moment stalls when its step falls below half a unit in the last place.

    Below one that half unit is 2**-9: with 0.05 the stall is at 0.961, with
    0.001 far below a half.
    """
    assert 1 - bf16_run(0.95) == pytest.approx(2**-9 / 0.05, abs=2**-8)
    assert bf16_run(0.999) < 0.5


def test_bf16_moments_survive_a_reload():
    w = nn.Parameter(torch.ones(3))
    optimizer = optim.AdamW([w], state_dtype=torch.bfloat16)
    w.grad = torch.full((3,), 1 / 3)
    optimizer.step()
    other = optim.AdamW([w], state_dtype=torch.bfloat16)
    other.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        assert other.state[w][name].dtype == torch.bfloat16
        assert torch.equal(other.state[w][name], optimizer.state[w][name])


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 4)
        self.up_proj = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.lm_head = nn.Linear(6, 5, bias=False)


def test_vectors_do_not_decay():
    model = Toy()
    matrices, vectors = optim.weight_decay_groups(model.parameters(), 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {w.ndim for w in matrices["params"]} == {2}
    assert {w.ndim for w in vectors["params"]} == {1}
    count = len(matrices["params"]) + len(vectors["params"])
    assert count == len(list(model.parameters()))


def test_muon_gets_the_hidden_matrices():
    model = Toy()
    hidden, rest = muon.muon_groups(model)
    assert len(hidden) == 1 and hidden[0] is model.up_proj.weight
    assert len(rest) == len(list(model.parameters())) - 1


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda w: optim.AdamW([w], lr=-1.0), "lr.*-1.0"),
        (lambda w: optim.AdamW([w], betas=(0.9, 1.0)), "betas.*1.0"),
        (lambda w: optim.AdamW([w], differentiable=True), "differentiable"),
        (lambda w: optim.Muon([nn.Parameter(w[0].data)]), "matrices"),
        (lambda w: optim.Muon([w], adjust_lr_fn="x"), "adjust_lr_fn"),
    ),
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Parameter(torch.ones(2, 2)))
