"""The peers compute what they stand for, and every measure runs, each of our implementations with a figure."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch

from benchmarks import problems, steps
from benchmarks.measures import MEASURES, measure
from benchmarks.measures.per_row_negatives import HandWritten
from benchmarks.settings import Settings
from benchmarks.tensorflow_peer import Step, TensorFlowStep
from vastmax import samplers
from vastmax.functional import nce_loss, negative_sampling_loss, sampled_softmax_loss

# Of torch's Adagrad on sparse gradients, about torch's own tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")

SETTINGS = Settings(threads=1, rounds=1, seconds=0.0, scale=0.001)


def test_targets_follow_the_noise():
    drawn = problems.log_uniform(8, (200_000,), seed=0)
    share = np.bincount(drawn, minlength=8) / len(drawn)
    np.testing.assert_allclose(share, samplers.LogUniform(8).log_prob(torch.arange(8)).exp(), atol=0.005)


def test_batches_are_the_same_in_every_process_and_new_at_every_step():
    one, other = (list(itertools.islice(problems.batches(4, 100, 3), 6)) for _ in range(2))
    for (hidden, target), (same_hidden, same_target) in zip(one, other, strict=True):
        np.testing.assert_array_equal(hidden, same_hidden)
        np.testing.assert_array_equal(target, same_target)
    assert len({tuple(target) for _, target in one}) == 6


@pytest.mark.parametrize(
    ("written", "ours"), [(steps.HandWrittenSampledSoftmax, sampled_softmax_loss), (steps.HandWrittenNCE, nce_loss)]
)
def test_what_is_written_by_hand_is_the_same_loss(written, ours):
    torch.manual_seed(0)
    head, noise = written(50, 4, 20), samplers.LogUniform(50)
    hidden, target = torch.randn(6, 4), torch.randint(50, (6,))
    torch.manual_seed(1)
    found = head(hidden, target)
    torch.manual_seed(1)
    ids = torch.exp(torch.rand(20, dtype=torch.float64) * np.log(51)).long() - 1
    logits = hidden @ head.weight.weight.T + head.bias.weight.T
    expected = ours(
        logits.gather(1, target[:, None]).squeeze(1),
        logits[:, ids],
        noise.log_expected_count(target, 20),
        noise.log_expected_count(ids, 20),
    )
    torch.testing.assert_close(found, expected.to(found.dtype))


def test_negatives_per_row_by_hand_are_the_same_loss():
    torch.manual_seed(0)
    head = HandWritten(50)
    hidden, target = torch.randn(6, 256), torch.randint(50, (6,))
    torch.manual_seed(1)
    found = head(hidden, target)
    torch.manual_seed(1)
    ids = torch.randint(50, (6, 100))
    logits = hidden @ head.weight.weight.T + head.bias.weight.T
    expected = negative_sampling_loss(logits.gather(1, target[:, None]).squeeze(1), logits.gather(1, ids))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("optimizer", ["Adagrad", "Adam"])
def test_a_step_by_hand_moves_the_rows_it_touched(optimizer):
    head = steps.HandWrittenSampledSoftmax(10_000, 4, 8)
    before = head.weight.weight.detach().clone()
    steps.hand_written_step(head, optimizer, rows=4)()
    moved = (head.weight.weight != before).any(1).sum()
    assert 1 <= moved <= 12
    assert head.weight.weight.grad is None


@pytest.mark.parametrize("optimizer", ["keras", "sparse"])
def test_tensorflow_makes_its_steps_in_another_process_or_is_not_installed(optimizer):
    step = Step("nce_loss", optimizer, rows=4, num_classes=50, features=3, num_samples=5, threads=1)
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(ImportError, match="tensorflow"):
            TensorFlowStep(step)
        return
    timer = TensorFlowStep(step)
    assert timer() > 0
    assert timer() > 0


def test_tensorflow_says_what_went_wrong():
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow is not installed")
    with pytest.raises(RuntimeError, match="no_such_loss"):
        TensorFlowStep(Step("no_such_loss", "sparse", 4, 50, 3, 5, 1))


# Those that are left out start other processes, or train a model.
@pytest.mark.parametrize(
    "name", sorted(set(MEASURES) - {"import_time", "classes", "sampled_step", "filtered_loss", "gpu"})
)
def test_a_measure_has_a_figure_and_a_floor_for_each_of_ours_and_judges_some(name):
    rows = measure(name)(SETTINGS)
    ours = [row for row in rows if row.implementation.startswith("vastmax")]
    assert ours
    for row in ours:
        assert row.note == ""
        assert row.seconds is not None
        assert row.over_floor > 0
    judged = [target for row in ours for target in row.targets]
    assert judged
    for target in judged:
        assert target.value is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_measure_says_so():
    [row] = measure("gpu")(SETTINGS)
    assert row.note.startswith("skipped")
