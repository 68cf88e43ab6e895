"""Compile every kernel for a device that need not be there: the interpreter takes what the compiler does not.

The architecture, as 90 for compute capability 9.0, is the argument. Nothing is run.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vastmax.kernels import triton
from vastmax.kernels.triton import chosen_losses, compiling, every_class, gather, losses_of_logits, row_updates


class AbsentDevice:
    """What Triton asks a driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(compiled, programs, *arguments, **constants):
    binary = compiled.warmup(*arguments, grid=(programs,), **constants, **compiling.OPTIONS)
    assert binary.asm["cubin"]
    print(compiled.fn.__name__)


driver.set_active(AbsentDevice())
for module in (
    chosen_losses,
    every_class,
    sys.modules[triton.entmax.__module__],
    gather,
    losses_of_logits,
    row_updates,
):
    module.launch = compile_only

hidden, weight, bias = torch.randn(64, 96), torch.randn(200, 96).bfloat16(), torch.randn(200).bfloat16()
ids, offset, number = torch.randint(200, (64, 5)), torch.randn(64, 5), torch.randn(64)
starts, rows = torch.arange(64) * 5, torch.arange(64)

triton.gather_dot(hidden, weight, ids)
triton.gather_sum(weight, ids.view(-1), starts, offset.view(-1))
triton.logistic_rows(hidden, weight, bias, ids, ids > 3, offset, offset, 0.5)
triton.softmax_rows(hidden, weight, bias, ids, offset, 0.5)
triton.logistic_logits_(offset, offset[0], 0.5)
triton.softmax_logits_(number, offset, number, offset[0], ids[0], ids[:, 0].contiguous(), 0.5)

half, target = hidden.bfloat16(), ids[:, 0]
triton.split_partition(half, weight, bias, target, softcap=3.0)
per_row = target, number, number, number, number
triton.split_partition_backward(half, weight, bias, *per_row, softcap=3.0, filter_eps=1e-4)

runs, uniform = (ids.view(-1), starts, offset.view(-1)), torch.rand(64, 96)
state, by_row, steps = torch.rand(200, 96), torch.rand(200, 1), torch.arange(200)
triton.adagrad_rows(weight, state, rows, weight.float(), runs, lr=0.1, eps=1e-3, uniform=uniform)
triton.adamw_rows(
    weight, state, by_row, steps, rows, hidden, step=3, lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1
)
triton.sgd_rows(weight, state, steps, rows, hidden, step=3, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)

for order in (0.5, 0.3):
    triton.entmax(hidden, torch.full((1, 1), order, dtype=torch.float64), log=order == 0.3)
