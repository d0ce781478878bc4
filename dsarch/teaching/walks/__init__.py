"""Four walks through the package: what runs, line by line, with its values.

Each walk runs the real functions on the tiny trained model, in fp64 so that
every machine shows the same digits, and names for each step the statement
that ran, the formula it stands for and the tensors it bound.
"""

from dsarch.teaching.walks.attention import attention
from dsarch.teaching.walks.base import Grid, Stage, Walk, formulas
from dsarch.teaching.walks.routing import routing
from dsarch.teaching.walks.speculation import speculation
from dsarch.teaching.walks.update import update

WALKS = {
    "attention": attention,
    "routing": routing,
    "speculation": speculation,
    "update": update,
}

__all__ = ["WALKS", "Grid", "Stage", "Walk", "formulas"]
