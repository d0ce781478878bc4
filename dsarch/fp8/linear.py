r"""A linear layer whose three products run in FP8.

Forward $Y = X W^\top$, input gradient $dX = dY\,W$ and weight gradient
$dW = dY^\top X$ each contract over another axis, and a scale must be
constant along the axis that is summed within a tile. So activations and
gradients are scaled per token and 128 channels for the first two, and per
channel and 128 tokens for the third; square weight blocks serve both ways.

Source: DeepSeek-V3 report, section 3.3 and appendix B.2.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsarch.fp8.ops import Backend, dequantize, fp8_gemm, quantize
from dsarch.fp8.reference import BLOCK, TILE, Accumulator, Block, Quantized

# Names that DeepSeek-V3 keeps out of FP8. Norms and the attention core hold
# no linear layer; their modules are never swapped.
KEPT = (
    "embed_tokens",
    "lm_head",
    "shared_head",
    "gate",
    "eh_proj",
    "weights_proj",
)
AFTER_ATTENTION = "o_proj"


class Recipe(NamedTuple):
    """How each operand is rounded; the defaults are DeepSeek-V3's.

    ``cache`` is the format of the activation kept for the weight gradient.
    Sides that are not multiples of a tile end in a smaller tile.
    """

    activation: Block = TILE
    weight: Block = BLOCK
    gradient: Block = TILE
    format: str = "e4m3"
    gradient_format: str = "e4m3"
    cache: str = "e4m3"
    pow2: bool = False
    accumulator: Accumulator = "fp32"
    backend: Backend | None = None

    def quantize(self, x: Tensor, block: Block, format: str) -> Quantized:
        """One operand; E5M6 always comes with power-of-two scales."""
        pow2 = self.pow2 or format == "e5m6"
        return quantize(
            x, block, format=format, pow2=pow2, backend=self.backend
        )

    def product(self, a: Quantized, b: Quantized, dtype: torch.dtype) -> Tensor:
        """$a b^T$ with this recipe's accumulator."""
        return fp8_gemm(
            a,
            b,
            accumulator=self.accumulator,
            dtype=dtype,
            backend=self.backend,
        )


DEEPSEEK = Recipe()


def dgrad(
    dy: Float[Tensor, "z f"], w: Quantized, recipe: Recipe = DEEPSEEK
) -> Float[Tensor, "z d"]:
    r"""$dX = dY\,W$, summed over output channels."""
    grad = recipe.quantize(dy, recipe.gradient, recipe.gradient_format)
    return recipe.product(grad, w.t(), dy.dtype)


def wgrad(
    dy: Float[Tensor, "z f"], x: Quantized, recipe: Recipe = DEEPSEEK
) -> Float[Tensor, "f d"]:
    r"""$dW = dY^\top X$, summed over tokens, in float32.

    The kept activation has tiles along the channels; they are decoded and
    rounded again along the tokens.
    """
    along = (recipe.gradient[1], recipe.gradient[0])
    grad = recipe.quantize(dy, along, recipe.gradient_format)
    x_wide = dequantize(x, backend=recipe.backend)
    along = (recipe.activation[1], recipe.activation[0])
    x_again = recipe.quantize(x_wide, along, recipe.format)
    return recipe.product(grad.t(), x_again.t(), torch.float32)


class ScaledLinear(torch.autograd.Function):
    """The three products as one differentiable function.

    Rounding counts as the identity: the gradient of a rounded value is
    passed on to the value itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe) -> Tensor:
        q = recipe.quantize(x, recipe.activation, recipe.format)
        w = recipe.quantize(weight, recipe.weight, recipe.format)
        kept = q
        if recipe.cache != recipe.format:
            kept = recipe.quantize(x, recipe.activation, recipe.cache)
        ctx.save_for_backward(kept.values, kept.scale, w.values, w.scale)
        ctx.recipe, ctx.dtype = recipe, weight.dtype
        return recipe.product(q, w, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, x_scale, w, w_scale = ctx.saved_tensors
        recipe, dx, dw = ctx.recipe, None, None
        if ctx.needs_input_grad[0]:
            dx = dgrad(dy, Quantized(w, w_scale, recipe.weight), recipe)
        if ctx.needs_input_grad[1]:
            kept = Quantized(x, x_scale, recipe.activation)
            dw = wgrad(dy, kept, recipe).to(ctx.dtype)
        return dx, dw, None


class Rounded(torch.autograd.Function):
    """A weight rounded to FP8 and back; its gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, recipe: Recipe) -> Tensor:
        q = recipe.quantize(weight, recipe.weight, recipe.format)
        return dequantize(q, weight.dtype, recipe.backend)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, None]:
        return dw, None


class FP8Linear(nn.Linear):
    """A linear layer that multiplies in FP8 and keeps its master weight.

    The parameter, its name and its dtype stay those of the layer it
    replaces; it is rounded anew in every forward pass. ``ValueError`` when
    the input's last axis is not ``in_features``.
    """

    def __init__(self, linear: nn.Linear, recipe: Recipe = DEEPSEEK) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.recipe = recipe
        self.train(linear.training)

    def forward(self, x: Float[Tensor, "*z d"]) -> Float[Tensor, "*z f"]:
        if x.size(-1) != self.in_features:
            raise ValueError(
                f"input is {x.size(-1)} wide, the weight takes "
                f"{self.in_features}"
            )
        flat = x.reshape(x.shape[:-1].numel(), self.in_features)
        y = ScaledLinear.apply(flat, self.weight, self.recipe)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def matrix(self) -> Tensor:
        """The rounded weight: MLA contracts its latent's with einsum."""
        return Rounded.apply(self.weight, self.recipe)


def convert(
    model: nn.Module, skip: tuple[str, ...] = KEPT, recipe: Recipe = DEEPSEEK
) -> nn.Module:
    """Swap linear layers for :class:`FP8Linear`, in place; returns the model.

    A layer stays when any part of its dotted name equals a name in ``skip``:
    ``"gate"`` keeps the router and still converts ``gate_proj``. Parameters
    are shared, so a checkpoint and an optimizer do not notice. The input of
    ``o_proj``, the linear after attention, is kept for the weight gradient
    in E5M6, because attention's own backward pass uses it as well.
    """
    made: dict[nn.Linear, FP8Linear] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if not _swaps(name, layer, skip):
            continue
        if layer not in made:
            made[layer] = FP8Linear(layer, _recipe_for(name, recipe))
        if not name:
            return made[layer]
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made[layer])
    return model


def precision_map(model: nn.Module) -> dict[str, str]:
    """For each module with parameters of its own, what it computes in."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None)
        if isinstance(module, FP8Linear):
            found[name] = module.recipe.format
        elif own is not None:
            found[name] = str(own.dtype).removeprefix("torch.")
    return found


def _swaps(name: str, layer: nn.Module, skip: tuple[str, ...]) -> bool:
    if not isinstance(layer, nn.Linear) or isinstance(layer, FP8Linear):
        return False
    return not set(name.split(".")) & set(skip)


def _recipe_for(name: str, recipe: Recipe) -> Recipe:
    after_attention = name.rpartition(".")[2] == AFTER_ATTENTION
    return recipe._replace(cache="e5m6") if after_attention else recipe
