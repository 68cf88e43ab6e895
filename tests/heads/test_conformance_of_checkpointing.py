"""Checkpointed is plain, for all that draws, learns or pushes in a forward: what has state joins by one line."""

from functools import partial

import pytest
import torch
from conformance import CASES, D, V, batch, call
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tables import tables_of
from vastmax import heads, samplers
from vastmax.contrastive import KeyQueue


def sampled(noise, *arguments, head=heads.SampledSoftmax, **options):
    return lambda: head(D, V, sampler=noise(*arguments), num_samples=3, dtype=torch.float64, **options)


def mixture():
    parts = [samplers.RandomFeatures(V, refresh=3), samplers.TreeGuided(V, refresh=2)]
    return samplers.Mixture([*parts, samplers.Uniform(V)], [2, 2, 1])


def proposal(**options):
    return heads.NCE(D, V, proposal=mixture(), num_samples=3, dtype=torch.float64, **options)


def contrast(**options):
    return heads.InfoNCE(0.5, queue=KeyQueue(9, D, dtype=torch.float64), **options)


STATEFUL = {
    "in batch, learned": sampled(samplers.InBatch, V),
    "NCE, in batch, learned": sampled(samplers.InBatch, V, head=heads.NCE),
    "hardest in batch, learned": sampled(lambda: samplers.HardNegatives(samplers.InBatch(V), 4), shared=False),
    "tree-guided": sampled(partial(samplers.TreeGuided, refresh=2), V),
    "tree-guided, per row": sampled(partial(samplers.TreeGuided, refresh=3), V, shared=False),
    "random features": sampled(samplers.RandomFeatures, V),
    "random features, per row": sampled(partial(samplers.RandomFeatures, refresh=3), V, shared=False),
    "hardest of random features": sampled(lambda: samplers.HardNegatives(samplers.RandomFeatures(V), 5)),
    "mixture, sparse": sampled(mixture, sparse=True),
    "mixture, learned temperature": sampled(mixture, temperature="learned", shared=False),
    "NCE, proposal that follows": proposal,
    "queue": contrast,
    "queue, alone": partial(contrast, in_batch=False, learn_temperature=True),
    **{name: case.make for name, case in CASES.items() if case.draws or case.follows},
}


@pytest.fixture(params=STATEFUL.values(), ids=STATEFUL)
def make(request):
    return request.param


class Model(nn.Module):
    """A body, a head, and draws of the model's own before and after the head's."""

    def __init__(self, head):
        super().__init__()
        self.body, self.head = nn.Linear(D, D, dtype=torch.float64), head
        self.table = nn.Embedding(V, D, dtype=torch.float64)

    def forward(self, hidden, target, generator):
        hidden = self.body(nn.functional.dropout(hidden, 0.2))
        if isinstance(self.head, heads.InfoNCE):
            loss = self.head(hidden, self.table(target))
        else:
            loss = self.head(hidden, target, **({} if generator is None else {"generator": generator}))
        return loss * (1 + torch.rand((), dtype=torch.float64))


def plain(model, *arguments):
    return model(*arguments)


def train(make, forward, own_generator):
    """Steps of two batches each, both forwarded before either is backpropagated, in one order or the other.

    Returns losses, gradients of every step, and what is there at the end: the state and both random states.
    """
    torch.manual_seed(3)
    model = Model(make())
    generator = torch.Generator().manual_seed(4) if own_generator else None
    data, seen = torch.Generator().manual_seed(5), []
    for step in range(4):
        losses = []
        for _ in range(2):
            hidden = torch.randn(5, D, dtype=torch.float64, generator=data).requires_grad_()
            losses.append(forward(model, hidden, torch.randint(V, (5,), generator=data), generator))
        for loss in losses if step % 2 else reversed(losses):
            (loss * torch.rand((), dtype=torch.float64, generator=data)).backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = parameter.grad
                if gradient is not None:
                    seen.append((f"{step} {name}", gradient.to_dense()))
                    parameter.sub_(gradient.to_dense(), alpha=0.1)
                    parameter.grad = None
        seen += [(f"loss {step}", loss.detach()) for loss in losses]
    seen += tables_of(model).items()
    seen.append(("random state", torch.get_rng_state()))
    if generator is not None:
        seen.append(("generator", generator.get_state()))
    return seen


@pytest.mark.parametrize("own_generator", [False, True], ids=["global", "own generator"])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointed_is_plain(make, use_reentrant, own_generator):
    expected = train(make, plain, own_generator)
    found = train(make, partial(checkpoint, use_reentrant=use_reentrant), own_generator)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, value), (_, other) in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14, equal_nan=True, msg=name)


PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]
INTO_BUFFERS = [torch.ops.aten.mm.out, torch.ops.aten.addmm.out]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_selectively_checkpointed_is_plain(case):
    """A kernel that writes into a product has not written into what such a checkpoint has kept of it."""
    head = case.make(reduction="mean")
    hidden, target, g = batch()
    leaves = [hidden, *head.parameters()]
    upstream = torch.rand((), dtype=torch.float64, generator=g) + 0.5

    def gradients(forward):
        torch.manual_seed(6)
        found = torch.autograd.grad(
            forward(lambda x: call(case, head, x.clone(), target), hidden), leaves, upstream
        )
        return [one.to_dense() for one in found]

    def keeping(operations):
        contexts = partial(create_selective_checkpoint_contexts, operations)
        return partial(checkpoint, use_reentrant=False, context_fn=contexts)

    if case.follows:
        return  # what it has seen is another thing each time
    expected = gradients(lambda f, *x: f(*x))
    torch.testing.assert_close(gradients(keeping(PRODUCTS)), expected)
    try:
        found = gradients(keeping(PRODUCTS + INTO_BUFFERS))
    except RuntimeError as refused:
        if "has been mutated" not in str(refused):
            raise
    else:
        torch.testing.assert_close(found, expected)
