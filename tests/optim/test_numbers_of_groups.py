"""Options that are no plain numbers, in a group's hands: tensors, which a scheduler fills in place, and NumPy's."""

import copy
import io

import numpy as np
import pytest
import torch
from row_gradients import OPTIMIZERS, assert_same, bits, random_rows
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from vastmax.heads import SampledSoftmax
from vastmax.optim import apply_in_backward

STEPS = 4
GIVEN = {
    "a tensor ()": lambda: torch.tensor(0.25),
    "a float64 tensor (1,)": lambda: torch.full((1,), 0.25, dtype=torch.float64),
    "a NumPy scalar": lambda: np.float32(0.25),
    "a NumPy array ()": lambda: np.array(0.25),
}


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS)
def build(request):
    return request.param


def gradients(sparse):
    g = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        rows = random_rows((6, 3), 3, g, torch.float32)
        yield rows if sparse else rows.to_dense()


def run(build, lr, *, sparse, decay=False, later=None):
    """Steps under a learning rate, which a scheduler lowers or `later` replaces; the parameter and all state."""
    param = nn.Parameter(torch.arange(18.0).view(6, 3) / 9)
    optimizer = build([param], lr=lr)
    scheduler = ExponentialLR(optimizer, 0.5) if decay else None
    for step, grad in enumerate(gradients(sparse)):
        if step == 2 and later is not None:
            optimizer.param_groups[0].update({name: make() for name, make in later.items()})
        param.grad = grad
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return optimizer, bits(param, optimizer)


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("given", GIVEN)
def test_a_learning_rate_is_taken_whoever_made_it(build, given, sparse, decay):
    lr = GIVEN[given]()
    optimizer, ours = run(build, lr, sparse=sparse, decay=decay)
    _, theirs = run(build, 0.25, sparse=sparse, decay=decay)
    assert_same(ours, theirs)
    kept = optimizer.param_groups[0]["lr"]
    if isinstance(lr, torch.Tensor):  # the very tensor, so that who fills it is heard
        assert kept is lr
        assert lr.item() == (0.25 * 0.5**STEPS if decay else 0.25)
    else:
        assert type(kept) is float


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("given", GIVEN)
def test_an_option_that_is_set_later_is_taken_whoever_made_it(build, given, sparse):
    number = GIVEN[given]
    names = {"lr", "eps", "weight_decay", "momentum"} & build([nn.Parameter(torch.ones(2))], lr=1.0).defaults.keys()
    later = {name: number for name in names}
    if "betas" in build([nn.Parameter(torch.ones(2))], lr=1.0).defaults:
        later["betas"] = lambda: (number(), number())
    plain = {name: (lambda: (0.25, 0.25)) if name == "betas" else lambda: 0.25 for name in later}
    assert_same(run(build, 0.5, sparse=sparse, later=later)[1], run(build, 0.5, sparse=sparse, later=plain)[1])


@pytest.mark.parametrize("sparse", [False, True])
def test_a_learning_rate_that_a_state_dict_brings_as_a_tensor(build, sparse):
    saved = io.BytesIO()
    torch.save(run(build, torch.tensor(0.25), sparse=sparse)[0].state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert isinstance(state["param_groups"][0]["lr"], torch.Tensor)
    found = []
    for lr in (state["param_groups"][0]["lr"], 0.25):
        param = nn.Parameter(torch.ones(6, 3))
        optimizer = build([param], lr=1.0)
        loaded = copy.deepcopy(state)
        loaded["param_groups"][0]["lr"] = lr
        optimizer.load_state_dict(loaded)
        for grad in gradients(sparse):
            param.grad = grad
            optimizer.step()
        found.append(bits(param, optimizer))
    assert_same(*found)


@pytest.mark.parametrize("given", GIVEN)
def test_a_learning_rate_of_any_make_in_the_backward_pass(build, given):
    found = []
    for lr in (GIVEN[given](), 0.25):
        torch.manual_seed(0)
        head = SampledSoftmax(4, 20, num_samples=5, sparse=True)
        optimizer = build(head.parameters(), lr=lr)
        with apply_in_backward(optimizer, head.weight, head.bias):
            for _ in range(STEPS):
                head(torch.randn(3, 4), torch.tensor([1, 5, 7])).backward()
        found.append({**bits(head.weight, optimizer), "bias": head.bias.detach()})
    assert_same(*found)


def test_what_a_group_keeps_can_be_saved_as_weights_only(build):
    options = {"lr": np.float32(0.25), "eps": np.float64(0.5), "weight_decay": np.array(0.25)}
    names = build([nn.Parameter(torch.ones(2))], lr=1.0).defaults.keys()
    optimizer = build([nn.Parameter(torch.ones(2))], **{n: x for n, x in options.items() if n in names})
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    assert torch.load(saved, weights_only=True)["param_groups"][0]["lr"] == 0.25
