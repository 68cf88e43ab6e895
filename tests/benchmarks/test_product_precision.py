"""The table of products: its errors are those of float32 and of bfloat16."""

import pytest

from benchmarks.measures.exact_loss import problem
from benchmarks.product_precision import LOSSES, errors, way


@pytest.mark.parametrize("name", LOSSES)
def test_errors_are_those_of_the_factors(name):
    rounded = name == "bfloat16" and not way().startswith("nothing")
    least, most = (1e-7, 2**-8) if rounded else (0.0, 1e-6)
    assert all(least < error < most for error in errors(LOSSES[name], problem(64, 2000, 64)))
