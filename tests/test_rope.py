"""Rotation and YaRN: anchors, layouts, and what a rotation must keep."""

import math

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dsarch.config import Config, Yarn
from dsarch.layers import positions
from dsarch.rope import (
    correction_range,
    frequencies,
    magnitude,
    phases,
    ramp,
    rotate,
    softmax_factor,
    to_half_split,
    to_interleaved,
)
from tests.conftest import close
from tests.parity.deepseek import hf_config

V3 = Config.v3()
# The frequencies that DeepSeek-V3's own code gives for its configuration.
V3_THETA = {
    0: 1.0,
    10: 0.0562341,
    11: 0.0390069,
    16: 0.0055,
    22: 4.1499e-4 / 10**0.697,
    23: 3.3338e-5,
    31: 3.3338e-6,
}


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def test_yarn_ramp_of_v3():
    assert correction_range(64, 10000.0, V3.rope_scaling) == (10, 23)
    gamma = ramp(64, 10000.0, V3.rope_scaling)
    assert gamma[:11].eq(0).all() and gamma[23:].eq(1).all()
    close(gamma[16], torch.tensor(6 / 13))


@pytest.mark.parametrize("pair", [0, 10, 11, 16, 31])
def test_yarn_frequencies_of_v3(pair):
    theta = frequencies(64, 10000.0, V3.rope_scaling)
    assert math.isclose(theta[pair], V3_THETA[pair], rel_tol=2e-5)


def test_softmax_factor_of_the_released_models():
    assert math.isclose(
        softmax_factor(V3.rope_scaling), 1.8738542, rel_tol=1e-7
    )
    lite = softmax_factor(Config.v2_lite().rope_scaling)
    assert math.isclose(lite, 1.5896262, rel_tol=1e-7)
    assert softmax_factor(None) == 1.0
    assert magnitude(1.0, 1.0) == 1.0


@pytest.mark.parametrize("width", [8, 64, 96])
@pytest.mark.parametrize("window", [16, 4096])
def test_yarn_frequencies_equal_transformers(width, window, witness):
    config = hf_config("deepseek_v3", qk_rope_head_dim=width, head_dim=width)
    config.rope_parameters["original_max_position_embeddings"] = window
    expected, size = ROPE_INIT_FUNCTIONS["yarn"](config)
    yarn = Yarn(original_max_position_embeddings=window)
    actual = frequencies(width, 10000.0, yarn)
    close(actual / expected, torch.ones_like(actual))
    assert size == 1.0
    witness(
        "eq-yarn",
        (actual / expected - 1).abs().max(),
        reference="transformers rope utilities",
        code="dsarch.rope.frequencies",
    )
    kept = expected / frequencies(width, 10000.0)
    gamma = (1 - kept) / (1 - 1 / yarn.factor)
    close(ramp(width, 10000.0, yarn), gamma)
    witness(
        "eq-ramp",
        (ramp(width, 10000.0, yarn) - gamma).abs().max(),
        reference="transformers rope utilities",
        code="dsarch.rope.ramp",
    )


def test_both_layouts_are_one_rotation(witness):
    cfg = Config(qk_rope_head_dim=8, rope_scaling=Yarn())
    phase = phases(cfg, positions(2, 3, 5))
    x = random(2, 5, 4, 8)
    there = rotate(to_half_split(x), phase, interleaved=False)
    actual = to_interleaved(there)
    close(actual, rotate(x, phase))
    close(to_interleaved(to_half_split(x)), x)
    assert (
        rotate(x, phase, interleaved=False) - rotate(x, phase)
    ).abs().max() > 1
    witness(
        "eq-layouts",
        (actual - rotate(x, phase)).abs().max(),
        reference="identity",
        code="dsarch.rope.to_half_split",
    )


def test_pairs_turn_by_two_by_two_matrices(witness):
    cfg = Config(qk_rope_head_dim=6)
    position = positions(1, 11, 4)
    x = random(1, 4, 6)
    angle = position[..., None] * frequencies(6, cfg.rope_theta).double()
    a, b = x[..., 0::2], x[..., 1::2]
    expected = torch.stack(
        [
            a * angle.cos() - b * angle.sin(),
            a * angle.sin() + b * angle.cos(),
        ],
        -1,
    ).flatten(-2)
    actual = rotate(x, phases(cfg, position))
    close(actual, expected, 1e-5)
    witness(
        "eq-rope",
        (actual - expected).abs().max(),
        reference="rotation matrices",
        code="dsarch.rope.rotate",
    )


def test_scores_depend_on_the_distance_alone(witness):
    cfg = Config(qk_rope_head_dim=8)
    q, k = random(1, 1, 8), random(1, 1, 8)

    def score(t, s):
        a = rotate(q, phases(cfg, positions(1, t, 1)))
        b = rotate(k, phases(cfg, positions(1, s, 1)))
        return (a * b).sum()

    close(score(29, 22), score(7, 0), 1e-5)
    assert (score(29, 22) - score(29, 21)).abs() > 1e-2
    witness(
        "eq-relative",
        (score(29, 22) - score(7, 0)).abs(),
        reference="identity",
        code="dsarch.rope.rotate",
    )


def test_rotation_keeps_lengths_and_dtype():
    cfg = Config(qk_rope_head_dim=8, rope_scaling=Yarn())
    phase = phases(cfg, positions(2, 500, 3))
    x = random(2, 3, 8, dtype=torch.bfloat16)
    y = rotate(x, phase)
    assert y.dtype == torch.bfloat16
    close(y.double().norm(dim=-1), x.double().norm(dim=-1), 2e-2)


def test_amplitude_is_the_quotient_of_both_magnitudes():
    yarn = Yarn(mscale=0.5, mscale_all_dim=1.0)
    cfg = Config(rope_scaling=yarn)
    size = phases(cfg, positions(1, 0, 3)).abs()
    wanted = magnitude(40.0, 0.5) / magnitude(40.0, 1.0)
    close(size, torch.full_like(size, wanted))


def test_odd_widths_and_bad_yarn_are_refused():
    with pytest.raises(ValueError, match="even width, found 7"):
        frequencies(7, 10000.0)
    with pytest.raises(ValueError, match=r"beta_fast 1.0 .* beta_slow 32.0"):
        Yarn(beta_fast=1.0, beta_slow=32.0)
    with pytest.raises(ValueError, match="factor 0.5"):
        Yarn(factor=0.5)
