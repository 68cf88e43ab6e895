"""The kernels on a CUDA device, compiled by Triton on first use."""

import torch

from vastmax.kernels.triton.chosen_losses import logistic_rows, softmax_rows
from vastmax.kernels.triton.entmax import entmax
from vastmax.kernels.triton.every_class import split_partition, split_partition_backward
from vastmax.kernels.triton.gather import gather_dot, gather_sum
from vastmax.kernels.triton.losses_of_logits import logistic_logits_, softmax_logits_
from vastmax.kernels.triton.row_updates import adagrad_rows, adamw_rows, sgd_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool)
"""Tensors of another dtype go to the reference implementation."""

__all__ = [
    "DTYPES",
    "adagrad_rows",
    "adamw_rows",
    "entmax",
    "gather_dot",
    "gather_sum",
    "logistic_logits_",
    "logistic_rows",
    "sgd_rows",
    "softmax_logits_",
    "softmax_rows",
    "split_partition",
    "split_partition_backward",
]
