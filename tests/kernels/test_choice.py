"""Which implementation runs, and what is said where one is missing."""

import logging
from types import SimpleNamespace

import pytest
import torch

from vastmax import heads
from vastmax.kernels import backend, choice, implementation, numba, reference, use

CPU = torch.zeros(1)


@pytest.fixture
def no_numba(monkeypatch):
    """A process that has not looked for Numba yet, and would not find it."""

    def without(name):
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(choice, "_modules", {})
    monkeypatch.setattr(choice, "importlib", SimpleNamespace(import_module=without))


@pytest.mark.parametrize("name", ["auto", "numba"])
def test_numba_takes_what_it_has_kernels_for(name):
    with use(name):
        assert implementation("gather_dot", CPU) is numba.gather_dot
        assert implementation("gather_dot", CPU, None) is numba.gather_dot
        assert implementation("gather_dot", CPU.bfloat16()) is reference.gather_dot
        assert implementation("gather_dot", CPU, CPU.half()) is reference.gather_dot
        assert implementation("gather_dot", CPU.to("meta")) is reference.gather_dot
        assert implementation("split_partition", CPU) is reference.split_partition


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_other_choices_leave_the_cpu_to_torch(name):
    with use(name):
        assert implementation("gather_dot", CPU) is reference.gather_dot


def test_a_choice_lasts_until_its_block_ends():
    assert backend() == "auto"
    with use("torch"):
        with use("numba"):
            assert backend() == "numba"
        assert backend() == "torch"
        with pytest.raises(RuntimeError, match="stop"), use("triton"):
            raise RuntimeError("stop")
        assert backend() == "torch"
    assert backend() == "auto"
    use("torch")
    assert backend() == "torch"
    use("auto")


def test_a_choice_that_is_none():
    with pytest.raises(ValueError, match=r"backend: expected .*numba.*got 'cuda'"):
        use("cuda")
    assert backend() == "auto"


def test_without_numba_torch_does_the_work_and_says_so_once(no_numba, caplog):
    head = heads.SampledSoftmax(4, 30, num_samples=5, dtype=torch.float64)
    hidden, target = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 7, 29])

    def loss():
        return head(hidden, target, generator=torch.Generator().manual_seed(0))

    with caplog.at_level(logging.WARNING, logger="vastmax.kernels"):
        found = [loss() for _ in range(3)]
    assert len(caplog.records) == 1
    assert "No module named 'numba'" in caplog.text
    assert "pip install 'vastmax[cpu]'" in caplog.text
    with use("torch"):
        assert all(torch.equal(each, loss()) for each in found)


def test_a_fault_within_a_backend_is_not_taken_for_its_absence(monkeypatch):
    def broken(_):
        raise ModuleNotFoundError("No module named 'vastmax.kernels.numba.lost'", name="vastmax.kernels.numba.lost")

    monkeypatch.setattr(choice, "_modules", {})
    monkeypatch.setattr(choice, "importlib", SimpleNamespace(import_module=broken))
    with pytest.raises(ModuleNotFoundError, match="lost"):
        implementation("gather_dot", CPU)
