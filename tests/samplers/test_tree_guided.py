"""The tree of subtree moments: its q by definition, and how it follows the model."""

import pytest
import torch
from batches import every_class, logits_of, make_batch
from sampler_laws import goodness_of_fit, seeded
from torch import Tensor

from vastmax.samplers import Batch, TreeGuided
from vastmax.samplers.heap import left_size
from vastmax.samplers.tree_guided import principal_order


def tangent(batch: Batch, classes: Tensor) -> Tensor:
    """a_X(h) of each row: the tangent at the mean row of the log of the mass of a set of classes."""
    centre = batch.hidden.mean(0)
    at_centre = (batch.linear_weight @ centre + batch.linear_bias)[classes]
    mean_row = at_centre.softmax(0) @ batch.linear_weight[classes]
    return at_centre.logsumexp(0) + (batch.hidden - centre) @ mean_row


def by_definition(batch: Batch, classes: Tensor) -> Tensor:
    """log q of classes, left to right, given that the subtree whose leaves they are is reached: (N, leaves)."""
    if len(classes) == 1:
        return torch.zeros(len(batch.hidden), 1, dtype=torch.float64)
    left, right = classes.tensor_split([int(left_size(torch.tensor(len(classes))))])
    log_turns = torch.stack([tangent(batch, left), tangent(batch, right)], 1).log_softmax(1)
    return torch.cat(
        [log_turns[:, :1] + by_definition(batch, left), log_turns[:, 1:] + by_definition(batch, right)], 1
    )


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 29])
def test_q_is_that_of_the_definition(num_classes: int) -> None:
    batch = make_batch(num_classes, 6)
    order = torch.randperm(num_classes, generator=seeded(2))
    noise = TreeGuided(num_classes, order=order).given(batch, shared=False)
    found = noise.log_prob(order.expand(6, -1))
    torch.testing.assert_close(found, by_definition(batch, order))


@pytest.mark.parametrize("num_classes", [1, 2, 5, 16, 29])
def test_at_the_mean_row_q_is_the_softmax(num_classes: int) -> None:
    batch = make_batch(num_classes, 1)
    for bias in (batch.linear_bias, None):
        noise = TreeGuided(num_classes).given(batch._replace(linear_bias=bias), shared=False)
        softmax = logits_of(batch._replace(linear_bias=bias)).softmax(-1)
        torch.testing.assert_close(every_class(noise, 1, shared=False), softmax)


def test_two_classes_are_the_softmax_everywhere() -> None:
    batch = make_batch(2, 5)
    noise = TreeGuided(2).given(batch, shared=False)
    torch.testing.assert_close(every_class(noise, 5, shared=False), logits_of(batch).softmax(-1))


def test_masked_classes_are_not_drawn() -> None:
    batch = make_batch(6)
    batch.linear_bias[[0, 1, 4]] = -torch.inf
    noise = TreeGuided(6, order=range(6)).given(batch, shared=False)
    q = every_class(noise, 3, shared=False)
    assert not q[:, [0, 1, 4]].any()
    torch.testing.assert_close(q.sum(1), torch.ones(3, dtype=torch.float64))
    assert set(noise.sample((3, 1000), generator=seeded()).ids.unique().tolist()) == {2, 3, 5}


def test_the_tables_follow_the_model_every_refresh_batches_of_training() -> None:
    first, second = make_batch(9), make_batch(9, seed=1)
    at_first, at_second = (
        every_class(TreeGuided(9).given(batch, shared=False), 3, shared=False) for batch in (first, second)
    )
    # The tables of the first batch, asked for the rows of the second
    stale = TreeGuided(9)
    stale.given(first, shared=False)
    stale.eval()
    lagging = every_class(stale.given(second, shared=False), 3, shared=False)
    assert (lagging - at_second).abs().max() > 0.01

    sampler = TreeGuided(9, refresh=3)
    seen = [every_class(sampler.given(batch, shared=False), 3, shared=False) for batch in [first] + [second] * 5]
    expected = [at_first, lagging, lagging, at_second, at_second, at_second]
    for one, two in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, two)

    sampler.eval()
    for _ in range(4):
        sampler.given(first, shared=False)
    torch.testing.assert_close(every_class(sampler.given(second, shared=False), 3, shared=False), at_second)


def test_lagging_tables_still_declare_what_they_draw() -> None:
    sampler = TreeGuided(9)
    sampler.given(make_batch(9), shared=False)
    noise = sampler.given(make_batch(9, seed=1), shared=False)
    ids = noise.sample((3, 50_000), generator=seeded()).ids
    for drawn, q in zip(ids, every_class(noise, 3, shared=False), strict=True):
        assert goodness_of_fit(torch.bincount(drawn, minlength=9), q) > 1e-4


@pytest.mark.parametrize("num_classes", [1, 2, 3, 7, 64, 100])
def test_the_order_is_a_permutation(num_classes: int) -> None:
    order = principal_order(torch.randn(num_classes, 5, generator=seeded()))
    assert torch.equal(order.sort().values, torch.arange(num_classes))


def test_the_order_keeps_clusters_together() -> None:
    g = seeded()
    centres = 10 * torch.randn(8, 20, generator=g)
    label = torch.randperm(64, generator=g) % 8
    order = principal_order(centres[label] + 0.1 * torch.randn(64, 20, generator=g))
    together = label[order].view(8, 8)
    assert (together == together[:, :1]).all()


def test_nearer_to_the_model_than_frequencies_alone_and_with_the_order_than_without() -> None:
    g = seeded()
    label = torch.randint(16, (256,), generator=g)
    weight = torch.randn(16, 8, generator=g)[label] + 0.3 * torch.randn(256, 8, generator=g)
    bias = -torch.arange(1.0, 257.0).log()
    batch = Batch(torch.randn(50, 8, generator=g), torch.zeros(50, dtype=torch.int64), weight, bias)
    log_p = logits_of(batch).double().log_softmax(-1)

    def divergence(log_q: Tensor) -> float:
        return float((log_p.exp() * (log_p - log_q)).sum(1).mean())

    def of_tree(order: Tensor | None) -> float:
        noise = TreeGuided(256, order=order).given(batch, shared=False)
        return divergence(every_class(noise, 50, shared=False).log())

    frequencies = divergence(bias.double().log_softmax(0))
    assert of_tree(None) < 0.5 * of_tree(torch.arange(256)) < 0.5 * frequencies
