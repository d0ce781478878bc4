"""Decoding on the packed latent cache, against the absorbed form."""

import pytest
import torch

from dsarch.fp8.layout import pack_latent, unpack_latent
from dsarch.mla import absorbed
from tests.conftest import close

kernels = pytest.importorskip("dsarch.fp8.triton")


def case(generator, b, h, s, c, r):
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    packed = pack_latent(draw(b, s, c) * 2, draw(b, s, r))
    return draw(b, h, c) / c**0.5, draw(b, h, r), packed


def by_reference(q, q_rope, packed, length, factor):
    """With identities for the up-projections q and o stay latents."""
    c, k_rope = unpack_latent(
        packed, (q.size(-1), q_rope.size(-1)), torch.float32
    )
    mask = torch.arange(c.size(1)) < length[:, None]
    eye = torch.eye(q.size(-1)).expand(q.size(1), -1, -1)
    out = absorbed(
        q[:, None], q_rope[:, None], c, k_rope, eye, eye, mask[:, None], factor
    )
    return out[:, 0]


@pytest.mark.parametrize(
    "b, h, s, c, r", [(3, 5, 70, 128, 16), (2, 17, 33, 256, 32)]
)
def test_decode_equals_the_absorbed_form(b, h, s, c, r, generator):
    q, q_rope, packed = case(generator, b, h, s, c, r)
    length = torch.tensor([s, 1, 40][:b])
    got = kernels.mla_decode(q, q_rope, packed, length, 0.3)
    close(got, by_reference(q, q_rope, packed, length, 0.3))


def test_the_released_widths(generator):
    q, q_rope, packed = case(generator, 1, 3, 9, 512, 64)
    assert packed.size(-1) == 656
    length = torch.tensor([9])
    got = kernels.mla_decode(q, q_rope, packed, length, 0.13523378)
    close(got, by_reference(q, q_rope, packed, length, 0.13523378))


def test_no_keys_give_zeros_and_long_lengths_stop_at_the_cache(generator):
    q, q_rope, packed = case(generator, 2, 3, 20, 128, 16)
    length = torch.tensor([0, 99])
    got = kernels.mla_decode(q, q_rope, packed, length, 0.3)
    assert torch.equal(got[0], torch.zeros(3, 128))
    full = by_reference(q, q_rope, packed, torch.tensor([20, 20]), 0.3)
    close(got[1], full[1])


def test_bytes_that_do_not_add_up_are_named(generator):
    q, q_rope, packed = case(generator, 1, 2, 4, 128, 16)
    with pytest.raises(ValueError, match="163 values.*expected 164"):
        kernels.mla_decode(q, q_rope, packed[..., :-1], torch.tensor([4]), 1.0)
