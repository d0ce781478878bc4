"""A reference implementation of the DeepSeek architecture to learn from."""

from dsarch.attention import GroupedQueryAttention
from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.mla import MLA

__version__ = "0.1.0"
__all__ = ["MLA", "Cache", "Config", "GroupedQueryAttention"]
