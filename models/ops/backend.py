"""The one place that chooses how ratings are computed with: compiled loops, GPU kernels or array operations.

A backend is a module with the functions of array_ops.py, and the same results but for rounding.
"""

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch

from models.ops import array_ops
from models.ops.rating_pattern import RatingPattern

FEW_RATINGS = 1024  # for so few, array operations are as fast, and need not be loaded
WIDEST_ON_GPU = 128  # coordinates of a row whose products with each other fit a GPU's registers

_forced: ModuleType | None = None


def of_pattern(pattern: RatingPattern, row_width: int = 0) -> ModuleType:
    """Return the backend for the ratings of a pattern; `row_width` is the width of the rows that `ridge` multiplies."""
    if pattern.row.device.type != "cpu" and row_width > WIDEST_ON_GPU:
        return _forced or array_ops
    return of_ratings(pattern.row, pattern.num_users)


def of_ratings(row: torch.Tensor, num_users: int) -> ModuleType:
    """Return the backend for ratings of so many users, `row` int64 (R,).

    On a CPU that is numba_kernels.py. For few ratings or a single user it is array_ops.py: whoever waits for one list
    would wait longer until the loops are loaded.
    """
    if _forced is None and row.device.type == "cpu" and num_users > 1 and len(row) > FEW_RATINGS:
        from models.ops import numba_kernels
        return numba_kernels
    return of_device(row.device)


def of_device(device: torch.device) -> ModuleType:
    """Return the backend for `uniform`: triton_kernels.py on a GPU that runs it, else array_ops.py."""
    return _forced or (_gpu_backend(device) if device.type == "cuda" else array_ops)


def of_rows(rows: torch.Tensor) -> ModuleType:
    """Return the backend for `row_adam` of rows, int64 (B,)."""
    if _forced is None and rows.device.type == "cpu":
        from models.ops import numba_kernels
        return numba_kernels
    return of_device(rows.device)


@contextlib.contextmanager
def forced(module: ModuleType) -> Iterator[None]:
    """Use one backend for everything, for tests."""
    global _forced
    before, _forced = _forced, module
    try:
        yield
    finally:
        _forced = before


@cache
def _gpu_backend(device: torch.device) -> ModuleType:
    """Return triton_kernels.py, or, after a warning, array_ops.py where Triton is missing or has no C compiler."""
    try:
        from models.ops import triton_kernels
        triton_kernels.uniform(0, torch.zeros(1, dtype=torch.int64, device=device))
    except Exception as error:  # of whatever kind: array operations do the same, but slower
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"training is several times slower on this GPU without Triton's kernels: {reason}", stacklevel=2)
        return array_ops
    return triton_kernels
