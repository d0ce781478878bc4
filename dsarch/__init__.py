"""A reference implementation of the DeepSeek architecture to learn from."""

from dsarch.config import Config

__version__ = "0.1.0"
__all__ = ["Config"]
