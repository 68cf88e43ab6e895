"""Calibration error and the bins behind it."""

import sys

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from vastmax import heads
from vastmax.calibration import calibration_error, draw_reliability, reliability, top1
from vastmax.scoring.top import TopK


def predictions(rows=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(rows, dtype=torch.float64, generator=generator)
    return confidence, torch.rand(rows, dtype=torch.float64, generator=generator) < confidence**2


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_the_error_is_that_of_the_bins(norm, num_bins):
    confidence, correct = predictions()
    confidence[:3] = torch.tensor([0.0, 1.0, 0.5])  # edges of bins
    bins = reliability(confidence, correct, num_bins=num_bins)
    seen = bins.rows > 0
    gap, share = (bins.accuracy - bins.confidence).abs()[seen], bins.rows[seen] / len(confidence)
    expected = {"l1": (share * gap).sum(), "l2": (share * gap**2).sum().sqrt(), "max": gap.max()}[norm]
    assert calibration_error(confidence, correct, num_bins=num_bins, norm=norm) == pytest.approx(expected.item())


def test_the_bins_by_hand():
    confidence = torch.tensor([0.0, 0.25, 0.3, 0.75, 0.9, 1.0])
    correct = torch.tensor([False, True, False, True, False, True])
    bins = reliability(confidence, correct, num_bins=4)
    assert bins.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert bins.rows.tolist() == [1, 2, 0, 3]
    expected = {"confidence": [0.0, 0.275, torch.nan, 2.65 / 3], "accuracy": [0.0, 0.5, torch.nan, 2 / 3]}
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(bins, name), torch.tensor(values).double(), equal_nan=True, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_a_heads_error_is_that_of_its_dense_probabilities(norm):
    generator = torch.Generator().manual_seed(0)
    head = heads.Softmax(4, 6, dtype=torch.float64)
    hidden = 3 * torch.randn(7, 30, 4, dtype=torch.float64, generator=generator)
    target = torch.randint(6, (7, 30), generator=generator)
    target[0, :5] = -100
    found = top1(head, hidden, target)
    probability, label = head.log_prob(hidden).detach().exp()[target >= 0], target[target >= 0]
    assert torch.equal(found.correct, probability.argmax(-1) == label)
    # In float32, whatever it is given.
    expected = multiclass_calibration_error(probability, label, 6, n_bins=10, norm=norm)
    assert calibration_error(*found, num_bins=10, norm=norm) == pytest.approx(expected.item(), rel=1e-6)


def test_a_confidence_that_rounds_above_one_is_one(monkeypatch):
    head = heads.Softmax(4, 6)
    best = TopK(torch.full((3, 1), 1e-7), torch.zeros(3, 1, dtype=torch.int64))
    monkeypatch.setattr(head, "topk", lambda hidden, k: best)
    confidence, _ = top1(head, torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    assert best.values.exp().max() > 1
    assert (confidence == 1).all()


def test_a_picture(tmp_path):
    path = tmp_path / "reliability.png"
    draw_reliability([("raw", reliability(*predictions())), ("scaled", reliability(*predictions(20)))], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="models: expected at least one"):
        draw_reliability([], path)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch, tmp_path):
    for module in ("torchmetrics.functional.classification", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    bins = reliability(*predictions())
    for call in (
        lambda: calibration_error(*predictions()),
        lambda: draw_reliability([("raw", bins)], tmp_path / "reliability.png"),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'vastmax\[train\]'"):
            call()


@pytest.mark.parametrize("function", [reliability, calibration_error])
def test_wrong_input(function):
    confidence, correct = predictions(4)
    for wrong, message in (
        ((confidence, correct[:3]), "correct: expected shape"),
        ((confidence[:0], correct[:0]), "confidence: expected at least one row"),
        ((confidence + 1, correct), r"confidence: expected probabilities in \[0, 1\]"),
        ((confidence * torch.nan, correct), "confidence: expected finite"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*wrong)
    for wrong, message in (
        ((confidence, correct.long()), "correct: expected a bool"),
        ((correct, correct), "confidence: expected a floating"),
    ):
        with pytest.raises(TypeError, match=message):
            function(*wrong)
    with pytest.raises(ValueError, match="num_bins: expected"):
        function(confidence, correct, num_bins=0)


def test_an_unknown_norm():
    with pytest.raises(ValueError, match="norm: expected one of l1, l2, max"):
        calibration_error(*predictions(), norm="l3")


def test_several_targets_a_row_have_no_top1():
    with pytest.raises(ValueError, match="target: expected shape"):
        top1(heads.Softmax(4, 6), torch.zeros(3, 4), torch.tensor([[0, 1]]).repeat(3, 1))
