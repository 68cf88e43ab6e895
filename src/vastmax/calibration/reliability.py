"""Is a prediction made with confidence 0.8 right in 8 cases of 10? Error, diagram, and the rows they need."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.heads.base import Head
from vastmax.validation import check_choice, check_finite, check_positive_int

NORMS = ("l1", "l2", "max")


class Top1(NamedTuple):
    """The probability of each row's most probable class, and whether that is the target; each (N,)."""

    confidence: Tensor
    correct: Tensor


class Reliability(NamedTuple):
    """What predictions of like confidence come to, per bin [edge, next edge) of confidence, the last one closed.

    `edges` (B + 1,); `rows` (B,), how many there are; `confidence` and `accuracy` (B,), their means, nan in a bin
    without rows.
    """

    edges: Tensor
    rows: Tensor
    confidence: Tensor
    accuracy: Tensor


@torch.no_grad()
def top1(head: Head, hidden: Tensor, target: Tensor) -> Top1:
    """Return confidence and correctness of a head's predictions, without an N x V tensor.

    Args:
        head: any head.
        hidden: (..., d).
        target: (...) int64 class ids; rows with the head's `ignore_index` are left out.

    Raises:
        TypeError, ValueError: hidden or a target that does not fit the head.

    Example:
        >>> from vastmax.heads import Softmax
        >>> head = Softmax(8, 1000)
        >>> confidence, correct = top1(head, torch.randn(4, 8), torch.tensor([1, 2, -100, 999]))
        >>> confidence.shape, correct.dtype
        (torch.Size([3]), torch.bool)
    """
    head.check(hidden, target)
    if target.shape != hidden.shape[:-1]:
        raise ValueError(f"target: expected shape {tuple(hidden.shape[:-1])}, got {tuple(target.shape)}")
    counted = target != head.ignore_index
    best = head.topk(hidden[counted], 1)
    # Rounding can leave a probability above 1.
    return Top1(best.values.squeeze(-1).exp().clamp(max=1.0), best.indices.squeeze(-1) == target[counted])


def calibration_error(confidence: Tensor, correct: Tensor, *, num_bins: int = 15, norm: str = "l1") -> float:
    r"""Return the calibration error of predictions, by torchmetrics.

    $$\text{ECE} = \sum_b \frac{n_b}{N} \, \lvert \text{accuracy}_b - \text{confidence}_b \rvert$$

    with `norm="l1"`, the expected calibration error; the root of the mean square with `"l2"`, and the largest gap
    of a bin with `"max"`. Each row's confidence is all it needs, however many classes there are.

    Args:
        confidence: (...) probability of the predicted class.
        correct: (...) bool.
        num_bins: bins of equal width.
        norm: `"l1"`, `"l2"` or `"max"`.

    Raises:
        ModuleNotFoundError: torchmetrics is not installed.
        TypeError: a tensor of the wrong dtype.
        ValueError: no rows, shapes that differ, a confidence outside [0, 1], an unknown norm.

    References:
        Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.

    Example:
        >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        0.25
    """
    confidence, correct = _check_predictions(confidence, correct)
    num_bins = check_positive_int("num_bins", num_bins)
    check_choice("norm", norm, NORMS)
    try:
        from torchmetrics.functional.classification import binary_calibration_error
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("calibration_error needs torchmetrics: pip install 'vastmax[train]'") from missing
    # torchmetrics gives a confidence of exactly 1 a bin of its own; the last bin is to be closed.
    below_one = confidence.clamp(max=1 - torch.finfo(torch.float64).eps)
    return binary_calibration_error(below_one, correct.long(), n_bins=num_bins, norm=norm).item()  # type: ignore[arg-type]


def reliability(confidence: Tensor, correct: Tensor, *, num_bins: int = 15) -> Reliability:
    """Return mean confidence and accuracy of predictions, in bins of equal width over [0, 1].

    Args:
        confidence: (...) probability of the predicted class.
        correct: (...) bool.
        num_bins: B.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: no rows, shapes that differ, a confidence outside [0, 1].

    References:
        Niculescu-Mizil and Caruana, Predicting Good Probabilities with Supervised Learning, 2005.

    Example:
        >>> bins = reliability(torch.tensor([0.75, 0.75, 1.0]), torch.tensor([True, False, True]), num_bins=2)
        >>> bins.rows, bins.accuracy[1]
        (tensor([0, 3]), tensor(0.6667, dtype=torch.float64))
    """
    confidence, correct = _check_predictions(confidence, correct)
    num_bins = check_positive_int("num_bins", num_bins)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1], right=True)
    rows = torch.bincount(place, minlength=num_bins)
    total_confidence = torch.bincount(place, weights=confidence, minlength=num_bins)
    total_correct = torch.bincount(place, weights=correct.double(), minlength=num_bins)
    return Reliability(edges, rows, total_confidence / rows, total_correct / rows)


def draw_reliability(models: Iterable[tuple[str, Reliability]], path: str | PathLike[str]) -> None:
    """Draw accuracy against confidence, and below it the share of rows of each confidence, one line per model.

    Args:
        models: a name and a `Reliability` each.
        path: of the picture; its ending says which format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: no models.
    """
    models = list(models)
    if not models:
        raise ValueError("models: expected at least one name and Reliability, got none")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("draw_reliability needs matplotlib: pip install 'vastmax[train]'") from missing
    figure = Figure(figsize=(5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#999999", linestyle="--", label="calibrated")
    for name, bins in models:
        edges, rows, confidence, accuracy = (values.tolist() for values in bins)
        seen = [b for b, count in enumerate(rows) if count]
        above.plot([confidence[b] for b in seen], [accuracy[b] for b in seen], marker="o", markersize=4, label=name)
        below.stairs([count / sum(rows) for count in rows], edges, label=name)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.legend(frameon=False)
    below.set(xlabel="confidence", ylabel="share of rows")
    figure.savefig(path, dpi=130)


def _check_predictions(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return confidence, in float64, and correctness, each (N,); raise unless they are what they should be."""
    if not isinstance(confidence, Tensor) or not confidence.is_floating_point():
        kind = confidence.dtype if isinstance(confidence, Tensor) else type(confidence).__name__
        raise TypeError(f"confidence: expected a floating-point tensor, got {kind}")
    if not isinstance(correct, Tensor) or correct.dtype != torch.bool:
        kind = correct.dtype if isinstance(correct, Tensor) else type(correct).__name__
        raise TypeError(f"correct: expected a bool tensor, got {kind}")
    if correct.shape != confidence.shape:
        raise ValueError(f"correct: expected shape {tuple(confidence.shape)}, got {tuple(correct.shape)}")
    if confidence.numel() == 0:
        raise ValueError("confidence: expected at least one row, got none")
    check_finite("confidence", confidence)
    outside = (confidence < 0) | (confidence > 1)
    if outside.any():
        raise ValueError(f"confidence: expected probabilities in [0, 1], got {confidence[outside][0].item():g}")
    return confidence.detach().double().flatten(), correct.flatten()
