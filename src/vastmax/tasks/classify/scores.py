"""What a classifier's predictions are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vastmax.calibration import calibration_error, reliability

BINS = 10
THIRDS = ("head", "medium", "tail")


def score(log_prob: Tensor, label: Tensor, counts: Tensor) -> dict[str, Any]:
    """Score log-probabilities (N, V) of rows with these labels (N,), by classes with these training rows (V,).

    Returns:
        `accuracy`, `macro_f1` and the `macro_f1` of the `head`, `medium` and `tail` third of the classes by
        training rows; `nll` in nats, None if it is infinite; `zero_share`, of rows whose label has probability
        0; `ece`, the expected calibration error of the confidence; and the `bins` of the reliability diagram.
    """
    from sklearn.metrics import f1_score  # type: ignore[import-untyped]

    num_classes = len(counts)
    confidence, predicted = log_prob.exp().clamp(max=1.0).max(-1)  # rounding can leave a probability above 1
    correct = predicted == label
    nll = -log_prob.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    every = np.arange(num_classes)
    f1 = f1_score(label.numpy(), predicted.numpy(), labels=every, average=None, zero_division=0.0)
    thirds = np.array_split(counts.argsort(descending=True, stable=True).numpy(), len(THIRDS))
    return {
        "accuracy": correct.double().mean().item(),
        "macro_f1": mean_seen(f1, every, label),
        **{third: mean_seen(f1, classes, label) for third, classes in zip(THIRDS, thirds, strict=True)},
        "nll": None if nll.isinf().any() else nll.double().mean().item(),
        "zero_share": nll.isinf().double().mean().item(),
        "ece": calibration_error(confidence, correct, num_bins=BINS),
        "bins": summed_bins(confidence, correct),
    }


def mean_seen(f1: NDArray[np.float64], classes: NDArray[np.int64], label: Tensor) -> float | None:
    """Return the mean F1 of those classes that have a row to be found, None if there are none."""
    seen = classes[np.isin(classes, label.numpy())]
    return float(f1[seen].mean()) if len(seen) else None


def summed_bins(confidence: Tensor, correct: Tensor) -> list[dict[str, float]]:
    """Return rows, confidence and correct predictions of every bin: sums, so that those of seeds can be added."""
    bins = reliability(confidence, correct, num_bins=BINS)
    confidence_sum, correct_sum = ((bins.rows * mean).nan_to_num() for mean in (bins.confidence, bins.accuracy))
    return [
        {"rows": rows, "confidence": summed, "correct": right}
        for rows, summed, right in zip(
            bins.rows.tolist(), confidence_sum.tolist(), correct_sum.tolist(), strict=True
        )
    ]
