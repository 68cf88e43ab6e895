"""The loss of a head is the same whether the values of its arguments are looked at, or asserted by the device."""

import pytest
import torch

import vastmax
from tests.heads.conformance import CASES, D, V, batch, call, gradients
from vastmax import heads, samplers
from vastmax.samplers import Sampler


def loss_and_gradients(mode, case, head, hidden, target, weight):
    with vastmax.checks(mode):
        loss = call(case, head, hidden, target, sample_weight=weight)
    upstream = torch.randn(loss.shape, dtype=loss.dtype, generator=torch.Generator().manual_seed(1))
    return [loss.detach(), *gradients(loss, [hidden, *head.parameters()], upstream)]


def same_sets(monkeypatch):
    """Have every head draw the first sets again: those of distinct classes are drawn otherwise without a look."""
    drawn = []

    def sample(self, rows, k, generator):
        if not drawn:
            drawn.append(original(self, rows, k, generator))
        return drawn[0]

    original = Sampler._sample_distinct
    monkeypatch.setattr(Sampler, "_sample_distinct", sample)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_without_a_look_at_its_values_is_the_same(name, reduction, monkeypatch):
    case = CASES[name]
    head = case.make(reduction=reduction)
    hidden, target, g = batch()
    same_sets(monkeypatch)
    if not (case.follows or "distinct" in name):
        target[-1] = -100  # the last, so that the others draw the same
        with torch.no_grad():
            hidden[-1] = torch.nan
    weight = torch.rand(6, generator=g, dtype=torch.float64)
    if "mixture" in name:
        pytest.skip("draws more than are wanted")
    now = loss_and_gradients("now", case, head, hidden, target, weight)
    for one, other in zip(loss_and_gradients("device", case, head, hidden, target, weight), now, strict=True):
        torch.testing.assert_close(one, other)


UNIQUE = {name: case for name, case in CASES.items() if case.unique and not case.follows}


@pytest.mark.parametrize("name", UNIQUE)
def test_places_without_a_candidate_count_for_nothing(name, monkeypatch):
    """A set that is padded, as it is where its size is not looked at, gives the loss and gradients of the set."""
    case = UNIQUE[name]
    head = case.make(reduction="none")
    hidden, target, g = batch()
    original, drawn, padded = Sampler._sample_distinct, [], False

    def sample(self, rows, k, generator):
        if not drawn:
            drawn.append(original(self, rows, k, generator))
        if not padded:
            return drawn[0]
        ids, log_count = (torch.nn.functional.pad(x, (0, 3)) for x in drawn[0][:2])
        log_count[..., -3:] = torch.inf
        order = torch.randperm(ids.shape[-1], generator=torch.Generator().manual_seed(2))
        return samplers.Candidates(ids[..., order], log_count[..., order], unique=True)

    monkeypatch.setattr(Sampler, "_sample_distinct", sample)
    upstream = torch.randn(6, dtype=torch.float64, generator=g)
    found = []
    for padded in (False, True):  # noqa: B007  which `sample` reads
        loss = call(case, head, hidden, target)
        found.append([loss, *gradients(loss, [hidden, *head.parameters()], upstream)])
    for without, with_padding in zip(*found, strict=True):
        torch.testing.assert_close(with_padding, without)


def test_modes_say_when_values_are_checked():
    head = heads.SampledSoftmax(D, V, sampler=samplers.Uniform(V), num_samples=3)
    hidden, target, _ = batch(dtype=torch.float32)
    wrong = hidden.detach().clone()
    wrong[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"hidden: expected finite values, got nan at \(1, 2\)"):
        head(wrong, target)
    with vastmax.checks("device"), pytest.raises(RuntimeError, match="hidden: expected finite values"):
        head(wrong, target)
    with vastmax.checks("off"):
        assert head(wrong, target).isnan()
        with pytest.raises(ValueError, match="target: expected shape"):  # shapes are checked always
            head(hidden, target[1:])
    with pytest.raises(ValueError, match="hidden: expected finite"):  # as it was before
        head(wrong, target)
    with pytest.raises(ValueError, match="mode: expected one of now, device, off, got 'never'"):
        vastmax.checks("never")


def test_a_row_that_does_not_count_is_no_candidate_of_others():
    head = heads.SampledSoftmax(D, V, sampler=samplers.InBatch(V), dtype=torch.float64)
    hidden, target, _ = batch()
    target[1] = -100
    other = heads.SampledSoftmax(D, V, sampler=samplers.InBatch(V), dtype=torch.float64)
    other.load_state_dict(head.state_dict())
    counted = target >= 0
    for _ in range(3):
        with vastmax.checks("device"):
            ours = head(hidden, target)
        torch.testing.assert_close(ours, other(hidden[counted], target[counted]))
    for name, learned in head.sampler.state_dict().items():
        torch.testing.assert_close(learned, other.sampler.state_dict()[name])
