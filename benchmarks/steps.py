"""Training steps on new rows each time: loss, gradient of hidden and parameters, optimizer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import problems
from benchmarks.timing import Timer, Wall
from vastmax import heads, optim

LR = 0.01

Loss = Callable[[Tensor, Tensor], Tensor]


def step(
    loss: Loss,
    update: Callable[[], None],
    rows: int,
    num_classes: int,
    features: int,
    device: torch.device | str = "cpu",
) -> Timer:
    """Time one step: the loss of the next batch, its gradient, and `update`."""
    data = tensors(rows, num_classes, features, device)

    def call() -> None:
        hidden, target = next(data)
        loss(hidden, target).backward()
        update()

    return Wall(call, device)


def tensors(
    rows: int, num_classes: int, features: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield leaves hidden (N, d), which ask for a gradient, and targets (N,), without end."""
    made = problems.batches(rows, num_classes, features)
    seen = [
        (torch.from_numpy(hidden).to(device), torch.from_numpy(target).to(device))
        for hidden, target in itertools.islice(made, problems.BATCHES)
    ]
    for hidden, target in itertools.cycle(seen):
        yield hidden.detach().requires_grad_(), target


def updating(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return the update that steps and then drops the gradients."""

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


def head_step(head: heads.Head, optimizer: torch.optim.Optimizer, rows: int) -> Timer:
    """A step of a head of ours."""
    device = next(head.parameters()).device
    return step(head, updating(optimizer), rows, head.num_classes, head.in_features, device)


def fused_head_step(head: heads.Head, optimizer: optim.RowwiseAdagrad, rows: int) -> Timer:
    """A step of a head of ours whose rows are updated within the backward pass, from which no gradient is left."""
    optim.apply_in_backward(optimizer, *head.parameters())
    return head_step(head, optimizer, rows)


def exact_torch_step(rows: int, num_classes: int, features: int, *, fused: bool | None = None) -> Timer:
    """A step of torch's linear layer and cross-entropy with its Adagrad."""
    linear = nn.Linear(features, num_classes)

    def loss(hidden: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(linear(hidden), target)

    adagrad = torch.optim.Adagrad(linear.parameters(), lr=LR, fused=fused)
    return step(loss, updating(adagrad), rows, num_classes, features)


class HandWritten(nn.Module):
    """What one writes in plain torch: class rows in a sparse embedding, log-uniform candidates shared by the batch.

    Args:
        num_classes: V.
        features: d.
        num_samples: k.
        device: where the parameters are.
    """

    def __init__(
        self, num_classes: int, features: int, num_samples: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_samples = num_samples
        self.weight = nn.Embedding(num_classes, features, sparse=True, device=device)
        self.bias = nn.Embedding(num_classes, 1, sparse=True, device=device)
        bound = 1 / math.sqrt(features)
        nn.init.uniform_(self.weight.weight, -bound, bound)
        nn.init.zeros_(self.bias.weight)

    def log_expected_count(self, ids: Tensor) -> Tensor:
        """The log of how often each class is expected among the candidates."""
        ids = ids.double()
        probability = torch.log((ids + 2) / (ids + 1)) / math.log(self.num_classes + 1)
        return torch.log(self.num_samples * probability).float()

    def logits(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected logits of the targets (N,) and of the candidates (N, k)."""
        uniform = torch.rand(self.num_samples, dtype=torch.float64, device=target.device)
        drawn = torch.exp(uniform * math.log(self.num_classes + 1))
        ids = torch.cat([target, drawn.long().sub_(1).clamp_(max=self.num_classes - 1)])
        weight, bias = self.weight(ids), self.bias(ids).squeeze(1) - self.log_expected_count(ids)
        rows = len(target)
        true = (hidden * weight[:rows]).sum(1) + bias[:rows]
        return true, torch.addmm(bias[rows:], hidden, weight[rows:].T)


class HandWrittenSampledSoftmax(HandWritten):
    """Sampled softmax in plain torch."""

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of hidden (N, d) and target (N,)."""
        true, sampled = self.logits(hidden, target)
        return functional.cross_entropy(torch.cat([true[:, None], sampled], 1), torch.zeros_like(target))


class HandWrittenNCE(HandWritten):
    """Noise-contrastive estimation in plain torch."""

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of hidden (N, d) and target (N,)."""
        true, sampled = self.logits(hidden, target)
        return functional.softplus(-true).mean() + functional.softplus(sampled).sum(1).mean()


def hand_written_step(head: HandWritten, optimizer: str, rows: int) -> Timer:
    """A step in plain torch with its sparse Adagrad or Adam."""
    features = head.weight.embedding_dim
    if optimizer == "Adagrad":
        update = updating(torch.optim.Adagrad(head.parameters(), lr=LR))
    else:
        update = updating(torch.optim.SparseAdam(list(head.parameters()), lr=LR))
    return step(head, update, rows, head.num_classes, features, head.weight.weight.device)
