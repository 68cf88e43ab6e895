"""Heads whose rows catch up before they are read: sparse training is dense training, step by step."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from conformance import CASES, Case, D, call
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from vastmax import heads, kernels, optim, samplers

SPARSE = {name: case for name, case in CASES.items() if case.sparse}
V, STEPS = 30, 12
MOMENTUM = {"lr": 0.2, "momentum": 0.9}
DECAYED = {**MOMENTUM, "weight_decay": 0.1, "nesterov": True}
# Two runs round differently, and each step takes the difference on.
SAME = {"rtol": 1e-9, "atol": 1e-10}


def plain(function, hidden):
    return function(hidden)


class Run:
    """A body under a head, trained on batches of two rows, in float64."""

    def __init__(self, make, sparse, build, *, catching_up=False, forward=plain, fused=False, **options):
        torch.manual_seed(1)
        self.body = nn.Linear(D, D, dtype=torch.float64)
        self.head, self.forward = make(num_classes=V, sparse=sparse), forward
        tables = [*self.head.parameters()]
        self.optimizer = build([*self.body.parameters(), *tables], **options)
        if fused:
            optim.apply_in_backward(self.optimizer, self.head.weight, self.head.bias)
        if catching_up:
            optim.catch_up_before_reading(self.optimizer, *tables)
        self.data, self.seen = torch.Generator().manual_seed(2), {}

    def batch(self):
        hidden = torch.randn(2, D, generator=self.data, dtype=torch.float64)
        return self.body(hidden), torch.randint(V, (2,), generator=self.data)

    def loss(self, case, seed):
        hidden, target = self.batch()
        upstream = torch.rand((), generator=self.data, dtype=torch.float64)
        return self.forward(lambda rows: call(case, self.head, rows, target, seed=seed), hidden) * upstream

    def step(self, case, number):
        """Two batches, of which in every third step both are forwarded before either is backpropagated."""
        self.optimizer.zero_grad()
        losses = [self.loss(case, 2 * number)]
        if number % 3:
            losses[0].backward()
        losses.append(self.loss(case, 2 * number + 1))
        for loss in losses if number % 3 == 0 else losses[1:]:
            loss.backward()
        self.optimizer.step()
        self.seen[f"losses {number}"] = torch.stack(losses).detach()

    def score(self, number):
        with torch.inference_mode():
            hidden, target = self.batch()
            self.seen[f"nll {number}"] = self.head.nll(hidden, target)
            self.seen[f"log_prob {number}"] = self.head.log_prob(hidden)
            self.seen[f"log_partition {number}"] = self.head.log_partition(hidden)
            self.seen[f"topk {number}"] = self.head.topk(hidden, 3).values

    def train(self, case, steps=STEPS):
        for number in range(steps):
            self.step(case, number)
            if number in (4, STEPS - 1):
                self.score(number)
        return self

    def weights(self):
        return dict(self.head.named_parameters()) | dict(self.body.named_parameters(prefix="body"))


def assert_same_run(one, other, **tolerance):
    for found, expected in ((one.seen, other.seen), (one.weights(), other.weights())):
        for name in expected:
            assert_close(found[name], expected[name], **(tolerance or SAME), msg=f"{name}: {{}}".format)


@pytest.mark.parametrize("options", [MOMENTUM, DECAYED], ids=["momentum", "decayed"])
@pytest.mark.parametrize("case", SPARSE.values(), ids=SPARSE)
def test_sparse_sgd_is_dense_sgd(case, options):
    """Losses, all that is scored in between, and at last the weights: the last scoring has brought up all rows."""
    dense = Run(case.make, False, torch.optim.SGD, **options).train(case)
    sparse = Run(case.make, True, optim.SGD, catching_up=True, **options).train(case)
    assert any(p.grad is not None and p.grad.is_sparse for p in sparse.head.parameters())
    assert_same_run(sparse, dense)


def features(num_classes):
    return samplers.RandomFeatures(num_classes, refresh=4)


def mixture(num_classes):
    parts = [features(num_classes), samplers.TreeGuided(num_classes, refresh=3), samplers.Uniform(num_classes)]
    return samplers.Mixture(parts, [2, 2, 1])


def proposal(dim, num_classes, **options):
    return heads.NCE(dim, num_classes, proposal=mixture(num_classes), **options)


FOLLOWING = {
    "tree-guided": Case(heads.SampledSoftmax, noise=partial(samplers.TreeGuided, refresh=3)),
    "random features": Case(heads.SampledSoftmax, noise=features),
    "random features, per row": Case(heads.NCE, {"shared": False}, noise=features),
    "mixture": Case(heads.SampledSoftmax, noise=mixture),
    "proposal": Case(proposal),
}


@pytest.mark.parametrize("case", FOLLOWING.values(), ids=FOLLOWING)
def test_samplers_that_follow_the_model_read_rows_that_are_up_to_date(case):
    """Tables that are made again within the run."""
    dense = Run(case.make, False, torch.optim.SGD, **MOMENTUM).train(case)
    sparse = Run(case.make, True, optim.SGD, catching_up=True, **MOMENTUM).train(case)
    assert_same_run(sparse, dense)


@pytest.mark.parametrize("name", ["SampledSoftmax, sparse", "NCE", "HierarchicalSoftmax", "ClassFactoredSoftmax"])
def test_without_it_rows_are_read_before_they_pay(name):
    """Which bringing up all rows at the end does not undo."""
    case = SPARSE[name]
    dense = Run(case.make, False, torch.optim.SGD, **MOMENTUM).train(case)
    sparse = Run(case.make, True, optim.SGD, **MOMENTUM).train(case)
    sparse.optimizer.catch_up()
    assert (sparse.head.weight - dense.head.weight).abs().max() > 1e-3


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("case", SPARSE.values(), ids=SPARSE)
def test_recomputations_see_the_rows_of_their_forward(case, use_reentrant):
    again = partial(checkpoint, use_reentrant=use_reentrant)
    runs = [
        Run(case.make, True, optim.SGD, catching_up=True, forward=forward, **DECAYED).train(case, 5)
        for forward in (plain, again)
    ]
    assert_same_run(*runs, rtol=1e-12, atol=1e-13)


def test_a_recomputation_after_a_step_within_backward_pays_nothing():
    """The second loss steps, in other rows than the first one's, whose recomputation sees what its forward saw."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        options = {"within": "sampled", "num_samples": 3, "sparse": True, "dtype": torch.float64}
        head = heads.ClassFactoredSoftmax(D, [0] * 5 + [1] * 5, **options)
        optimizer = optim.SGD(head.parameters(), **MOMENTUM)
        head(torch.randn(2, D).double(), torch.tensor([1, 7])).backward()
        optimizer.step()
        optimizer.zero_grad()
        optim.catch_up_before_reading(optimizer, *head.parameters())
        if again:
            optim.apply_in_backward(optimizer, head.weight, head.bias)
        hidden = [torch.randn(1, D).double().requires_grad_() for _ in range(2)]
        losses = []
        for rows, target in zip(hidden, ([2], [8]), strict=True):
            forward = partial(checkpoint, use_reentrant=True) if again else plain
            losses.append(forward(partial(head, target=torch.tensor(target)), rows))
        losses[1].backward()
        losses[0].backward()
        found.append(hidden[0].grad)
    assert_close(*found, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("build", [optim.SGD, optim.LazyAdamW], ids=["SGD", "LazyAdamW"])
def test_steps_within_backward(build):
    """Each backward pass is a step there: no two batches are forwarded at a time."""
    case = SPARSE["SampledSoftmax, sparse"]
    options = {"lr": 0.1, "weight_decay": 0.1, **({"momentum": 0.9} if build is optim.SGD else {})}
    runs = []
    for fused in (False, True):
        run = Run(case.make, True, build, catching_up=True, fused=fused, **options)
        for number in range(STEPS):
            run.optimizer.zero_grad()
            run.loss(case, number).backward()
            run.optimizer.step()
        run.score(STEPS)
        runs.append(run)
    assert_same_run(*runs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["SampledSoftmax, sparse", "HierarchicalSoftmax"])
def test_lazy_adamw_that_pays_at_every_reading_of_every_row_is_adamw(name):
    """All rows are read after each step: none owes more than one step, which its formula has exactly."""
    case, options = SPARSE[name], {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-3}
    runs = [
        Run(case.make, False, torch.optim.AdamW, **options),
        Run(case.make, True, optim.LazyAdamW, catching_up=True, **options),
    ]
    for run in runs:
        for number in range(STEPS):
            run.step(case, number)
            run.score(number)
    assert_same_run(*runs)


def small(sparse=True, **options):
    torch.manual_seed(0)
    return heads.SampledSoftmax(D, V, num_samples=6, sparse=sparse, dtype=torch.float64, **options)


def trained(head, **options):
    optimizer = optim.SGD(head.parameters(), **(options or MOMENTUM))
    for seed in range(3):
        hidden = torch.randn(2, D, dtype=torch.float64)
        head(hidden, torch.randint(V, (2,)), generator=torch.Generator().manual_seed(seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_only_the_rows_that_are_read_pay():
    head = small()
    optimizer = trained(head)
    optim.catch_up_before_reading(optimizer, *head.parameters())
    before = {name: x.detach().clone() for name, x in head.named_parameters()}
    last = optimizer.state[head.weight]["last_step"].clone()
    ids = head.sampler.sample(6, generator=torch.Generator().manual_seed(9)).ids
    head(torch.randn(2, D).double(), torch.tensor([3, 4]), generator=torch.Generator().manual_seed(9)).backward()
    read = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.cat([ids, torch.tensor([3, 4])]), True)
    owed = last < 3
    assert (owed & read).any()
    assert (owed & ~read).any()
    for name, table in head.named_parameters():
        moved = (table.detach() != before[name]).view(V, -1).any(1)
        assert torch.equal(moved & read, moved), name
        found = optimizer.state[table]["last_step"]
        assert torch.equal(found, torch.where(read, 3, last)), name


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_rows_that_pay_for_a_second_loss_do_not_disturb_the_first(backend):
    """It has read none of them; `test_catch_up` has what autograd makes of rows that move by a call."""
    head = small()
    with kernels.use(backend):
        optimizer = trained(head)
        optim.catch_up_before_reading(optimizer, *head.parameters())
        first = head(torch.randn(2, D).double(), torch.tensor([3, 4]))
        before = head.weight.detach().clone()
        head.log_prob(torch.randn(2, D).double())
        assert not torch.equal(head.weight, before)
        first.backward()


@pytest.mark.parametrize("noise", [samplers.HardNegatives, samplers.TopAndTail])
def test_samplers_that_look_at_every_row_find_them_up_to_date(noise):
    sampler = {
        samplers.HardNegatives: lambda: samplers.HardNegatives(samplers.Uniform(V), 12),
        samplers.TopAndTail: lambda: samplers.TopAndTail(samplers.Uniform(V, unique=True), 3),
    }[noise]
    head = small(sampler=sampler())
    optimizer = trained(head)
    optim.catch_up_before_reading(optimizer, *head.parameters())
    head(torch.randn(2, D).double(), torch.tensor([3, 4]))
    assert (optimizer.state[head.weight]["last_step"] == 3).all()


def test_nothing_is_paid_after_it_is_closed_or_if_arguments_are_refused():
    head = small()
    optimizer = trained(head)
    before = head.weight.detach().clone()
    hidden, target = torch.randn(2, D).double(), torch.tensor([3, 4])
    with optim.catch_up_before_reading(optimizer, *head.parameters()):
        with pytest.raises(ValueError, match="hidden: expected finite values"):
            head.topk(hidden / 0, 3)
        assert torch.equal(head.weight, before)
    head.topk(hidden, 3)
    head.nll(hidden, target)
    assert torch.equal(head.weight, before)


def test_an_optimizer_that_is_gone():
    head = small()
    optimizer = trained(head)
    optim.catch_up_before_reading(optimizer, *head.parameters())
    del optimizer
    with pytest.raises(RuntimeError, match="catch_up_before_reading: expected the optimizer to be kept"):
        head.log_prob(torch.randn(2, D).double())


def test_refused_parameters_leave_none_behind():
    head = small()
    optimizer = trained(head)
    other = nn.Parameter(torch.zeros(V))
    refused = [
        (optimizer, [], ValueError, "parameters: expected at least one"),
        (optimizer, [head.weight, other], ValueError, "expected one of the optimizer's"),
        (optimizer, [head.weight, 1], TypeError, "parameters: expected tensors, got int"),
        (optimizer, [head.weight, head.weight], ValueError, "expected one whose rows do not catch up yet"),
        (torch.optim.SGD([other]), [other], TypeError, "optimizer: expected one of vastmax.optim, got SGD"),
    ]
    for one, parameters, error, message in refused:
        with pytest.raises(error, match=message):
            optim.catch_up_before_reading(one, *parameters)
    before = head.weight.detach().clone()
    head.log_prob(torch.randn(2, D).double())
    assert torch.equal(head.weight, before)


def test_a_copy_of_a_head_is_read_as_it_is_and_the_head_can_be_freed():
    head = small()
    optimizer = trained(head)
    optim.catch_up_before_reading(optimizer, *head.parameters())
    twin = copy.deepcopy(head)
    before = twin.weight.detach().clone()
    twin.log_prob(torch.randn(2, D).double())
    assert torch.equal(twin.weight, before)
    kept = weakref.ref(head.weight)
    del head, optimizer
    gc.collect()
    assert kept() is None
