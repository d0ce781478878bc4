"""Distillation losses: worked values, gradients, layers, bad input."""

import math

import pytest
import torch

from dsarch.post.distill import (
    divergence,
    jsd_loss,
    kd_loss,
    keep_layers,
    keep_probability,
    layer_map,
    mixed_loss,
    reverse_kl_loss,
    shared_vocabulary,
)
from dsarch.post.sft import sft_loss
from tests.conftest import close
from tests.post_policy import policy

INF = math.inf
STUDENT = [[2, 0.5, -1], [0, 1, 0.5]]
TEACHER = [[1, 1, 0], [0.2, 2, -0.5]]


def tensor(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("beta", "cold", "warm"),
    [
        (0.0, 0.2725580457, 0.0839533082),
        (0.1, 0.0242597121, 0.0075585371),
        (0.5, 0.0670492731, 0.0211949196),
        (0.9, 0.0255233916, 0.0078069447),
        (1.0, 0.2918761598, 0.0874530489),
    ],
)
def test_worked_divergences(beta, cold, warm):
    logits = tensor(STUDENT), tensor(TEACHER)
    for temperature, expected in ((1.0, cold), (2.0, warm)):
        found = jsd_loss(*logits, beta=beta, temperature=temperature)
        close(found, tensor(expected))


def test_hintons_loss_has_the_square_of_the_temperature():
    logits = tensor(STUDENT), tensor(TEACHER)
    found = kd_loss(*logits, temperature=2.0)
    assert round(found.item(), 8) == 0.33581323
    close(found, 4 * jsd_loss(*logits, beta=0.0, temperature=2.0))


def test_gradients_keep_their_size_at_any_temperature():
    r"""$T(q - p)$ per logit; at high T the limit is the logits' difference,
    centred and divided by the vocabulary's size."""
    student, teacher = tensor(STUDENT), tensor(TEACHER)
    student.requires_grad_()
    for temperature in (1.0, 3.0, 3e4):
        loss = kd_loss(student, teacher, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss, student)
        q = (student / temperature).softmax(-1)
        p = (teacher / temperature).softmax(-1)
        close(gradient, (temperature * (q - p) / 2).detach())
    gap = (student - teacher).detach()
    centred = gap - gap.mean(-1, keepdim=True)
    assert (gradient - centred / 6).abs().max() < 1e-4


def test_the_teacher_gets_no_gradient():
    student, teacher = tensor(STUDENT), tensor(TEACHER).requires_grad_()
    for loss in (
        kd_loss(student.requires_grad_(), teacher, temperature=1.0),
        reverse_kl_loss(student, teacher),
        jsd_loss(student, teacher),
    ):
        loss.backward()
    assert teacher.grad is None and student.grad is not None


def test_forward_covers_and_reverse_commits():
    """A narrow student of a teacher with two peaks, over all its places."""
    place = torch.arange(40, dtype=torch.float64)

    def peak(centre, width=2.0):
        return -((place - centre) ** 2) / (2 * width**2)

    teacher = torch.logaddexp(peak(10.0), peak(28.0) - 0.4)
    centres = torch.arange(5, 35).tolist()
    wide = [peak(c, 9.0) for c in centres] + [peak(c, 2.0) for c in centres]
    forward = [kd_loss(s, teacher, temperature=1.0).item() for s in wide]
    reverse = [reverse_kl_loss(s, teacher).item() for s in wide]
    best_forward, best_reverse = (x.index(min(x)) for x in (forward, reverse))
    assert best_forward < 30, "covers both peaks with the wide one"
    assert 12 < centres[best_forward] < 26
    assert best_reverse >= 30, "commits to one peak with the narrow one"
    assert centres[best_reverse - 30] == 10


def test_impossible_entries():
    """Impossible for both adds 0; for the student alone it is infinite."""
    teacher = tensor([1.0, 0.0, -INF])
    student = tensor([0.5, 0.5, -INF]).requires_grad_()
    short = kd_loss(student[:2], teacher[:2], temperature=1.0)
    whole = kd_loss(student, teacher, temperature=1.0)
    close(whole.detach(), short.detach())
    (gradient,) = torch.autograd.grad(whole, student)
    assert gradient.isfinite().all() and gradient[2] == 0
    assert kd_loss(teacher, tensor([1, 0, 0.0]), temperature=1.0) == INF
    assert kd_loss(tensor([1, 0, 0.0]), teacher, temperature=1.0) < INF
    half = jsd_loss(teacher, tensor([1, 0, 0.0]))
    assert half.isfinite(), "the mixture has every entry of either"
    whole = jsd_loss(student, teacher)
    close(whole.detach(), jsd_loss(student[:2], teacher[:2]).detach())
    (gradient,) = torch.autograd.grad(whole, student)
    assert gradient.isfinite().all() and gradient[2] == 0
    assert divergence(teacher, teacher).item() == 0


def test_masked_places_do_not_count():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator).double()[
        :, 0
    ]
    mask = torch.rand(3, 4, generator=generator) < 0.5
    found = kd_loss(student, teacher, temperature=2.0, mask=mask)
    close(found, kd_loss(student[mask], teacher[mask], temperature=2.0))
    spoiled = teacher.masked_fill(~mask[..., None], -INF)
    close(kd_loss(student, spoiled, temperature=2.0, mask=mask), found)
    none = torch.zeros_like(mask)
    assert kd_loss(student, teacher, temperature=2.0, mask=none) == 0


def test_the_mixed_loss_is_two_means_over_the_same_targets():
    generator = torch.Generator().manual_seed(1)
    shape = (2, 2, 5, 7)
    student, teacher = torch.randn(shape, generator=generator).double()
    tokens = torch.randint(7, (2, 5), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    settings = {"temperature": 3.0, "weight": 0.3}
    found = mixed_loss(student, teacher, tokens, mask, **settings)
    before = mask[:, 1:]
    soft = kd_loss(
        student[:, :-1][before], teacher[:, :-1][before], temperature=3.0
    )
    close(found, 0.7 * sft_loss(student, tokens, mask) + 0.3 * soft)
    with pytest.raises(ValueError, match=r"in \[0, 1\], found 1.5"):
        mixed_loss(student, teacher, tokens, mask, temperature=1.0, weight=1.5)


@pytest.mark.parametrize("loss", [kd_loss, reverse_kl_loss, jsd_loss])
def test_vocabularies_must_be_one(loss):
    student, teacher = torch.randn(2, 5), torch.randn(2, 8)
    with pytest.raises(ValueError, match="has 5 vocabulary .* teacher 8"):
        loss(student, teacher, temperature=1.0)
    both = shared_vocabulary(student, teacher, 4)
    assert loss(*both, temperature=1.0).isfinite()
    with pytest.raises(ValueError, match=r"share 6 entries of \(5, 8\)"):
        shared_vocabulary(student, teacher, 6)


def test_a_temperature_and_a_beta_out_of_range():
    logits = torch.randn(2, 5)
    with pytest.raises(ValueError, match="positive, found 0"):
        kd_loss(logits, logits, temperature=0.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], found -0.1"):
        jsd_loss(logits, logits, beta=-0.1)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (4, 12, [2, 5, 8, 11]),
        (3, 8, [1, 4, 7]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, 6, [5]),
    ],
)
def test_layer_map(student, teacher, expected):
    assert layer_map(student, teacher) == expected


def test_a_student_from_its_teachers_layers():
    """Dropping no layer changes nothing; a dropped layer is really gone."""
    teacher = policy(9, dim=16, layers=4).double()
    tokens = torch.arange(8)[None]
    kept = layer_map(2, 4)
    student = policy(9, seed=5, dim=16, layers=2).double()
    student.load_state_dict(keep_layers(teacher.state_dict(), kept, "layers."))
    for index in (0, 2):  # silence what the student does not have
        layer = teacher.layers[index]
        layer.attention.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    close(student(tokens).detach(), teacher(tokens).detach())
    with pytest.raises(ValueError, match=r"layers \[7\] are none of"):
        keep_layers(teacher.state_dict(), [0, 7], "layers.")
    with pytest.raises(ValueError, match="5 layers cannot be chosen from 4"):
        layer_map(5, 4)


def test_layers_drop_progressively():
    assert keep_probability(0) == 1
    close(tensor(keep_probability(1000)), tensor(0.5 + 0.5 / math.e))
    assert keep_probability(10**6, floor=0.7) == 0.7
