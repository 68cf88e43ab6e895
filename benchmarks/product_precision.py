"""The exact loss in float32 and with factors of bfloat16, by processor: `python -m benchmarks.product_precision`.

Settings that make oneDNN and torch take a processor for a lesser one stand for others; each has a process of its
own. Errors are relative, by norm, to float64. Times are of a forward and backward pass, all in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial

import torch
from torch import Tensor

from benchmarks.measures.exact_loss import Loss, Problem, forward_backward, problem
from benchmarks.timing import side_by_side
from vastmax.functional import linear_cross_entropy
from vastmax.kernels import has_kernel
from vastmax.scoring.products import rounds_products

SETTINGS: dict[str, dict[str, str]] = {
    "none": {},
    "`ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "`ONEDNN_MAX_CPU_ISA=AVX2`, `ATEN_CPU_CAPABILITY=avx2`": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}

SMALL, LARGE = (256, 16_384), (1024, 65_536)
"""Rows and classes of the problem whose errors are taken, and of the one that is timed."""

FEATURES = 256

LOSSES: dict[str, Loss] = {
    "float32": linear_cross_entropy,
    "bfloat16": partial(linear_cross_entropy, product_dtype=torch.bfloat16),
}


def by_torch(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Ours with torch's own products of float32."""
    torch.use_deterministic_algorithms(True)
    try:
        return linear_cross_entropy(hidden, weight, target)
    finally:
        torch.use_deterministic_algorithms(False)


def errors(loss: Loss, given: Problem) -> list[float]:
    """Of the loss, the gradient of hidden and that of the class rows."""
    hidden, weight, target = given

    def found(loss: Loss, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, weight)]
        value = loss(leaves[0], leaves[1], target)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    right = found(linear_cross_entropy, torch.float64)
    return [float((a - b).norm() / b.norm()) for a, b in zip(found(loss, torch.float32), right, strict=True)]


def way() -> str:
    """By what factors are rounded."""
    if rounds_products():
        return "oneDNN"
    return "the kernel" if has_kernel("rounded_product", torch.empty(0)) else "nothing: float32, and a warning"


def measured(rounds: int) -> list[list[str]]:
    """The lines of this process: factors, errors and ratios of times."""
    small, large = (problem(rows, classes, FEATURES) for rows, classes in (SMALL, LARGE))
    every: dict[str, Loss] = {**LOSSES, "torch": by_torch}
    times = side_by_side(
        {name: partial(forward_backward, loss, large) for name, loss in every.items()}, rounds=rounds
    )
    return [
        [
            name if name == "float32" else f"{name} by {way()}",
            *(f"{error:.1e}" for error in errors(loss, small)),
            *(f"{times[name].over(times[other]) or float('nan'):.2f}" for other in ("float32", "torch")),
        ]
        for name, loss in LOSSES.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.here:
        print(json.dumps(measured(asked.rounds)))
        return
    print(
        "| setting | factors | loss | gradient of hidden | of class rows | time over float32's | over torch's own |"
    )
    print("|---|---|---|---|---|---|---|")
    again = [sys.executable, "-m", "benchmarks.product_precision", "--here"]
    again += ["--rounds", str(asked.rounds), "--threads", str(asked.threads)]
    for setting, environment in SETTINGS.items():
        out = subprocess.run(again, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
        for line in json.loads(out.stdout.splitlines()[-1]):
            print(f"| {setting} | " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
