"""The least that the mathematics allow, as contenders: bare products and bare reads, timed in turn with the rest.

A machine's rate drifts from minute to minute and differs from shape to shape; that of the very products of a
measure, in the same rounds, is the honest bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.rows import Floor
from benchmarks.timing import Measured, Timer, Wall
from vastmax import kernels
from vastmax.scoring.products import LARGE, products

ROWS_READ = 65_536
"""Random rows that the measured read visits."""

ROWS_A_BAG = 64


@dataclass(frozen=True)
class Products:
    """The three matrix products of a linear layer of N rows and V classes, forward and backward, block by block.

    Attributes:
        rows: N.
        classes: V.
        features: d.
        block: classes of one product; the products of wide blocks fill the caches with what they write.
        dtype: of the factors.
        most_blocks: blocks that are computed; the time of the others follows.
        device: where.
        fastest: by the way that the exact loss found to be faster on this processor, rather than by torch's own.
    """

    rows: int
    classes: int
    features: int
    block: int
    dtype: torch.dtype = torch.float32
    most_blocks: int = 8
    device: str = "cpu"
    fastest: bool = False

    @property
    def blocks(self) -> float:
        """Blocks there are for each that is computed."""
        whole = self.classes / min(self.block, self.classes)
        return whole / min(self.most_blocks, math.ceil(whole))

    def prepare(self) -> Timer:
        """Return the timer of the blocks that are computed."""
        block = min(self.block, self.classes)
        hidden = torch.randn(self.rows, self.features, dtype=self.dtype, device=self.device)
        weight = torch.randn(block, self.features, dtype=self.dtype, device=self.device)
        logits = torch.empty(self.rows, block, dtype=self.dtype, device=self.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.empty_like(weight)
        computed = min(self.most_blocks, math.ceil(self.classes / block))

        def call() -> None:
            with products(None, hidden.device, count=LARGE if self.fastest else 0):
                for _ in range(computed):
                    torch.mm(hidden, weight.T, out=logits)
                    torch.mm(logits, weight, out=hidden_grad)
                    torch.mm(logits.T, hidden, out=weight_grad)

        return Wall(call, self.device)

    def floor(self, measured: Measured) -> Floor | None:
        """The floor that follows from the measured blocks."""
        if measured.median is None:
            return None
        seconds = measured.median * self.blocks
        rate = 3 * 2 * self.rows * self.classes * self.features / seconds / 1e9
        dtype = str(self.dtype).removeprefix("torch.")
        return Floor(seconds, f"3 matrix products, {rate:,.0f} GFLOP/s measured in {dtype}")


def every_way(
    rows: int, classes: int, features: int, blocks: Sequence[int], most_blocks: int = 8
) -> list[Products]:
    """The products in float32, in blocks of several sizes and by both ways that torch has on a CPU."""
    return [
        Products(rows, classes, features, block, most_blocks=most_blocks, fastest=fastest)
        for block in blocks
        for fastest in (False, True)
    ]


def best_products(candidates: Sequence[Products], measured: Sequence[Measured]) -> Floor | None:
    """The floor by the fastest of several blockings and ways."""
    floors = [product.floor(found) for product, found in zip(candidates, measured, strict=True)]
    return min((floor for floor in floors if floor is not None), key=lambda floor: floor.seconds, default=None)


def row_reads(table: Tensor) -> dict[str, Callable[[], Timer]]:
    """Read random rows of a table larger than the caches: by torch's summed rows, and by our gathered products."""
    ids = torch.randint(len(table), (ROWS_READ // ROWS_A_BAG, ROWS_A_BAG), device=table.device)

    def embedding_bag() -> Timer:
        return Wall(lambda: functional.embedding_bag(ids, table, mode="sum"), table.device)

    def gather_dot() -> Timer:
        hidden = torch.randn(len(ids), table.shape[1], device=table.device)
        kernel = kernels.implementation("gather_dot", hidden, table)
        return Wall(lambda: kernel(hidden, table, ids), table.device)

    return {"rows read: embedding_bag": embedding_bag, "rows read: gather_dot": gather_dot}


def row_rates(found: dict[str, Measured], row_bytes: int) -> dict[str, float]:
    """Take the reads out of what was measured and return their bytes a second, by kernel."""
    reads = {name: found.pop(name) for name in list(found) if name.startswith("rows read: ")}
    return {
        name.removeprefix("rows read: "): ROWS_READ * row_bytes / read.median
        for name, read in reads.items()
        if read.median is not None
    }


def row_floor(num_bytes: float, kind: str, rates: dict[str, float]) -> Floor | None:
    """The seconds of moving so many bytes of random rows, at the rate of the fastest read."""
    rate = max(rates.values(), default=None)
    if rate is None:
        return None
    return Floor(num_bytes / rate, f"{kind}: {num_bytes / 1e6:,.1f} MB at {rate / 1e9:.1f} GB/s of random rows")


def copy_elements(elements: int) -> Callable[[], Timer]:
    """Copy so many float32: a read and a write of each."""

    def prepare() -> Timer:
        source = torch.ones(elements)
        target = torch.empty_like(source)
        return Wall(lambda: target.copy_(source))

    return prepare


def copy_floor(num_bytes: float, kind: str, copied: Measured, elements: int) -> Floor | None:
    """The seconds of moving so many bytes in order, at the rate of the measured copy."""
    if copied.median is None:
        return None
    rate = 2 * 4 * elements / copied.median
    return Floor(num_bytes / rate, f"{kind}: {num_bytes / 1e6:,.0f} MB at {rate / 1e9:.1f} GB/s copied")


def sum_of(*floors: Floor | None) -> Floor | None:
    """One floor after the other, None where one is unknown."""
    known = [floor for floor in floors if floor is not None]
    if len(known) < len(floors):
        return None
    return Floor(sum(floor.seconds for floor in known), " + ".join(floor.kind for floor in known))
