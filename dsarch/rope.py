r"""Rotary positions in both layouts, and YaRN as DeepSeek uses it."""

import math

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor

from dsarch.config import Config, Yarn
from dsarch.layers import widen


def frequencies(
    width: int, theta: float, yarn: Yarn | None = None
) -> Float[Tensor, " p"]:
    r"""Radians per position of each of the $p = r/2$ pairs, in fp32.

    $$\theta_m = \theta^{-2m/r}, \qquad
      \theta'_m = \gamma_m\,\theta_m/s + (1-\gamma_m)\,\theta_m$$

    The second form is YaRN with factor $s$: $\gamma$ is :func:`ramp`. Source:
    RoFormer, equation 15; the inference code of DeepSeek-V3.
    """
    if width < 2 or width % 2:
        raise ValueError(f"rotation needs an even width, found {width}")
    exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
    plain = 1.0 / theta**exponent
    if yarn is None:
        return plain
    gamma = ramp(width, theta, yarn)
    return plain / yarn.factor * gamma + plain * (1 - gamma)


def ramp(width: int, theta: float, yarn: Yarn) -> Float[Tensor, " p"]:
    r"""How far each pair is slowed: 0 keeps it, 1 divides it by the factor.

    $$\gamma_m = \mathrm{clip}\Big(
      \frac{m-\mathrm{low}}{\mathrm{high}-\mathrm{low}},\,0,\,1\Big)$$
    """
    low, high = correction_range(width, theta, yarn)
    pair = torch.arange(width // 2, dtype=torch.float32)
    return ((pair - low) / (high - low)).clamp(0, 1)


def correction_range(
    width: int, theta: float, yarn: Yarn
) -> tuple[float, float]:
    r"""The pairs between which YaRN's ramp rises, rounded outwards.

    A pair $m$ turns $\beta$ times over the original window of $L_0$ tokens
    where

    $$m(\beta) = \frac{r\,\ln\!\big(L_0/(2\pi\beta)\big)}{2\ln\theta}$$

    For V3 this gives 10 and 23 of 32 pairs.
    """

    def pair(turns: float) -> float:
        window = yarn.original_max_position_embeddings
        turn = math.log(window / (turns * math.tau))
        return width * turn / (2 * math.log(theta))

    low = max(float(math.floor(pair(yarn.beta_fast))), 0.0)
    high = min(float(math.ceil(pair(yarn.beta_slow))), width - 1.0)
    return low, high + 0.001 if low == high else high


def magnitude(factor: float, weight: float) -> float:
    r"""YaRN's $m(s, a) = 0.1\,a\ln s + 1$; 1 where nothing is stretched."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def softmax_factor(yarn: Yarn | None) -> float:
    r"""What YaRN multiplies onto the whole logit: $m(s, a_{all})^2$.

    1.8738542 for V3, 1.5896262 for V2 and V2-Lite.
    """
    if yarn is None:
        return 1.0
    return magnitude(yarn.factor, yarn.mscale_all_dim) ** 2


def phases(
    cfg: Config, position: Int[Tensor, "b t"]
) -> Complex[Tensor, "b t p"]:
    r"""The unit numbers $e^{i\,t\,\theta_m}$ that turn queries and keys.

    Angles are fp32: bf16 has 8 bits and positions go to 163,840. YaRN scales
    them by $m(s, a)/m(s, a_{all})$, which is 1 in every released model.
    """
    yarn = cfg.rope_scaling
    theta = frequencies(cfg.qk_rope_head_dim, cfg.rope_theta, yarn)
    angle = position[..., None] * theta.to(position.device)
    size = 1.0
    if yarn is not None:
        size = magnitude(yarn.factor, yarn.mscale)
        size = size / magnitude(yarn.factor, yarn.mscale_all_dim)
    return torch.polar(torch.full_like(angle, size), angle)


def rotate(
    x: Float[Tensor, "b t *h r"],
    phase: Complex[Tensor, "b t p"],
    interleaved: bool = True,
) -> Float[Tensor, "b t *h r"]:
    r"""Turn each pair of the last axis by its phase.

    $$z_m \mapsto z_m\,e^{i\,t\,\theta_m}$$

    Interleaved pairs are $(x_{2m}, x_{2m+1})$, as in DeepSeek's attention;
    half-split pairs are $(x_m, x_{m+r/2})$, as in Llama and in DeepSeek's
    indexer. The layout of the result is that of ``x``.
    """
    sizes, axis = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    real, imag = widen(x).unflatten(-1, sizes).unbind(axis)
    phase = phase.unflatten(1, (-1, *[1] * (x.ndim - 3)))
    z = torch.complex(real, imag) * phase
    turned = torch.stack([z.real, z.imag], axis).flatten(-2)
    return turned.type_as(x)


def to_half_split(x: Float[Tensor, "*b r"]) -> Float[Tensor, "*b r"]:
    """Reorder interleaved pairs so that half-split rotation fits them."""
    return rearrange(x, "... (p two) -> ... (two p)", two=2)


def to_interleaved(x: Float[Tensor, "*b r"]) -> Float[Tensor, "*b r"]:
    """The inverse of :func:`to_half_split`."""
    return rearrange(x, "... (two p) -> ... (p two)", two=2)
