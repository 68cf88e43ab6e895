"""Every head sharded by FSDP2, with every optimizer, against the same whole in one process."""

import tempfile

import pytest
import torch
from shards import CHECKS, WORLD, worker

from vastmax import parallel


@pytest.fixture(scope="module")
def errors():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder,), nprocs=WORLD)
        found = [torch.load(f"{folder}/{rank}.pt") for rank in range(WORLD)]
    if found[0]["at all"] is not None:
        pytest.skip(f"torch's own fully_shard does not work here: {found[0]['at all']}")
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_shards_are_as_the_whole(errors, name):
    assert [of_process.get(name) for of_process in errors] == [None] * WORLD


def test_what_is_no_module():
    with pytest.raises(TypeError, match="model: expected a module, got list"):
        parallel.fully_shard([])
