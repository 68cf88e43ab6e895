"""Floors: the operations and bytes that they stand for."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floors import (
    ROWS_READ,
    Products,
    best_products,
    copy_elements,
    copy_floor,
    every_way,
    row_floor,
    row_rates,
    row_reads,
    sum_of,
)
from benchmarks.rows import Floor
from benchmarks.timing import Measured, side_by_side


@pytest.mark.parametrize("fastest", [False, True])
@pytest.mark.parametrize(("classes", "block", "most"), [(64, 64, 8), (64, 16, 2), (64, 16, 8), (60, 256, 8)])
def test_products_make_the_operations_of_a_linear_layer_forward_and_backward(classes, block, most, fastest):
    products = Products(8, classes, 4, block, most_blocks=most, fastest=fastest)
    timer = products.prepare()
    with FlopCounterMode(display=False) as counted:
        timer()
    assert counted.get_total_flops() * products.blocks == 3 * 2 * 8 * classes * 4


def test_a_floor_of_some_blocks_is_that_of_all():
    floor = Products(8, 64, 4, block=16, most_blocks=2).floor(Measured([1.0, 3.0, 2.0]))
    assert floor.seconds == 4.0  # two of four blocks took 2 s
    assert Products(8, 64, 4, block=16).floor(Measured(problem="failed")) is None


def test_the_best_blocking_is_the_floor():
    products = [Products(8, 64, 4, block) for block in (16, 64)]
    assert best_products(products, [Measured([3.0]), Measured([2.0])]).seconds == 2.0
    assert best_products(products, [Measured([3.0]), Measured(problem="failed")]).seconds == 3.0
    assert best_products(products, [Measured(problem="failed")] * 2) is None


def test_every_blocking_by_every_way():
    found = [(each.block, each.fastest) for each in every_way(8, 64, 4, (16, 64))]
    assert found == [(16, False), (16, True), (64, False), (64, True)]


def test_rows_and_copies_move_at_the_measured_rate():
    found = {
        "rows read: slow": Measured([4.0]),
        "rows read: fast": Measured([2.0]),
        "rows read: broken": Measured(problem="failed"),
        "ours": Measured([1.0]),
    }
    rates = row_rates(found, row_bytes=1024)
    assert rates == {"slow": ROWS_READ * 256, "fast": ROWS_READ * 512}
    assert list(found) == ["ours"]
    assert row_floor(ROWS_READ * 1024, "rows", rates).seconds == 2.0
    assert row_floor(1.0, "rows", {}) is None
    assert copy_floor(80.0, "update", Measured([2.0]), elements=5).seconds == 4.0  # 40 bytes moved in 2 s
    assert copy_floor(80.0, "update", Measured(problem="failed"), elements=5) is None


def test_reads_and_copies_run():
    found = side_by_side(row_reads(torch.randn(100, 8)) | {"copy": copy_elements(100)}, rounds=1)
    assert [measured.problem for measured in found.values()] == [""] * 3


def test_floors_add_up_if_all_are_known():
    total = sum_of(Floor(1.0, "products"), Floor(2.0, "bytes"))
    assert (total.seconds, total.kind) == (3.0, "products + bytes")
    assert sum_of(Floor(1.0, "products"), None) is None
