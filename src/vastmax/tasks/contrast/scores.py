"""What embeddings are worth: whether a pair finds itself, and how rows lie on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.heads.info_nce import InfoNCE

NEIGHBOURS = 10


def recall_at_1(query: Tensor, key: Tensor) -> float:
    """Return the share of the queries (N, d) whose nearest key (N, d) is their own, of rows of length 1."""
    nearest = (query @ key.t()).argmax(-1)
    return (nearest == torch.arange(len(query))).double().mean().item()


def alignment(query: Tensor, key: Tensor) -> float:
    r"""Return the mean squared distance of paired rows of length 1, least at 0.

    $$\frac 1 N \sum_i \lVert q_i - k_i \rVert^2$$

    Source: Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on
    the Hypersphere*, ICML 2020.
    """
    return (query - key).double().square().sum(-1).mean().item()


def uniformity(rows: Tensor) -> float:
    r"""Return how unevenly rows (N, d) of length 1 lie, in nats: 0 if all in one place, the less the more evenly.

    $$\log \frac{2}{N (N - 1)} \sum_{i < j} e^{-2 \lVert x_i - x_j \rVert^2}$$

    Source: Wang and Isola, 2020, as `alignment`.
    """
    distance = torch.pdist(rows.double())
    return (-2 * distance.square()).exp().mean().log().item()


def neighbour_accuracy(train: Tensor, train_label: Tensor, test: Tensor, test_label: Tensor) -> float:
    """Return how often the majority of the nearest training rows has a test row's label."""
    from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]

    classifier = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="cosine")
    classifier.fit(train.numpy(), train_label.numpy())
    return float(classifier.score(test.numpy(), test_label.numpy()))


def score_pairs(query: Tensor, key: Tensor, temperature: float) -> dict[str, float]:
    """Score the embeddings of two views of the same N rows, each (N, d) of length 1.

    Returns:
        `recall_at_1`, `alignment`, `uniformity` of both views' rows on average, and `information`: InfoNCE's lower
        bound on the views' mutual information in nats, at most log N.
    """
    return {
        "recall_at_1": recall_at_1(query, key),
        "alignment": alignment(query, key),
        "uniformity": (uniformity(query) + uniformity(key)) / 2,
        "information": InfoNCE(temperature, normalize=False).mutual_information(query, key).item(),
    }
