"""Replicas whose sparse gradients are reduced as rows, beside DistributedDataParallel and alone."""

import tempfile

import pytest
import torch
from replicas import CHECKS, Model, rows, worker

from vastmax import heads, parallel


@pytest.fixture(scope="module")
def errors():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder,), nprocs=2)
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CHECKS)
def test_replicas(errors, name):
    assert [of_process.get(name) for of_process in errors] == [None, None]


def test_one_process_is_left_as_it_is():
    model, other = Model(), parallel.reduce_rows(Model())
    for one in (model, other):
        one(*rows(1)).backward()
    assert torch.equal(model.head.weight.grad.to_dense(), other.head.weight.grad.to_dense())


def test_without_sparse_gradients_nothing_is_changed():
    head = heads.Softmax(3, 5)
    assert parallel.reduce_rows(head) is head
    assert not hasattr(head, "_ddp_params_and_buffers_to_ignore")


def test_what_is_no_module():
    with pytest.raises(TypeError, match="model: expected the module that is to be wrapped, got list"):
        parallel.reduce_rows([])
