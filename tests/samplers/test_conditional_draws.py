"""Draws of samplers that follow the model have the distribution that these declare, row by row."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from batches import every_class, make_batch
from sampler_laws import goodness_of_fit, seeded

from vastmax.samplers import Batch, LogUniform, Mixture, RandomFeatures, Sampler, TreeGuided, Uniform

NUM_CLASSES = 13
ROWS = 3

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "tree": lambda: TreeGuided(NUM_CLASSES),
    "tree in order": lambda: TreeGuided(NUM_CLASSES, order=torch.arange(NUM_CLASSES).flip(0)),
    "features": lambda: RandomFeatures(NUM_CLASSES, num_features=8, floor=0.02),
    "mixture": lambda: Mixture([TreeGuided(NUM_CLASSES), LogUniform(NUM_CLASSES)], [0.7, 0.3]),
    "mixture of a mixture": lambda: Mixture(
        [Mixture([RandomFeatures(NUM_CLASSES), Uniform(NUM_CLASSES)], [2, 1]), TreeGuided(NUM_CLASSES)], [1, 1]
    ),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
either = pytest.mark.parametrize("shared", [True, False])


@either
@every_sampler
def test_draws_follow_q(make: Callable[[], Sampler], shared: bool) -> None:
    noise = make().given(make_batch(NUM_CLASSES), shared=shared)
    q = every_class(noise, ROWS, shared).view(-1, NUM_CLASSES)
    torch.testing.assert_close(q.sum(-1), torch.ones(len(q), dtype=torch.float64))
    assert (q > 0).all()
    ids = noise.sample(100_000 if shared else (ROWS, 100_000), generator=seeded()).ids.view(len(q), -1)
    tilt = 1 + 0.2 * (torch.arange(NUM_CLASSES) % 2)
    for drawn, declared in zip(ids, q, strict=True):
        observed = torch.bincount(drawn, minlength=NUM_CLASSES)
        assert goodness_of_fit(observed, declared) > 1e-4
        assert goodness_of_fit(observed, declared * tilt) < 1e-4
    if not shared:
        assert goodness_of_fit(torch.bincount(ids[0], minlength=NUM_CLASSES), q[1]) < 1e-4


@either
@every_sampler
def test_successive_draws_are_independent(make: Callable[[], Sampler], shared: bool) -> None:
    noise = make().given(make_batch(NUM_CLASSES, 1), shared=shared)
    pairs = noise.sample((1, 50_000, 2), generator=seeded(1)).ids.view(-1, 2)
    q = every_class(noise, 1, shared).view(-1)
    observed = torch.bincount(pairs[:, 0] * NUM_CLASSES + pairs[:, 1], minlength=NUM_CLASSES**2)
    likely = torch.outer(q, q).flatten() > 1e-4  # for chi-square to hold
    assert goodness_of_fit(observed[likely], torch.outer(q, q).flatten()[likely]) > 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 8, 37, 300])
@pytest.mark.parametrize("kind", [TreeGuided, RandomFeatures])
@either
def test_candidates_declare_their_count(
    kind: type[Sampler], num_classes: int, dtype: torch.dtype, tolerance: float, shared: bool
) -> None:
    """Whether a class's probability is learned on the way down or looked up, it is the same."""
    batch = make_batch(num_classes, 5, dtype=dtype)
    noise = kind(num_classes).given(batch, shared=shared)
    size = 7 if shared else (5, 7)
    ids, log_count, unique = noise.sample(size, generator=seeded())
    assert unique is False
    assert log_count.dtype == torch.float64
    torch.testing.assert_close(log_count, math.log(7) + noise.log_prob(ids), rtol=0, atol=tolerance)
    torch.testing.assert_close(log_count, noise.log_expected_count(ids, size), rtol=0, atol=tolerance)
    if not shared:
        one_by_one = torch.stack([noise.log_prob(column) for column in ids.T], 1)
        torch.testing.assert_close(log_count, math.log(7) + one_by_one, rtol=0, atol=tolerance)
    q = every_class(noise, 5, shared)
    torch.testing.assert_close(q.sum(-1), torch.ones_like(q.sum(-1)), rtol=0, atol=tolerance)


@every_sampler
def test_one_set_for_all_rows_comes_from_the_mean_of_the_rows(make: Callable[[], Sampler]) -> None:
    batch = make_batch(NUM_CLASSES, 6)
    own = every_class(make().given(batch, shared=False), 6, shared=False)
    torch.testing.assert_close(every_class(make().given(batch, shared=True), 6, shared=True), own.mean(0))


def test_a_mixture_weighs_the_parts_row_by_row() -> None:
    batch = make_batch(NUM_CLASSES)
    parts = [TreeGuided(NUM_CLASSES), RandomFeatures(NUM_CLASSES), LogUniform(NUM_CLASSES)]
    mixed = every_class(Mixture(parts, [5, 3, 2]).given(batch, shared=False), ROWS, shared=False)
    tree, features = (every_class(part.given(batch, shared=False), ROWS, shared=False) for part in parts[:2])
    by_hand = 0.5 * tree + 0.3 * features + 0.2 * parts[2].log_prob(torch.arange(NUM_CLASSES)).exp()
    torch.testing.assert_close(mixed, by_hand)


def test_a_mixture_that_depends_on_nothing_is_its_own() -> None:
    mixture = Mixture([Uniform(4), LogUniform(4)], [1, 1])
    assert mixture.given(make_batch(4), shared=False) is mixture


@either
@every_sampler
def test_no_rows(make: Callable[[], Sampler], shared: bool) -> None:
    noise = make().given(make_batch(NUM_CLASSES, 0), shared=shared)
    assert noise.sample(4 if shared else (0, 4)).ids.shape == ((4,) if shared else (0, 4))
    assert noise.log_expected_count(torch.empty(0, dtype=torch.int64), 4).shape == (0,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
@every_sampler
def test_copies_draw_alike(make: Callable[[], Sampler], copied: Callable[[Sampler], Sampler]) -> None:
    sampler, batch = make(), make_batch(NUM_CLASSES)
    sampler.given(batch, shared=False).sample((ROWS, 5), generator=seeded())
    later = make_batch(NUM_CLASSES, seed=1)
    other = copied(sampler)
    assert repr(other) == repr(sampler)
    assert not sampler.state_dict()
    first, second = (s.given(later, shared=False).sample((ROWS, 9), generator=seeded()) for s in (sampler, other))
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.log_expected_count, second.log_expected_count)


@either
@every_sampler
def test_tables_made_in_inference_mode_and_under_autocast(make: Callable[[], Sampler], shared: bool) -> None:
    batch = make_batch(NUM_CLASSES, dtype=torch.float32)
    plain, other = make(), make()
    size = 5 if shared else (ROWS, 5)
    expected = [plain.given(batch, shared=shared).sample(size, generator=seeded(s)) for s in range(2)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = [other.given(batch, shared=shared).sample(size, generator=seeded(0))]
    found.append(other.given(batch, shared=shared).sample(size, generator=seeded(1)))
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one.ids, two.ids)
        torch.testing.assert_close(one.log_expected_count, two.log_expected_count, rtol=0, atol=1e-5)


@every_sampler
def test_a_conditional_sampler_needs_its_batch(make: Callable[[], Sampler]) -> None:
    sampler = make()
    assert sampler.conditional
    for use in (lambda: sampler.sample(3), lambda: sampler.log_prob(torch.tensor([1]))):
        with pytest.raises(TypeError, match=r"expected a batch.* call given"):
            use()


def test_errors_of_a_batch() -> None:
    hidden, target, weight, bias = make_batch(NUM_CLASSES)[:4]
    sampler = TreeGuided(NUM_CLASSES)
    for wrong, message in [
        ((hidden, target, weight[1:], bias), "linear_weight: expected one row for each of 13 classes, got 12"),
        ((hidden, target, weight, bias[1:]), r"linear_bias: expected shape \(13,\)"),
        ((hidden[:, 1:], target, weight, bias), r"hidden: expected shape \(..., 4\)"),
        ((hidden[None], target, weight, bias), r"hidden: expected shape \(N, 4\), got \(1, 3, 4\)"),
        ((hidden, target[1:], weight, bias), r"target: expected shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.given(Batch(*wrong), shared=False)
    noise = sampler.given(Batch(hidden, target, weight, bias), shared=False)
    for use in (lambda: noise.sample(4), lambda: noise.sample((2, 4)), lambda: noise.log_prob(target[1:])):
        with pytest.raises(ValueError, match="expected a first axis of 3, one per row"):
            use()


def test_errors_of_construction() -> None:
    for make, error, message in [
        (lambda: TreeGuided(0), ValueError, "num_classes: .* got 0"),
        (lambda: TreeGuided(3, refresh=0), ValueError, "refresh: .* got 0"),
        (lambda: TreeGuided(3, order=[0, 1, 1]), ValueError, "order: expected each of 3 class ids once"),
        (lambda: TreeGuided(3, order=[0, 1]), ValueError, r"order: .* got shape \(2,\)"),
        (lambda: TreeGuided(3, order=[0.0, 1.0, 2.0]), TypeError, "order: expected int64"),
        (lambda: RandomFeatures(3, num_features=0), ValueError, "num_features: .* got 0"),
        (lambda: RandomFeatures(3, floor=0.0), ValueError, "floor: .* greater than 0 and less than 1, got 0"),
        (lambda: RandomFeatures(3, seed=0.5), TypeError, "seed: expected an integer, got 0.5"),
        (lambda: Mixture([TreeGuided(3), Uniform(3)], [1, 1], unique=True), ValueError, "unique: expected False"),
    ]:
        with pytest.raises(error, match=message):
            make()
