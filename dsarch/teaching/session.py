"""What every chapter does first."""

import torch

import dsarch
from dsarch.analysis.plots import use_book_style


def begin(seed: int = 0) -> None:
    """Set the plot style and the seed; say which versions are at work."""
    use_book_style()
    torch.manual_seed(seed)
    version = torch.__version__.split("+")[0]
    print(f"dsarch {dsarch.__version__} on torch {version}, seed {seed}")
