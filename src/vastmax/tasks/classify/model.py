"""A body of one hidden layer, over pixels or over bags of words, under a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import Problem
from vastmax.tasks.classify.heads import build_head


class PixelBody(nn.Module):
    """Pixels (N, F) to hidden rows (N, d)."""

    def __init__(self, num_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return hidden rows (N, d) of pixels (N, F)."""
        hidden: Tensor = self.layers(pixels)
        return hidden


class BagBody(nn.Module):
    """Sparse features (N, F) to hidden rows (N, d): the same layer, of which only the rows in use are read."""

    def __init__(self, num_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(num_features, hidden, mode="sum", include_last_offset=True, sparse=True)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, bags: Any) -> Tensor:
        """Return hidden rows (N, d) of a scipy.sparse matrix in rows (N, F)."""
        indices, offsets, values = (torch.from_numpy(part) for part in (bags.indices, bags.indptr, bags.data))
        summed = self.embedding(indices.long(), offsets.long(), per_sample_weights=values)
        hidden: Tensor = self.dropout(torch.relu(summed + self.bias))
        return hidden


class Classifier(nn.Module):
    """A body and a head, whose initial weights follow from the seed: heads of one seed share the body's."""

    def __init__(self, name: str, config: ClassifyConfig, problem: Problem) -> None:
        super().__init__()
        features = problem.train.features
        body = PixelBody if isinstance(features, Tensor) else BagBody
        torch.manual_seed(problem.seed)
        self.body = body(features.shape[1], config.hidden, config.dropout)
        self.head = build_head(name, config, problem.counts)
