"""Heads on samplers that depend on the batch: their loss by its formula, row by row."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from sampler_laws import seeded

from tables import tables_of
from vastmax import heads
from vastmax.samplers import (
    Batch,
    HardNegatives,
    InBatch,
    Mixture,
    RandomFeatures,
    Sampler,
    TopAndTail,
    TreeGuided,
    Uniform,
    Unigram,
)

V, D, ROWS = 14, 4, 6
COUNTS = torch.arange(V, 0, -1)

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "in batch": lambda: InBatch(V, counts=COUNTS),
    "in batch, learned": lambda: InBatch(V),
    "hard": lambda: HardNegatives(Unigram(COUNTS), pool=9),
    "hard, distinct": lambda: HardNegatives(Unigram(COUNTS, unique=True), pool=9),
    "hard, in batch": lambda: HardNegatives(InBatch(V, counts=COUNTS), pool=9),
    "top and tail": lambda: TopAndTail(Unigram(COUNTS, unique=True), top=3),
    "tree": lambda: TreeGuided(V, refresh=2),
    "features": lambda: RandomFeatures(V, num_features=16, refresh=3),
    "mixture": lambda: Mixture([TreeGuided(V), Uniform(V)], [4, 1]),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
either = pytest.mark.parametrize("shared", [True, False])


@either
@every_sampler
def test_the_loss_of_a_head_by_its_formula(make: Callable[[], Sampler], shared: bool) -> None:
    k = 4
    torch.manual_seed(0)
    head = heads.SampledSoftmax(
        D, V, sampler=make(), num_samples=k, shared=shared, reduction="none", dtype=torch.float64
    )
    for step in range(5):
        hidden = torch.randn(ROWS, D, dtype=torch.float64, requires_grad=True)
        target = torch.randint(V, (ROWS,))
        size = k if shared else (ROWS, k)
        batch = Batch(hidden.detach(), target, head.weight.detach(), head.bias.detach())
        noise = copy.deepcopy(head.sampler).given(batch, shared=shared)
        target_log_count = noise.log_expected_count(target, size).tolist()
        candidates = noise.sample(size, generator=seeded(step))
        logits = torch.nn.functional.linear(hidden, head.weight, head.bias).tolist()
        expected = []
        for r, y in enumerate(target.tolist()):
            ids = candidates.ids if candidates.ids.ndim == 1 else candidates.ids[r]
            log_count = candidates.log_expected_count
            log_count = log_count if log_count.ndim == 1 else log_count[r]
            total = own = math.exp(logits[r][y] - target_log_count[r])
            for j, log_m in zip(ids.tolist(), log_count.tolist(), strict=True):
                if not (candidates.unique and j == y):
                    total += math.exp(logits[r][j] - log_m)
            expected.append(math.log(total) - math.log(own))
        loss = head(hidden, target, generator=seeded(step))
        torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
        loss.mean().backward()
        assert hidden.grad.isfinite().all()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter -= parameter.grad
                parameter.grad = None


@either
@every_sampler
def test_one_row_and_no_row(make: Callable[[], Sampler], shared: bool) -> None:
    head = heads.SampledSoftmax(D, V, sampler=make(), num_samples=4, shared=shared)
    hidden = torch.randn(1, D, requires_grad=True)
    loss = head(hidden, torch.tensor([3]))
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad.isfinite().all()
    if isinstance(head.sampler, InBatch):
        assert loss == 0
        assert not hidden.grad.any()
    assert head(hidden, torch.tensor([-100])) == 0


@either
@every_sampler
def test_half_precision_and_inference_mode(make: Callable[[], Sampler], shared: bool) -> None:
    head = heads.SampledSoftmax(D, V, sampler=make(), num_samples=4, shared=shared)
    hidden, target = torch.randn(ROWS, D), torch.randint(V, (ROWS,))
    with torch.inference_mode():
        assert head(hidden, target).isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden.bfloat16(), target).isfinite()
    head = head.bfloat16()
    loss = head(hidden.bfloat16(), target)
    loss.backward()
    assert head.weight.grad.isfinite().all()


@every_sampler
def test_the_state_dict_stays_that_of_a_linear_layer_but_for_what_is_learned(make: Callable[[], Sampler]) -> None:
    head = heads.SampledSoftmax(D, V, sampler=make(), num_samples=4)
    head(torch.randn(ROWS, D), torch.randint(V, (ROWS,)))
    learned = {f"sampler.{name}" for name in head.sampler.state_dict()}
    assert head.state_dict().keys() == torch.nn.Linear(D, V).state_dict().keys() | learned
    assert bool(learned) == (repr(head.sampler) == repr(InBatch(V)))
    moved = copy.deepcopy(head).to("meta")
    assert {buffer.device.type for buffer in tables_of(moved).values()} == {"meta"}
