"""Heads sharded over two processes, and whole in one."""

import copy
import datetime
import traceback

import pytest
import torch
import torch.distributed as dist
from conformance import CASES, D, batch, call
from torch import nn
from torch.distributed import fsdp

from vastmax import heads, optim, parallel

OPTIMIZERS = [
    lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda parameters: optim.LazyAdamW(parameters, lr=0.05),
    lambda parameters: optim.RowwiseAdagrad(parameters, lr=0.1),
]
WORLD = 2


def full(module):
    """Its parameters, whole."""
    return {name: x.detach().full_tensor() for name, x in module.named_parameters()}


def assert_same(found, expected):
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].view_as(value), rtol=1e-9, atol=1e-11, msg=name)


def loss(case, head, process, seed):
    hidden, target, _ = batch(seed=seed + 10 * process)
    if (process, seed) == (1, 3):
        target = torch.full_like(target, head.ignore_index)
    return call(case, head, hidden.detach(), target, seed=seed + 100 * process)


def check(case):
    """Train a head by each of the optimizers in turn, and ask of it what a head is asked."""
    head = case.make(**({"sparse": False} if case.sparse else {}))
    whole = copy.deepcopy(head)
    parallel.fully_shard(head)
    if dist.get_rank() == 0:
        repr(head)  # one process alone: nothing is exchanged
    for number, make in enumerate(OPTIMIZERS):
        optimizer, alone = make(head.parameters()), make(whole.parameters())
        for seed in range(2 * number, 2 * number + 2):
            for one in (optimizer, alone):
                one.zero_grad()
            loss(case, head, dist.get_rank(), seed).backward()
            for process in range(WORLD):
                (loss(case, whole, process, seed) / WORLD).backward()
            for x in whole.parameters():
                x.grad = torch.zeros_like(x) if x.grad is None else x.grad
            optimizer.step()
            alone.step()
        if not case.follows:  # by tables of its own in each process
            assert_same(full(head), dict(whole.named_parameters()))
    whole.load_state_dict({name: value.cpu() for name, value in full(head).items()}, strict=False)
    hidden, target, g = batch(seed=77)
    for ask in (
        lambda head: head.nll(hidden, target),
        lambda head: head.log_prob(hidden),
        lambda head: head.topk(hidden, 3).values,
        lambda head: head.log_partition(hidden),
        lambda head: head(hidden, head.log_prob(hidden).detach().exp()) if head.takes_probabilities else hidden,
    ):
        head.zero_grad()
        whole.zero_grad()
        found, expected = ask(head), ask(whole)
        torch.testing.assert_close(found, expected)
        if found.requires_grad and found.isfinite().all():
            upstream = torch.randn(found.shape, generator=g, dtype=torch.float64)
            (found * upstream).sum().backward()
            (expected * upstream).sum().backward()
            grads = {n: x.grad.full_tensor() for n, x in head.named_parameters() if x.grad is not None}
            expected = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in whole.named_parameters()}
            assert_same(grads, expected)


class Model(nn.Module):
    """Two heads, one of which learns a number, and what InfoNCE learns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(D, D, dtype=torch.float64)
        self.one = heads.Softmax(D, 9, temperature="learned", dtype=torch.float64)
        self.other = heads.SampledSoftmax(D, 9, num_samples=9, dtype=torch.float64)
        self.pairs = heads.InfoNCE(learn_temperature=True)

    def forward(self, x, target, g):
        hidden = self.body(x)
        return self.one(hidden, target) + self.other(hidden, target, generator=g) + self.pairs(hidden, x)


def check_a_model():
    """Heads within a model, whose gradients are clipped."""
    model = Model()
    whole = copy.deepcopy(model)
    parallel.fully_shard(model)
    x, target, _ = batch()
    models = (model, whole)
    optimizers = [optim.LazyAdamW(one.parameters(), lr=0.1) for one in models]
    for _ in range(2):
        norms = []
        for one, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            one(x.detach(), target, torch.Generator().manual_seed(3)).backward()
            norm = optim.clip_grad_norm_(one.parameters(), 0.1)
            norms.append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            optimizer.step()
        torch.testing.assert_close(*norms)
    assert_same(full(model), dict(whole.named_parameters()))
    torch.testing.assert_close(model.one.nll(x, target), whole.one.nll(x, target))
    plain = heads.Softmax(D, 9, temperature="learned", dtype=torch.float64)
    plain.load_state_dict(
        {name.removeprefix("one."): x for name, x in full(model).items() if name.startswith("one.")}
    )
    torch.testing.assert_close(plain.nll(x, target), whole.one.nll(x, target))


def obstacle():
    """Why FSDP2 does not work here at all: on CPUs it does not in the first versions of torch that have it."""
    try:
        fsdp.fully_shard(nn.Linear(2, 2))(torch.zeros(1, 2))
    except AttributeError as error:
        return str(error)
    return None


def check_refusals():
    """What FSDP cannot reduce is refused before anything is changed."""
    for sparse in (heads.NCE(D, 9, num_samples=3, sparse=True), nn.Sequential(heads.NCE(D, 9, sparse=True))):
        with pytest.raises(ValueError, match="expected heads with dense gradients"):
            parallel.fully_shard(sparse)
    head = parallel.fully_shard(heads.NCE(D, 9, num_samples=3))
    with pytest.raises(ValueError, match="sharded over several"):
        optim.apply_in_backward(optim.SGD(head.parameters()), head.weight)


CHECKS = {**{name: lambda case=case: check(case) for name, case in CASES.items()}}
CHECKS |= {"a model": check_a_model, "refusals": check_refusals}


def worker(rank, folder):
    """Run the checks; leave what went wrong in a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timeout)
    errors = {"at all": obstacle()}
    for name, function in CHECKS.items() if errors["at all"] is None else ():
        try:
            function()
        except Exception:
            errors[name] = traceback.format_exc()
    torch.save(errors, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
