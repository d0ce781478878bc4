"""Figures that the reader can change, on the website and in JupyterLab."""

from dsarch.teaching.explorers.absorption_dial import absorption_dial
from dsarch.teaching.explorers.base import Explorer
from dsarch.teaching.explorers.head_map import head_map
from dsarch.teaching.explorers.kv_cache import kv_cache
from dsarch.teaching.explorers.rotation import rotation

__all__ = [
    "Explorer",
    "absorption_dial",
    "head_map",
    "kv_cache",
    "rotation",
]
