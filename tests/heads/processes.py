"""Training of heads on several processes, and on one with the rows of all of them."""

import contextlib
import datetime

import torch
import torch.distributed as dist
from conformance import CASES, D, V
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vastmax import optim, parallel

OPTIMIZERS = {
    "SGD": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "LazyAdamW": lambda parameters: optim.LazyAdamW(parameters, lr=0.05),
    "RowwiseAdagrad": lambda parameters: optim.RowwiseAdagrad(parameters, lr=0.1),
}
SPARSE = {
    name: case
    for name, case in CASES.items()
    if (case.options.get("sparse") or "tail_samples" in case.options) and not case.follows
}
"""Samplers that follow the batch have tables of their own on each process, and so other candidates."""

PAIRS = [(head, optimizer) for head in SPARSE for optimizer in OPTIMIZERS]
WORLDS = [1, 2, 3]

ROWS = [[3, 1, 2], [0, 4, 1], [5, 0, 3], [1, 3, 0], [2, 2, 2], [2, 1, 4]]
"""Of each process, batch by batch. Every second batch makes a step, the one before it is accumulated."""

IGNORED = (4, 1)
"""The batch, and the process, in which all targets are ignored."""


class Model(nn.Module):
    """A dense body and a head. The loss is the sum over rows, which a caller divides by the number of all."""

    def __init__(self, case):
        super().__init__()
        self.body = nn.Linear(D, D, dtype=torch.float64)
        self.head = case.make(sparse=True, reduction="sum")
        self.draws = case.draws

    def forward(self, x, target, seed):
        options = {"generator": torch.Generator().manual_seed(seed)} if self.draws else {}
        return self.head(self.body(x), target, **options)


class Models(nn.Module):
    """All heads, once for each optimizer."""

    def __init__(self, seed):
        super().__init__()
        self.each = nn.ModuleList(Model(SPARSE[head]) for head, _ in PAIRS)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()

    def forward(self, *batch):
        return torch.stack([model(*batch) for model in self.each])


def part(number, process):
    """The rows of a process in a batch."""
    g = torch.Generator().manual_seed(100 * number + process)
    rows = ROWS[number][process]
    target = torch.randint(V, (rows,), generator=g)
    x = torch.randn(rows, D, generator=g, dtype=torch.float64)
    return x, torch.full_like(target, -100) if (number, process) == IGNORED else target


def train(models, losses, no_sync=contextlib.nullcontext):
    """Make the steps; return of each model the gradients, the weights and the optimizer's state at each step."""
    optimizers = [OPTIMIZERS[name](model.parameters()) for (_, name), model in zip(PAIRS, models.each, strict=True)]
    seen = [[] for _ in PAIRS]
    for number in range(len(ROWS)):
        last = number % 2 == 1
        with contextlib.nullcontext() if last else no_sync():
            losses(number).sum().backward()
        for of_model, model, optimizer in zip(seen, models.each, optimizers, strict=True):
            if last:
                of_model.append([None if x.grad is None else x.grad.to_dense().clone() for x in model.parameters()])
                optimizer.step()
                optimizer.zero_grad()
                of_model.append([x.detach().clone() for x in model.parameters()])
                of_model.append([{k: v.clone() for k, v in optimizer.state[x].items()} for x in model.parameters()])
    return seen


def several(world, group):
    """What this process sees in training on so many."""
    rank = dist.get_rank()
    models = Models(seed=rank)  # which are made alike
    ddp = DistributedDataParallel(parallel.reduce_rows(models, group), process_group=group)

    def losses(number):
        return ddp(*part(number, rank), number) * world / sum(ROWS[number][:world])

    return train(models, losses, ddp.no_sync)


def alone(world):
    """What one process sees with the same rows: in one batch, unless what is drawn depends on the rows in it."""
    models = Models(seed=0)

    def loss(model, number):
        parts = [part(number, process) for process in range(world)]
        if not model.draws or getattr(model.head, "shared", False):
            parts = [tuple(map(torch.cat, zip(*parts, strict=True)))]
        return sum(model(*own, number) for own in parts) / sum(ROWS[number][:world])

    return train(models, lambda number: torch.stack([loss(model, number) for model in models.each]))


def distance(some, others):
    """The largest difference of what two trainings saw, infinite where one has what the other has not."""
    if isinstance(some, torch.Tensor) and isinstance(others, torch.Tensor):
        return (some.double() - others.double()).abs().max().item() if some.numel() else 0.0
    if isinstance(some, dict) and isinstance(others, dict) and some.keys() == others.keys():
        return max((distance(some[name], others[name]) for name in some), default=0.0)
    if isinstance(some, list) and isinstance(others, list) and len(some) == len(others):
        return max((distance(*pair) for pair in zip(some, others, strict=True)), default=0.0)
    return 0.0 if some is None and others is None else float("inf")


def worker(rank, folder):
    """Train on each number of processes, and alone; leave the distances in a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=120)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=max(WORLDS), timeout=timeout)
    found = {}
    for world in WORLDS:
        group = dist.new_group(list(range(world)))
        if rank < world:
            for pair, seen, expected in zip(PAIRS, several(world, group), alone(world), strict=True):
                found[*pair, world] = distance(seen, expected)
    dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
