"""Bytes of the quantised caches, offset by offset."""

import struct

import pytest
import torch

from dsarch.fp8.formats import decode, encode
from dsarch.fp8.layout import (
    latent_scale,
    pack_index,
    pack_latent,
    unpack_index,
    unpack_latent,
)
from dsarch.fp8.reference import TILE, dequantize, difference, quantize


def latents(generator, *shape):
    c = torch.randn(*shape, 512, generator=generator)
    c = c * torch.randn(*shape, 1, generator=generator).exp()
    k_rope = torch.randn(*shape, 64, generator=generator)
    return c, k_rope.to(torch.bfloat16)


def test_a_latent_takes_656_bytes_in_the_published_order(generator):
    c, k_rope = latents(generator, 3)
    packed = pack_latent(c, k_rope)
    assert packed.shape == (3, 656) and packed.dtype == torch.uint8
    row = bytes(packed[1].tolist())
    scales = struct.unpack("<4f", row[512:528])
    for j, s in enumerate(scales):
        part = c[1, 128 * j : 128 * j + 128]
        exact = float(part.abs().max()) / 448
        assert s / 2 < exact <= s and torch.tensor(s).log2().frac() == 0
        codes = encode(part / s, "e4m3")
        assert bytes(codes.tolist()) == row[128 * j : 128 * j + 128]
    bits = struct.unpack("<64h", row[528:])
    assert list(bits) == k_rope[1].view(torch.int16).tolist()


def test_the_rotary_part_is_not_rounded(generator):
    c, k_rope = latents(generator, 2, 5)
    latent, back = unpack_latent(pack_latent(c, k_rope))
    assert latent.shape == (2, 5, 512) and latent.dtype == torch.bfloat16
    assert torch.equal(back, k_rope)
    assert difference(latent, c) < 1e-3
    wide, _ = unpack_latent(pack_latent(c, k_rope), dtype=torch.float32)
    # Three mantissa bits times a power of two: bf16 holds it exactly.
    assert torch.equal(wide, latent.to(torch.float32))


def test_the_floor_is_under_the_scale():
    """Under the magnitude it would be 2^-22; here it is 2^-13."""
    amax = torch.tensor([0.0, 1e-4, 448 * 2.0**-13, 0.06, 1.0, 449.0])
    want = [2.0**-13, 2.0**-13, 2.0**-13, 2.0**-12, 2.0**-8, 2.0]
    assert latent_scale(amax).tolist() == want
    c = torch.full((1, 128), 3e-5)
    latent, _ = unpack_latent(pack_latent(c, c[:, :2]), (128, 2))
    assert latent.unique().item() == pytest.approx(2.0**-15)


def test_other_widths_and_empty_caches(generator):
    c, k_rope = latents(generator, 0)
    packed = pack_latent(c, k_rope)
    assert packed.shape == (0, 656)
    assert unpack_latent(packed)[0].shape == (0, 512)
    packed = pack_latent(torch.ones(4, 256), torch.ones(4, 6))
    assert packed.shape == (4, 256 + 8 + 12)
    c, k_rope = unpack_latent(packed, (256, 6), torch.float32)
    assert torch.equal(c, torch.ones(4, 256)) and (k_rope == 1).all()


def test_a_fault_in_one_tile_stays_there(generator):
    c, k_rope = latents(generator, 2)
    c[1, 200] = torch.nan
    latent, _ = unpack_latent(pack_latent(c, k_rope))
    spoilt = latent.isnan().nonzero()
    assert spoilt[:, 0].unique().tolist() == [1]
    assert spoilt[:, 1].unique().tolist() == list(range(128, 256))


def test_an_index_key_takes_132_bytes(generator):
    k = torch.randn(7, 128, generator=generator)
    packed = pack_index(k)
    assert packed.shape == (7, 132)
    want = quantize(k, TILE, pow2=True)
    row = bytes(packed[4].tolist())
    (s,) = struct.unpack("<f", row[128:])
    assert s == want.scale[4, 0]
    codes = torch.tensor(list(row[:128]), dtype=torch.uint8)
    assert torch.equal(decode(codes, "e4m3"), want.values[4].float())
    assert torch.equal(unpack_index(packed), dequantize(want))
    plain = unpack_index(pack_index(k, pow2=False))
    assert torch.equal(plain, dequantize(quantize(k, TILE)))


def test_a_page_has_all_values_before_all_scales(generator):
    k = torch.randn(64, 128, generator=generator)
    single, page = pack_index(k), pack_index(k, paged=True)
    assert page.shape == single.shape == (64, 132)
    flat = page.flatten()
    assert torch.equal(flat[: 64 * 128].reshape(64, 128), single[:, :128])
    assert torch.equal(flat[64 * 128 :].reshape(64, 4), single[:, 128:])
    assert torch.equal(unpack_index(page, paged=True), unpack_index(single))


def test_bad_input_is_named():
    c = torch.ones(2, 512)
    with pytest.raises(ValueError, match="500 and 64"):
        pack_latent(c[:, :500], c[:, :64])
    with pytest.raises(ValueError, match="512 and 63"):
        pack_latent(c, c[:, :63])
    with pytest.raises(ValueError, match=r"655 values.*expected 656"):
        unpack_latent(torch.zeros(2, 655, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"torch.float32.*torch.uint8"):
        unpack_latent(torch.zeros(2, 656))
    with pytest.raises(ValueError, match="128 wide, not 512"):
        pack_index(c)
    with pytest.raises(ValueError, match=r"128 values.*expected 132"):
        unpack_index(torch.zeros(2, 128, dtype=torch.uint8))
