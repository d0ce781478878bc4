"""Post-training losses against torch and transformers."""

import pytest
import torch
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from dsarch.post.distill import jsd_loss, kd_loss, reverse_kl_loss
from dsarch.post.logprobs import entropy, token_logprobs
from dsarch.post.sft import sft_loss
from tests.conftest import close

B, T, W = 3, 6, 7


def logits(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return 2 * x


def text() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    tokens = torch.randint(W, (B, T), generator=generator)
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[0, 2:] = mask[1, 4:5] = mask[2, 1:4] = True
    return tokens, mask


def test_sft_loss_equals_transformers_with_gradient(witness):
    tokens, mask = text()
    labels = tokens.masked_fill(~mask, -100)
    found = []
    for run in (
        lambda x: sft_loss(x, tokens, mask),
        lambda x: ForCausalLMLoss(x, labels, W),
    ):
        x = logits(1, B, T, W).requires_grad_()
        loss = run(x)
        found.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    # transformers computes this loss in fp32
    close(found[0][0].float(), found[1][0].float())
    close(found[0][1].float(), found[1][1].float())
    witness(
        "eq-sft",
        (found[0][0] - found[1][0]).abs(),
        reference="transformers ForCausalLMLoss",
        code="dsarch.post.sft.sft_loss",
    )


def test_token_logprobs_equal_torch_cross_entropy():
    tokens, _ = text()
    x = logits(1, B, T, W)
    found = token_logprobs(x, tokens, temperature=0.7)
    flat = (x[:, :-1] / 0.7).flatten(0, 1)
    expected = F.cross_entropy(flat, tokens[:, 1:].flatten(), reduction="none")
    close(found, -expected.unflatten(0, (B, T - 1)))


def test_entropy_equals_torch_categorical():
    x = logits(2, B, T, W)
    expected = torch.distributions.Categorical(logits=x).entropy()
    close(entropy(x), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_kd_loss_is_torchs_kl_div_times_t_squared(temperature, witness):
    student = logits(3, B, T, W).requires_grad_()
    teacher = logits(4, B, T, W)
    loss = kd_loss(student, teacher, temperature=temperature)
    total = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).softmax(-1),
        reduction="sum",
    )
    expected = temperature**2 * total / (B * T)
    close(loss, expected)
    wanted, found = (
        torch.autograd.grad(y, student)[0] for y in (expected, loss)
    )
    close(found, wanted)
    witness(
        "eq-kd",
        (loss - expected).abs(),
        reference="torch kl_div",
        code="dsarch.post.distill.kd_loss",
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_softened_gradient_is_t_times_the_gap(temperature, witness):
    student = logits(3, B, T, W).requires_grad_()
    teacher = logits(4, B, T, W)
    total = F.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    (by_torch,) = torch.autograd.grad(temperature**2 * total, student)
    loss = kd_loss(student, teacher, temperature=temperature)
    (ours,) = torch.autograd.grad(B * T * loss, student)
    p, q = ((x / temperature).softmax(-1) for x in (teacher, student))
    closed = (temperature * (q - p)).detach()
    close(ours, closed)
    close(by_torch, closed)
    witness(
        "eq-kd-gradient",
        (by_torch - closed).abs().max(),
        reference="torch kl_div",
        code="dsarch.post.distill.kd_loss",
    )


def test_reverse_divergence_swaps_torchs_arguments(witness):
    student = logits(3, B, T, W).requires_grad_()
    teacher = logits(4, B, T, W)
    loss = reverse_kl_loss(student, teacher)
    expected = F.kl_div(
        teacher.log_softmax(-1),
        student.log_softmax(-1),
        reduction="sum",
        log_target=True,
    ) / (B * T)
    close(loss, expected)
    close(jsd_loss(student, teacher, beta=1.0), expected)
    forward = kd_loss(student, teacher, temperature=1.0)
    close(jsd_loss(student, teacher, beta=0.0), forward)
    assert abs(loss - forward) > 0.1, "the two directions must differ here"
    witness(
        "eq-reverse-kl",
        (loss - expected).abs(),
        reference="torch kl_div",
        code="dsarch.post.distill.reverse_kl_loss",
    )
