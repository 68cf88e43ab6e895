"""Sparse heads under DistributedDataParallel against one process with all rows; as a program, a table of it."""

import tempfile

import pytest
import torch
from processes import PAIRS, WORLDS, worker


def distances():
    """The largest difference of gradients, weights and state, of each process: {(head, optimizer, world): ...}."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder,), nprocs=max(WORLDS))
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(max(WORLDS))]


@pytest.fixture(scope="module")
def found():
    return distances()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("pair", PAIRS, ids=", ".join)
def test_processes_train_as_one_does(found, pair, world):
    """With unequal numbers of rows, none too, accumulation, and all of momentum, decay and lateness."""
    for rank in range(world):
        assert found[rank][*pair, world] < 1e-12


if __name__ == "__main__":
    processes = distances()
    print("| head | optimizer |", " | ".join(f"{world}" for world in WORLDS), "|\n|---|---|" + "---|" * len(WORLDS))
    for pair in PAIRS:
        row = [max(processes[rank][*pair, world] for rank in range(world)) for world in WORLDS]
        print("|", " | ".join([*pair, *(f"{largest:.0e}" for largest in row)]), "|")
