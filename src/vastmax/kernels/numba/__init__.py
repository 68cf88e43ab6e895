"""The kernels on a CPU, compiled by Numba on first use and kept on disk."""

import torch

from vastmax.kernels.numba import bfloat16
from vastmax.kernels.numba.alias import alias_draw, alias_table
from vastmax.kernels.numba.chosen_losses import logistic_logits_, logistic_rows, softmax_logits_, softmax_rows
from vastmax.kernels.numba.entmax import entmax
from vastmax.kernels.numba.entmax_gradient import entmax_conjugate, entmax_gradient, tsallis_entropy_slope
from vastmax.kernels.numba.gather import gather_dot, gather_sum
from vastmax.kernels.numba.narrow_softmax import narrow_partition, narrow_partition_gradients
from vastmax.kernels.numba.row_updates import adagrad_rows, adamw_rows, sgd_rows
from vastmax.kernels.numba.segments import segments
from vastmax.kernels.numba.softmax_block import column_maxima, exponentials_, row_sums, softmax_gradient_

DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
"""Tensors of another dtype go to the reference implementation."""

__all__ = [
    "DTYPES",
    "adagrad_rows",
    "adamw_rows",
    "alias_draw",
    "alias_table",
    "column_maxima",
    "entmax",
    "entmax_conjugate",
    "entmax_gradient",
    "exponentials_",
    "gather_dot",
    "gather_sum",
    "logistic_logits_",
    "logistic_rows",
    "narrow_partition",
    "narrow_partition_gradients",
    "row_sums",
    "segments",
    "sgd_rows",
    "softmax_gradient_",
    "softmax_logits_",
    "softmax_rows",
    "tsallis_entropy_slope",
]

if bfloat16.has_instruction():
    from vastmax.kernels.numba.bfloat16_product import rounded_product

    __all__ += ["rounded_product"]
