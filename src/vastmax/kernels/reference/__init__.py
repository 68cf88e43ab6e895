"""What each kernel means, in torch's own operators: on every device and for every dtype."""

from vastmax.kernels.reference.alias import alias_draw, alias_table
from vastmax.kernels.reference.chosen_losses import logistic_logits_, logistic_rows, softmax_logits_, softmax_rows
from vastmax.kernels.reference.entmax import entmax, entmax_conjugate, entmax_direction, entmax_gradient
from vastmax.kernels.reference.every_class import split_partition, split_partition_backward
from vastmax.kernels.reference.gather import gather_dot, gather_sum
from vastmax.kernels.reference.narrow_softmax import narrow_partition, narrow_partition_gradients
from vastmax.kernels.reference.rounded_product import rounded_product
from vastmax.kernels.reference.row_updates import adagrad_rows, adamw_rows, sgd_rows
from vastmax.kernels.reference.segments import segments
from vastmax.kernels.reference.softmax_block import (
    BlockSums,
    TargetPlaces,
    column_maxima,
    exponentials_,
    row_sums,
    softmax_gradient_,
)
from vastmax.kernels.reference.tsallis import log_alpha, tsallis_entropy, tsallis_entropy_slope

__all__ = [
    "BlockSums",
    "TargetPlaces",
    "adagrad_rows",
    "adamw_rows",
    "alias_draw",
    "alias_table",
    "column_maxima",
    "entmax",
    "entmax_conjugate",
    "entmax_direction",
    "entmax_gradient",
    "exponentials_",
    "gather_dot",
    "gather_sum",
    "log_alpha",
    "logistic_logits_",
    "logistic_rows",
    "narrow_partition",
    "narrow_partition_gradients",
    "rounded_product",
    "row_sums",
    "segments",
    "sgd_rows",
    "softmax_gradient_",
    "softmax_logits_",
    "softmax_rows",
    "split_partition",
    "split_partition_backward",
    "tsallis_entropy",
    "tsallis_entropy_slope",
]
