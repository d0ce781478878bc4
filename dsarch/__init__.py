"""A reference implementation of the DeepSeek architecture to learn from."""

from dsarch.attention import GroupedQueryAttention
from dsarch.cache import Cache
from dsarch.checkpoint import load_checkpoint, save_checkpoint
from dsarch.config import Config
from dsarch.dsa import Indexer
from dsarch.generate import generate
from dsarch.mla import MLA
from dsarch.model import DeepSeek
from dsarch.moe import DeepSeekMoE, SparseMoE
from dsarch.mtp import MTP

__version__ = "0.1.0"
__all__ = [
    "MLA",
    "MTP",
    "Cache",
    "Config",
    "DeepSeek",
    "DeepSeekMoE",
    "GroupedQueryAttention",
    "Indexer",
    "SparseMoE",
    "generate",
    "load_checkpoint",
    "save_checkpoint",
]
