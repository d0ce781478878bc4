"""Kernels that the tests start inherit this environment."""

import os

from book.environment import KERNEL_ENV

os.environ.update(KERNEL_ENV)
