"""Random features: they tend to the softmax, and their tables keep up with the rows that training touches."""

import math

import pytest
import torch
from batches import every_class, logits_of, make_batch
from sampler_laws import seeded
from torch import Tensor

from vastmax.samplers import Batch, RandomFeatures
from vastmax.samplers.random_features import orthogonal_directions

V, ROWS = 12, 5


def log_q(sampler: RandomFeatures, batch: Batch) -> Tensor:
    return every_class(sampler.given(batch, shared=False), len(batch.hidden), shared=False).log()


def divergence(num_features: int, batch: Batch) -> float:
    """Mean over rows and seeds of KL(softmax || q)."""
    log_p = logits_of(batch).log_softmax(-1)
    kls = []
    for seed in range(10):
        sampler = RandomFeatures(V, num_features=num_features, floor=1e-9, seed=seed)
        kls.append((log_p.exp() * (log_p - log_q(sampler, batch))).sum(1).mean())
    return float(torch.stack(kls).mean())


def test_q_tends_to_the_softmax_as_features_are_added() -> None:
    batch = make_batch(V, ROWS)
    batch = batch._replace(hidden=batch.hidden / 2, linear_weight=batch.linear_weight / 2)
    few, more, many = (divergence(num, batch) for num in (8, 128, 2048))
    assert few < 0.5
    assert more < few / 5
    assert many < more / 8  # the error of an average falls as 1 / D
    assert many < 2e-3


def test_q_by_its_definition() -> None:
    """The estimated kernel of the centred and scaled rows, written out."""
    batch = make_batch(V, ROWS)
    centre, class_centre = batch.hidden.mean(0), batch.linear_weight.mean(0)
    x, y = batch.hidden - centre, batch.linear_weight - class_centre
    scale = (y.square().sum(1).mean() / x.square().sum(1).mean()) ** 0.25
    omega = orthogonal_directions(6, 4, seed=3)

    def feature(rows: Tensor) -> Tensor:
        return (rows @ omega.T - rows.square().sum(1, keepdim=True) / 2).exp()

    kernel = feature(x * scale) @ feature(y / scale).T * (batch.linear_bias + batch.linear_weight @ centre).exp()
    expected = 0.75 * kernel / kernel.sum(1, keepdim=True) + 0.25 / V
    sampler = RandomFeatures(V, num_features=6, floor=0.25, seed=3)
    torch.testing.assert_close(log_q(sampler, batch).exp(), expected)


def test_at_the_mean_row_q_is_the_softmax_whatever_the_features() -> None:
    """There the kernel is that of 0 and any row: 1 in expectation, and the bias holds the rest."""
    batch = make_batch(V, 1)
    scores = every_class(RandomFeatures(V, num_features=50_000).given(batch, shared=True), 1, shared=True)
    softmax = 0.9 * logits_of(batch).softmax(-1)[0] + 0.1 / V
    assert (scores / softmax - 1).abs().max() < 0.05


def test_no_class_is_rarer_than_the_floor_allows() -> None:
    batch = make_batch(V, ROWS)
    far = batch._replace(hidden=40 * batch.hidden, linear_weight=10 * batch.linear_weight, linear_bias=None)
    for dtype in (torch.float32, torch.float64):
        some = Batch(
            *(None if part is None else part.to(dtype if part.is_floating_point() else part.dtype) for part in far)
        )
        q = log_q(RandomFeatures(V, floor=0.03), some).exp()
        assert q.isfinite().all()
        assert q.min() >= 0.03 / V * (1 - 1e-5)
        torch.testing.assert_close(q.sum(1), torch.ones(ROWS, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 8, 12, 33])
@pytest.mark.parametrize("shared", [True, False])
def test_bringing_the_touched_classes_up_to_date_is_as_good_as_making_all_anew(
    num_classes: int, shared: bool
) -> None:
    sampler = RandomFeatures(num_classes, num_features=7, refresh=100)
    hidden, target, weight, bias = make_batch(num_classes, ROWS)[:4]
    for step in range(4):
        noise = sampler.given(Batch(hidden, target, weight, bias), shared=shared)
        ids = noise.sample(2 if shared else (ROWS, 2), generator=seeded(step)).ids
        touched = torch.cat([ids.flatten(), target])
        weight, bias = weight.clone(), bias.clone()
        weight[touched] += torch.randn(len(touched), 4, generator=seeded(step), dtype=torch.float64)
        bias[touched] += 0.3
        target = (target + 1) % num_classes
    sampler.given(Batch(hidden, target, weight, bias), shared=shared)

    leaves = (sampler._log_class_features(weight, bias) - sampler._shift).exp()
    mass = torch.cat([torch.zeros(num_classes, 7), leaves])
    for node in range(num_classes - 1, 0, -1):
        mass[node] = mass[2 * node] + mass[2 * node + 1]
    torch.testing.assert_close(sampler._mass[1:, :-1], mass[1:])


def test_only_training_touches_the_tables() -> None:
    first, second = make_batch(V, ROWS), make_batch(V, ROWS, seed=1)
    sampler = RandomFeatures(V, refresh=1).eval()
    sampler.given(first, shared=False).sample((ROWS, 3))
    was = sampler._mass.clone()
    sampler.given(second, shared=False)
    assert torch.equal(sampler._mass, was)
    sampler.train()
    for _ in range(2):
        found = log_q(sampler, second)
    torch.testing.assert_close(found, log_q(RandomFeatures(V), second))


def test_classes_that_grow_between_two_refreshes_stay_finite() -> None:
    hidden, target, weight, bias = make_batch(V, ROWS, dtype=torch.float32)[:4]
    sampler = RandomFeatures(V)
    sampler.given(Batch(hidden, target, weight, bias), shared=False)
    bias[target] += 1000
    noise = sampler.given(Batch(hidden, target, weight, bias), shared=False)
    q = every_class(noise, ROWS, shared=False)
    torch.testing.assert_close(q.sum(1), torch.ones(ROWS, dtype=torch.float64), rtol=0, atol=1e-5)
    assert q[:, target.unique()].sum() > 0.85 * ROWS


def test_directions_are_standard_normal_and_orthogonal_in_blocks() -> None:
    omega = orthogonal_directions(7, 3, seed=0)
    for block in omega.split(3):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-12)
    many = torch.stack([orthogonal_directions(3, 3, seed) for seed in range(4000)])
    z = torch.cat([many.mean(0).flatten(), ((many**2).mean(0).flatten() - 1) / math.sqrt(2)]) * math.sqrt(4000)
    assert z.abs().max() < 4
    fourth = (many**4).mean(0)
    assert (fourth - 3).abs().max() < 0.8
