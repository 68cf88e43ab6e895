"""Sorted occurrences of ids: the meaning by hand, and Numba equal to it."""

import pytest
import torch

import vastmax
from vastmax.kernels import numba, reference


@pytest.fixture(params=[reference, numba], ids=["reference", "numba"])
def kernels(request):
    return request.param


def test_runs_of_equal_ids(kernels):
    classes, starts, order = kernels.segments(torch.tensor([7, 3, 7, 0, 3, 7]), 8)
    assert classes.tolist() == [0, 3, 7]
    assert starts.tolist() == [0, 1, 3]
    assert order.tolist() == [3, 1, 4, 0, 2, 5]


@pytest.mark.parametrize("ids", [[7, 3, 7, 0, 3, 7], [2, 2, 2], [5], [0, 1, 2], []])
def test_places_without_a_run_are_left_over_where_the_number_of_classes_is_not_looked_at(ids):
    ids = torch.tensor(ids, dtype=torch.int64)
    expected = reference.segments(ids, 8)
    with vastmax.checks("device"):
        found = reference.segments(ids, 8)
    count = len(expected.classes)
    assert torch.equal(found.classes[:count], expected.classes)
    assert torch.equal(found.starts[:count], expected.starts)
    assert torch.equal(found.order, expected.order)
    assert (found.classes[count:] == -1).all()
    assert (found.starts[count:] == len(ids)).all()
    assert len(found.classes) == len(found.starts) == len(ids)


@pytest.mark.parametrize("num_classes", [1, 2, 2048, 2049, 1 << 22, (1 << 22) + 1, 10**9])
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_numba_is_the_reference(num_classes, length):
    ids = torch.randint(num_classes, (length,))
    ids[length // 2 :] = num_classes - 1
    for mine, expected in zip(numba.segments(ids, num_classes), reference.segments(ids, num_classes), strict=True):
        assert torch.equal(mine, expected)
