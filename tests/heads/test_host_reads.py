"""No step of a head makes the program wait for an accelerator: on a device that only has shapes, reads raise."""

import pytest
import torch

import vastmax
from tests.devices import SHAPES, shapes_alone, without_values
from tests.heads.conformance import CASES, D, batch
from vastmax import kernels, optim

OPTIMIZERS = {
    "SGD": lambda parameters: optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "LazyAdamW": optim.LazyAdamW,
    "LazyAdamW by row": lambda parameters: optim.LazyAdamW(parameters, rowwise_second_moment=True),
    "RowwiseAdagrad": optim.RowwiseAdagrad,
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", ["Softmax", "SampledSoftmax, sparse", "HierarchicalSoftmax, sparse"])
def test_a_step_of_an_optimizer_reads_no_value(name, build):
    head = CASES[name].make()
    with shapes_alone():
        head = without_values(head)
        optimizer = build(head.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            hidden = torch.empty(6, D, device=SHAPES, dtype=torch.float64)
            head(hidden, torch.empty(6, dtype=torch.int64, device=SHAPES)).backward()
            optimizer.step()


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_steps_without_a_look_at_the_rows_are_the_same(backend, build):
    """Three steps of a sparse head, of which some rows miss the second and occur several times in the others."""
    trained = {}
    for mode in ("now", "device"):
        head = CASES["SampledSoftmax, sparse"].make()
        optimizer = build(head.parameters())
        with kernels.use(backend), vastmax.checks(mode):
            for step in range(3):
                hidden, target, _ = batch(seed=step)
                torch.manual_seed(step)
                optimizer.zero_grad()
                head(hidden, target if step != 1 else torch.ones_like(target)).backward()
                optimizer.step()
        trained[mode] = [parameter.detach() for parameter in head.parameters()]
    for ours, theirs in zip(trained["device"], trained["now"], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_no_value(name):
    head = CASES[name].make()
    with shapes_alone():
        head = without_values(head)
        hidden = torch.empty(6, D, device=SHAPES, dtype=torch.float64, requires_grad=True)
        target = torch.empty(6, dtype=torch.int64, device=SHAPES)
        head(hidden, target, sample_weight=torch.empty(6, device=SHAPES)).backward()
        assert hidden.grad.device.type == SHAPES
        head.nll(hidden, target)
        head.log_prob(hidden)
