"""Log-probabilities and masked means: alignment, sets, infinities."""

import math

import pytest
import torch

from dsarch.post.logprobs import (
    entropy,
    masked_mean,
    require_finite,
    sequence_logprobs,
    shift,
    token_logprobs,
)
from tests.conftest import close
from tests.post_policy import policy

INF = math.inf


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_a_log_probability_belongs_to_the_token_it_predicts():
    """The logit of place j is about token j + 1, and only about it."""
    tokens = torch.tensor([[2, 0, 1]])
    logits = torch.zeros(1, 3, 3, dtype=torch.float64)
    logits[0, 0, 0] = 3.0  # predicts the second token, which is 0
    logits[0, 2, 1] = 9.0  # predicts beyond the end: never read
    first = 3 - math.log(math.exp(3) + 2)
    close(token_logprobs(logits, tokens), tensor([first, -math.log(3)]))
    mask = torch.tensor([[False, False, True]])
    assert shift(mask).tolist() == [[False, True]]


def test_the_sum_over_all_texts_is_one():
    """Probabilities of all continuations of one prompt add up."""
    model = policy(3, dim=16).double()
    span = torch.arange(3)
    texts = torch.cartesian_prod(torch.tensor([1]), span, span, span)
    logp = token_logprobs(model(texts), texts)
    mask = torch.ones_like(logp, dtype=torch.bool)
    sums, lengths = sequence_logprobs(logp, mask)
    close(sums.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert lengths.tolist() == [3] * 27


def test_the_sampling_set_renormalises():
    logits = tensor([0.0, 1.0, 2.0, 3.0])[:, None].expand(1, 2, 4)
    allowed = torch.tensor([[[False, True, False, True]]])
    inside = token_logprobs(logits, torch.tensor([[0, 1]]), allowed=allowed)
    close(inside, tensor([1 - math.log(math.exp(1) + math.exp(3))]))
    outside = token_logprobs(logits, torch.tensor([[0, 2]]), allowed=allowed)
    assert outside.item() == -INF


def test_a_masked_infinity_leaves_no_trace():
    logp = tensor([-1.0, -INF], [-INF, -2.0]).requires_grad_()
    mask = torch.tensor([[True, False], [False, True]])
    sums, lengths = sequence_logprobs(logp, mask)
    mean = masked_mean(logp, mask)
    close(sums.detach(), tensor(-1.0, -2.0))
    close(mean.detach(), torch.tensor(-1.5, dtype=torch.float64))
    assert lengths.tolist() == [1, 1]
    (gradient,) = torch.autograd.grad(mean, logp)
    close(gradient, tensor([0.5, 0.0], [0.0, 0.5]))


def test_nothing_unmasked_has_the_mean_zero_and_no_gradient():
    x = tensor([1.0, INF]).requires_grad_()
    empty = torch.zeros(1, 2, dtype=torch.bool)
    assert masked_mean(x, empty).item() == 0
    assert masked_mean(x, empty, 1).tolist() == [0]
    (gradient,) = torch.autograd.grad(masked_mean(x, empty), x)
    assert gradient.tolist() == [[0, 0]]


def test_entropy_ignores_impossible_tokens_in_value_and_gradient():
    logits = tensor([0.0, 0.0, -INF]).requires_grad_()
    found = entropy(logits)
    close(found.detach(), tensor(math.log(2)))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    close(gradient, tensor([0.0, 0.0, 0.0]))


@pytest.mark.parametrize("bad", [-INF, INF, math.nan])
def test_what_is_not_finite_is_named_with_its_place(bad):
    x = tensor([0.0, 1.0], [bad, bad])
    with pytest.raises(ValueError, match=r"logp .* 2 of 4 .* at \[1, 0\]"):
        require_finite("logp", x)
    mask = torch.tensor([[True, True], [False, True]])
    with pytest.raises(ValueError, match=r"1 of 4 .* at \[1, 1\]"):
        require_finite("logp", x, mask)
    require_finite("logp", x, mask & torch.tensor([True, False]))


def test_a_temperature_must_be_positive():
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="positive, found 0"):
        token_logprobs(logits, torch.tensor([[0, 1]]), temperature=0)


def test_bf16_logits_are_widened():
    tokens = torch.tensor([[0, 1]])
    logits = torch.tensor([[[0.0, 8.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    found = token_logprobs(logits, tokens)
    assert found.dtype == torch.float32
    exact = torch.tensor([[-math.log1p(math.exp(-8))]])
    close(found, exact)
