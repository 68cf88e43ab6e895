"""The kernels on a CPU, compiled by Numba on first use and kept on disk."""

import torch

from vastmax.kernels.numba.gather import gather_dot, gather_sum

DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
"""Tensors of another dtype go to the reference implementation."""

__all__ = ["DTYPES", "gather_dot", "gather_sum"]
