"""Golden vectors of the FP8 layer with its gradients, and of packed caches."""

import torch
from torch import Generator, Tensor

from dsarch.fp8.layout import (
    latent_scale,
    pack_index,
    pack_latent,
    unpack_index,
    unpack_latent,
)
from dsarch.fp8.linear import Recipe, ScaledLinear
from dsarch.fp8.reference import BLOCK, difference, rounded
from tests.golden.parts import Vectors, random

# Tokens, channels and outputs: in each the axis of one product is cut.
LONG = {"channels": (4, 131, 3), "outputs": (3, 5, 133), "tokens": (135, 4, 3)}
RECIPES = {
    "v3": Recipe(),
    "fp22": Recipe(pow2=True, accumulator="fp22"),
    "e5m2": Recipe(gradient_format="e5m2", accumulator="fp22"),
    "e5m6": Recipe(cache="e5m6", accumulator="fp22"),
}


def fp8_linear(generator: Generator) -> Vectors:
    """Output and both gradients, by autograd; three axes, four recipes.

    Sums of `v3` are in fp32, the others emulate the unit to the last bit.
    """
    made: Vectors = {}
    for axis, (z, d, f) in LONG.items():
        x, weight = random(generator, z, d) * 3, random(generator, f, d)
        dy = random(generator, z, f) * 1e-3
        x[1, 2], dy[2, 1] = 400.0, 0.2
        made |= {f"in.{axis}.x": x, f"in.{axis}.weight": weight}
        made[f"in.{axis}.dy"] = dy
        for name, recipe in RECIPES.items():
            if name in ("v3", "fp22") or axis == "tokens":
                made |= _layer(f"out.{axis}.{name}", x, weight, dy, recipe)
    weight = made["in.channels.weight"]
    made["out.rounded"] = rounded(weight[None], BLOCK, format="e5m2")
    apart = difference(weight, made["out.rounded"][0])
    return made | {"out.difference": torch.tensor([apart])}


def _layer(
    name: str, x: Tensor, weight: Tensor, dy: Tensor, recipe: Recipe
) -> Vectors:
    x, weight = (t.clone().requires_grad_() for t in (x, weight))
    with torch.enable_grad():
        y = ScaledLinear.apply(x, weight, recipe)
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
    return {f"{name}.y": y.detach(), f"{name}.dx": dx, f"{name}.dw": dw}


def fp8_layout(generator: Generator) -> Vectors:
    """Bytes of cached latents and indexer keys, and what they decode to.

    One row is zero, one below the smallest scale, one large.
    """
    size = torch.tensor([1.0, 0.0, 1e-6, 300.0, 0.02])[:, None]
    c, k_rope = random(generator, 5, 256) * size, random(generator, 5, 6)
    k_rope[0, :2] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])  # ties
    packed = pack_latent(c, k_rope)
    latent, rope = unpack_latent(packed, (256, 6), torch.float32)
    keys = random(generator, 5, 128) * size
    amax = c.abs().amax(-1)
    made = {
        "in.c": c,
        "in.k_rope": k_rope,
        "in.keys": keys,
        "in.amax": amax,
        "out.scales": latent_scale(amax),
        "out.latent.bytes": packed,
        "out.latent": latent,
        "out.k_rope": rope,
    }
    packs = {
        "row": pack_index(keys),
        "page": pack_index(keys, paged=True),
        "free": pack_index(keys, pow2=False),
    }
    for name, rows in packs.items():
        made[f"out.{name}.bytes"] = rows
        made[f"out.{name}"] = unpack_index(rows, paged=name == "page")
    return made


FUNCTIONS = (fp8_linear, fp8_layout)
