"""Traced values are the values of the forward pass."""

import pytest
import torch
from torch import nn

from dsarch.analysis.trace import trace
from tests.conftest import close


class Two(nn.Module):
    """Returns a pair, and something that is no tensor."""

    def forward(self, x):
        return x + 1, {"ignored": x}, [x * 2]


def build():
    inner = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    return nn.Sequential(inner, nn.Linear(5, 2), Two())


def test_outputs_and_inputs():
    model, x = build(), torch.randn(4, 3)
    with trace(model, "0", "0.*", "1", "2", inputs=True) as seen:
        out = model(x)
    hidden = model[0][0](x)
    close(seen["0.0"], hidden)
    close(seen["0.1"], hidden.tanh())
    close(seen["0"], hidden.tanh())
    close(seen["1.input.0"], hidden.tanh())
    close(seen["2.0"], out[0])
    close(seen["2.2.0"], out[2][0])
    assert not any("2.1" in name for name in seen)
    assert not any(value.requires_grad for value in seen.values())


def test_order_is_that_of_the_pass_and_the_last_call_stays():
    model = build()
    with trace(model, "1", "0.1", "0.0") as seen:
        model(torch.zeros(1, 3))
        model(torch.ones(1, 3))
    assert list(seen) == ["0.0", "0.1", "1"]
    close(seen["0.0"], model[0][0](torch.ones(1, 3)))


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = build()
    with trace(model, "*") as seen:
        pass
    model(torch.zeros(1, 3))
    assert seen == {}
    with pytest.raises(RuntimeError), trace(model, "*"):
        model(torch.zeros(1, 7))
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_are_untouched():
    model, x = build(), torch.randn(2, 3, requires_grad=True)
    with trace(model, "*"):
        model(x)[0].sum().backward()
    traced, x.grad = x.grad, None
    model(x)[0].sum().backward()
    close(traced, x.grad)


def test_a_pattern_without_a_module():
    with pytest.raises(ValueError, match=r"no module fits 'attn\*'.*0\.0"):
        with trace(build(), "0", "attn*"):
            pass
