"""Products of factors rounded to bfloat16: the meaning against float64, and Numba equal to it."""

import os
import subprocess
import sys

import pytest
import torch

from vastmax.kernels import reference
from vastmax.kernels.numba import bfloat16, bfloat16_product

has_instruction = pytest.mark.skipif(
    not bfloat16.has_instruction(), reason="this processor does not multiply pairs of bfloat16 numbers"
)


@pytest.fixture(params=["reference", pytest.param("numba", marks=has_instruction)])
def rounded_product(request, monkeypatch):
    """Each implementation, and Numba's as if few terms were to be packed at a time."""
    if request.param == "reference":
        return reference.rounded_product
    monkeypatch.setattr(bfloat16_product, "TERMS", 256)
    return bfloat16_product.rounded_product


def laid_out(rows, columns, turned):
    return torch.randn(columns, rows).t() if turned else torch.randn(rows, columns)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("turned_right", [False, True])
@pytest.mark.parametrize("turned_left", [False, True])
@pytest.mark.parametrize(
    ("rows", "terms", "columns"),
    [(1, 1, 1), (6, 2, 64), (7, 3, 65), (289, 129, 63), (300, 777, 31), (31, 777, 300), (5, 0, 3), (0, 4, 3)],
)
def test_factors_are_rounded_and_sums_are_not(
    rounded_product, rows, terms, columns, turned_left, turned_right, add
):
    a, b = laid_out(rows, terms, turned_left), laid_out(terms, columns, turned_right)
    out = torch.randn(rows, columns) if add else torch.full((rows, columns), torch.nan)
    expected = a.bfloat16().double() @ b.bfloat16().double() + (out.double() if add else 0)
    assert rounded_product(a, b, out, add=add) is out
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("terms", [1, 64])
def test_every_number_is_rounded_as_torch_does(rounded_product, turned, terms):
    """Ties to even, into the next binade, to infinity and nan included; each is the only one of its row."""
    bits = [0x3F808000, 0x3F818000, 0x3F80FFFF, 0x3FFFFFFF, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF, 0]
    bits += [0x3F808001, 0x3F807FFF, 0x3F817FFF, *(one | 0x80000000 for one in bits)]
    numbers = torch.tensor(bits, dtype=torch.uint32).view(torch.float32).repeat(7)
    rows = torch.arange(len(numbers))
    factor = torch.zeros(len(numbers), terms)
    factor[rows, rows % terms] = numbers
    factor = factor.t().contiguous().t() if turned else factor
    expected = numbers.bfloat16().float()
    of_left = rounded_product(factor, torch.ones(terms, 1), torch.empty(len(numbers), 1))
    of_right = rounded_product(torch.ones(1, terms), factor.t(), torch.empty(1, len(numbers)))
    for found in (of_left, of_right):
        torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=0, equal_nan=True)


@has_instruction
@pytest.mark.parametrize("shape", [(40, 600, 700), (700, 600, 40)])
def test_as_many_threads_as_there_are_make_the_same(shape):
    rows, terms, columns = shape
    a, b, before = torch.randn(rows, terms), torch.randn(terms, columns), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(bfloat16_product.rounded_product(a, b, torch.empty(rows, columns)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_no_instruction_where_the_compiler_is_told_of_another_processor():
    """Compiled for one that has none, the instruction would end the process."""
    code = "from vastmax.kernels.numba import bfloat16; print(bfloat16.has_instruction())"
    environment = os.environ | {"NUMBA_CPU_NAME": "generic"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
