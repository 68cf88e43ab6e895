"""In-batch candidates: the other rows' targets, and frequencies learned from those that pass."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from batches import make_batch
from sampler_laws import probabilities, seeded
from torch import Tensor

from vastmax import heads
from vastmax.samplers import Batch, InBatch, Mixture, Uniform, Unigram


def see(sampler: InBatch, target: Tensor) -> None:
    rows, weight = torch.zeros(len(target), 1), torch.zeros(sampler.num_classes, 1)
    sampler.given(Batch(rows, target, weight, None), shared=True)


@pytest.mark.parametrize("shared", [True, False])
def test_candidates_are_the_other_rows_targets(shared: bool) -> None:
    counts = [5, 1, 2, 2]
    batch = make_batch(4)._replace(target=torch.tensor([2, 0, 2]))
    noise = InBatch(4, counts=counts).given(batch, shared=shared)
    ids, log_count, unique = noise.sample(7 if shared else (3, 7))
    assert unique is False
    assert ids.tolist() == [2, 0, 2]
    expected = torch.tensor([[math.inf, 1.0, 0.4], [0.4, math.inf, 0.4], [0.4, 1.0, math.inf]], dtype=torch.float64)
    torch.testing.assert_close(log_count.exp(), expected)
    torch.testing.assert_close(
        noise.log_expected_count(batch.target, 7).exp(), torch.tensor([0.4, 1.0, 0.4], dtype=torch.float64)
    )


def test_the_optimum_is_at_the_datas_distribution() -> None:
    """All batches of three rows from p: the expected loss of a row has no slope at s = log p."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    logit = p.log().requires_grad_()
    sampler = InBatch(4, counts=p)
    total = torch.zeros((), dtype=torch.float64)
    for target in itertools.product(range(4), repeat=3):
        y = torch.tensor(target)
        batch = make_batch(4)._replace(target=y)
        noise = sampler.given(batch, shared=True)
        candidates = noise.sample(1)
        own = logit[y] - noise.log_expected_count(y, 1)
        others = logit[candidates.ids] - candidates.log_expected_count
        loss = torch.cat([own[:, None], others], 1).logsumexp(1) - own
        total = total + p[y].prod() * loss.mean()
    (slope,) = torch.autograd.grad(total, logit)
    assert slope.abs().max() < 1e-14


def test_one_row_has_no_candidates() -> None:
    for sampler in (InBatch(4), InBatch(4, counts=[1, 2, 3, 4])):
        batch = make_batch(4, 1)
        noise = sampler.given(batch, shared=True)
        assert noise.sample(5).padding.all()
        assert noise.log_expected_count(batch.target, 5).isfinite().all()


def test_no_rows() -> None:
    sampler = InBatch(4)
    assert sampler.given(make_batch(4, 0), shared=True).sample(5).ids.shape == (0,)
    torch.testing.assert_close(probabilities(sampler), torch.full((4,), 0.25, dtype=torch.float64))


def test_starts_uniform() -> None:
    torch.testing.assert_close(probabilities(InBatch(8)), torch.full((8,), 0.125, dtype=torch.float64))


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_learns_the_frequencies_of_a_stream(rows: int) -> None:
    """The frequent classes come many times a batch, the rare ones once in many."""
    q = torch.tensor([0.4, 0.2, 0.1] + [0.01] * 30, dtype=torch.float64)
    rate = 0.02
    sampler, g = InBatch(len(q), rate=rate), seeded()
    num_draws = {1: 10_000, 8: 40_000, 64: 200_000}[rows]
    errors = []
    for batch, target in enumerate(Unigram(q, power=1.0).sample((num_draws // rows, rows), generator=g).ids):
        see(sampler, target)
        if batch * rows > 8000 and batch % (1000 // rows) == 0:
            errors.append(probabilities(sampler) / q - 1)
    error = torch.stack(errors)
    deviation = math.sqrt(rate / 2)
    assert 0.5 * deviation < error.square().mean().sqrt() < 1.25 * deviation
    # 1 / B is high by rate / 2. A class of q = 0.01 has forgotten its past after some 5000 draws.
    independent = 30 * max(1, (num_draws - 8000) / 5000)
    assert abs(error[:, 3:].mean() - rate / 2) < 4 * deviation / math.sqrt(independent)
    assert abs(error[:, :3].mean() - rate / 2) < 4 * deviation / math.sqrt(3 * len(error))


def test_by_draw_it_is_the_published_recursion_once_it_is_warm() -> None:
    rate, num_classes = 0.1, 5
    stream = torch.randint(num_classes, (400,), generator=seeded())
    sampler = InBatch(num_classes, rate=rate)
    gap, last, seen = [float(num_classes)] * num_classes, [0] * num_classes, [0] * num_classes
    for t, c in enumerate(stream.tolist(), start=1):
        see(sampler, torch.tensor([c]))
        seen[c] += 1
        share = max(rate, 1 / (seen[c] + 1))  # the plain mean, with one gap of V, until rate takes over
        gap[c] = (1 - share) * gap[c] + share * (t - last[c])
        last[c] = t
        torch.testing.assert_close(probabilities(sampler)[c].item(), 1 / gap[c])
    assert min(seen) > 2 / rate


def test_a_class_seen_several_times_in_a_batch() -> None:
    sampler = InBatch(10, rate=0.5)
    see(sampler, torch.tensor([3, 1, 3, 3]))  # 3 at draws 1, 3 and 4; 1 at draw 2
    # share of 3 is max(1 - 0.5^3, 3 / 4), its mean gap 4 / 3; share of 1 is max(0.5, 1 / 2), its gap 2
    expected = torch.full((10,), 10.0, dtype=torch.float64)
    expected[3] = 10 / 8 + 7 / 8 * 4 / 3
    expected[1] = 6.0
    torch.testing.assert_close(1 / probabilities(sampler), expected)
    see(sampler, torch.tensor([0, 1]))  # 1 at draw 6: a gap of 4
    torch.testing.assert_close(1 / sampler.log_prob(torch.tensor(1)).exp(), torch.tensor(5.0, dtype=torch.float64))


def test_learns_in_training_alone() -> None:
    sampler = InBatch(4)
    see(sampler.eval(), torch.tensor([1, 1]))
    torch.testing.assert_close(probabilities(sampler), torch.full((4,), 0.25, dtype=torch.float64))
    see(sampler.train(), torch.tensor([1, 1]))
    assert sampler.log_prob(torch.tensor(1)).exp() > 0.3


LEARNED = ["mean_gap", "last_draw", "num_gaps", "num_draws"]


def learning_head() -> heads.SampledSoftmax:
    return heads.SampledSoftmax(2, 5, sampler=InBatch(5, rate=0.1))


def train(head: heads.SampledSoftmax, seed: int) -> None:
    for target in torch.randint(5, (30, 4), generator=seeded(seed)):
        head(torch.zeros(4, 2), target)


def test_a_head_that_is_loaded_goes_on_learning_where_it_was(tmp_path: Path) -> None:
    head, other = learning_head(), learning_head()
    train(head, 1)
    torch.save(head.state_dict(), tmp_path / "head.pt")
    other.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    for seed in (2, 3):
        assert torch.equal(probabilities(other.sampler), probabilities(head.sampler))
        train(head, seed)
        train(other, seed)
    assert list(head.state_dict()) == ["weight", "bias", *(f"sampler.{name}" for name in LEARNED)]


def test_what_is_learned_beside_a_linear_layer() -> None:
    """A state dict without it, of a linear layer or of a time before it was saved, loads strictly and leaves it."""
    head, linear = learning_head(), torch.nn.Linear(2, 5)
    train(head, 1)
    learned = probabilities(head.sampler)
    assert linear.load_state_dict(head.state_dict(), strict=False).missing_keys == []
    assert torch.equal(linear.weight, head.weight)
    linear.reset_parameters()
    assert str(head.load_state_dict(linear.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(linear.weight, head.weight)
    assert torch.equal(probabilities(head.sampler), learned)


def test_counted_frequencies_are_not_saved() -> None:
    head, linear = heads.SampledSoftmax(2, 5, sampler=InBatch(5, counts=[1, 2, 3, 4, 5])), torch.nn.Linear(2, 5)
    head(torch.zeros(4, 2), torch.arange(4))
    linear.load_state_dict(head.state_dict())
    head.load_state_dict(linear.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*sampler\.mean_gap"):
        head.load_state_dict(learning_head().state_dict())


@pytest.mark.parametrize("name", LEARNED)
def test_a_part_of_what_is_learned_is_not_enough(name: str) -> None:
    state = learning_head().state_dict()
    del state[f"sampler.{name}"]
    with pytest.raises(RuntimeError, match=f"Missing key.*sampler.{name}"):
        learning_head().load_state_dict(state)


def test_what_is_learned_of_other_classes_or_by_another_name_is_refused() -> None:
    state = learning_head().state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for sampler\.mean_gap"):
        learning_head().load_state_dict({**state, "sampler.mean_gap": torch.ones(4)})
    linear = torch.nn.Linear(2, 5).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*sampler\.other"):
        learning_head().load_state_dict({**linear, "sampler.other": torch.ones(4)})


def test_casting_keeps_what_is_learned() -> None:
    head = learning_head()
    train(head, 1)
    learned = probabilities(head.sampler)
    assert torch.equal(probabilities(head.half().sampler), learned)
    assert head.state_dict()["sampler.mean_gap"].dtype == torch.float64


def test_errors() -> None:
    for make, error, message in [
        (lambda: InBatch(3, counts=[1, 2]), ValueError, "counts: expected one for each of 3 classes, got 2"),
        (lambda: InBatch(3, rate=0.0), ValueError, "rate: .* greater than 0 and less than 1, got 0"),
        (lambda: InBatch(3, rate=1.0), ValueError, "rate: .* got 1"),
        (lambda: InBatch(3).sample(4), TypeError, r"InBatch: expected a batch.* call given"),
        (lambda: Mixture([InBatch(3), Uniform(3)], [1, 1]), ValueError, "samplers: expected independent draws"),
        (lambda: InBatch(3).given(make_batch(3), shared=True)._draw([3], None), TypeError, "no independent draws"),
    ]:
        with pytest.raises(error, match=message):
            make()
