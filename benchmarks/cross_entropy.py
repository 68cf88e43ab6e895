"""The exact loss: time and memory of forward and backward beside torch's `linear` + `cross_entropy`."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Machine, in_turn, paired_ratio
from vastmax.functional import linear_cross_entropy
from vastmax.study.memory import peak_memory

ROWS, CLASSES, FEATURES = 4096, 131_072, 256
CHUNKED_ROWS, CHUNKED_CLASSES = 256, 100_000


def torch_plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Form every logit."""
    return functional.cross_entropy(functional.linear(hidden, weight), target)


def torch_chunked(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Use torch's own chunked loss."""
    loss: Tensor = functional.linear_cross_entropy(hidden, weight, target, options=nn.LinearCrossEntropyOptions())
    return loss


def problem(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random rows, class rows and targets."""
    torch.manual_seed(0)
    hidden = (0.3 * torch.randn(rows, FEATURES)).requires_grad_()
    weight = (0.3 * torch.randn(classes, FEATURES)).requires_grad_()
    return hidden, weight, torch.randint(classes, (rows,))


def forward_backward(loss: Callable[..., Tensor], problem: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """Return a call that does one forward and backward pass and drops the gradients."""

    def call() -> None:
        hidden, weight, _ = problem
        hidden.grad = weight.grad = None
        loss(*problem).backward()

    return call


def run(machine: Machine, *, rounds: int) -> list[dict[str, Any]]:
    """Measure, and return a row per implementation."""
    rows = []
    for shape, peer, name, count in (
        ((ROWS, CLASSES), torch_plain, "torch linear + cross_entropy", rounds),
        ((CHUNKED_ROWS, CHUNKED_CLASSES), torch_chunked, "torch linear_cross_entropy, chunked", 1),
    ):
        inputs = problem(*shape)
        calls = {"vastmax": forward_backward(linear_cross_entropy, inputs), name: forward_backward(peer, inputs)}
        seconds = in_turn(calls, count)
        memory = {}
        for each, call in calls.items():
            inputs[0].grad = inputs[1].grad = None
            memory[each] = peak_memory(call, torch.device("cpu"))
        floor = machine.matrix_floor(3 * 2 * shape[0] * shape[1] * FEATURES)
        rows += [
            {
                "measure": f"exact loss, forward + backward, N={shape[0]} V={shape[1]} d={FEATURES}",
                "implementation": each,
                "seconds": statistics.median(seconds[each]),
                "rounds": count,
                "floor_seconds": floor,
                "peak_bytes": memory[each],
                "time_over_peer": paired_ratio(seconds[each], seconds[name]),
                "memory_over_peer": memory[each] / memory[name],
            }
            for each in calls
        ]
    return rows
