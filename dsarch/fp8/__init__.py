"""FP8 from the definition to a training layer: chapter 8.

``formats`` says what a code means, ``reference`` what DeepSeek's scaling and
matrix product do, ``triton`` does the same on a GPU, ``ops`` picks between
the two, and ``linear`` makes a layer of it.
"""

from dsarch.fp8 import formats, layout, linear, ops, reference
from dsarch.fp8.linear import FP8Linear, Recipe, convert, precision_map

__all__ = [
    "FP8Linear",
    "Recipe",
    "convert",
    "formats",
    "layout",
    "linear",
    "ops",
    "precision_map",
    "reference",
]
