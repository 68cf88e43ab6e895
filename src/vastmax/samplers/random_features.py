"""Draws that follow the model by positive random features of the exponential kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vastmax.recomputation import is_recomputation
from vastmax.samplers.base import Batch, Sampler
from vastmax.samplers.conditional import ModelFollowingSampler
from vastmax.samplers.heap import HeapRows, OneRow, inner_levels
from vastmax.scoring import chosen_logits
from vastmax.validation import check_finite_number, check_int, check_positive_int
from vastmax.versions import Overwritten, Tables

MAX_LOG_GROWTH = 20.0
"""How far the log of a class's feature may rise, between two makings of the tables, above the largest of them."""


class RandomFeatures(ModelFollowingSampler):
    r"""The model's own distribution, its exponential kernel estimated by positive random features.

    $$q_c(h) = (1 - \varepsilon) \frac{\phi(h) \cdot \psi_c}{\sum_j \phi(h) \cdot \psi_j}
      + \frac \varepsilon V, \qquad
      \phi(x) = \frac 1 {\sqrt D} e^{\Omega x - |x|^2 / 2}, \quad \psi_c = e^{b_c} \phi(w_c)$$

    With the rows of $\Omega$ standard normal, $\mathbb{E}\, \phi(h) \cdot \phi(w) = e^{h \cdot w}$, and q tends to
    the model's softmax as D grows, up to the floor $\varepsilon$. Features of a node of a binary tree over the
    classes are the sum of those below it, so that a draw costs O(D log V).

    The relative variance of one feature's estimate is $e^{|h + w|^2} - 1$. Before features are taken, whatever
    cancels in the softmax or goes into the bias is therefore taken out: hidden and class rows are centred, and
    scaled, in opposite ways, to equal root mean square. What is left should be short, some 2 or less. Rows that
    point far out make a poor q, not a wrong one: what is drawn follows the q that is declared.

    In training each batch first brings up to date the classes of the last one, its targets and the candidates
    drawn here, in O((d + log V) D) each. All of the tables, 2 V x D numbers, are made anew every `refresh` batches,
    in O(V d D). With one set of candidates for all rows, q is the mean of the rows' own, at the cost of one row.

    Args:
        num_classes: V.
        num_features: D.
        floor: $\varepsilon$, the share of uniform draws, between 0 and 1: no class is drawn less than
            $\varepsilon / V$ of the time.
        refresh: batches from one making of the tables to the next.
        seed: of $\Omega$, whose rows are orthogonal within blocks of d.
        device: where to draw.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    References:
        Choromanski et al., Rethinking Attention with Performers, 2021.
        Blanc and Rendle, Adaptive Sampled Softmax with Kernel Based Sampling, 2018.
        Rawat et al., Sampled Softmax with Random Fourier Features, 2019.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> head = SampledSoftmax(16, 1000, sampler=RandomFeatures(1000), num_samples=20)
        >>> loss = head(torch.randn(4, 16), torch.tensor([1, 2, 3, 999]))
    """

    table_names = ("_omega", "_hidden_centre", "_class_centre", "_scale", "_shift", "_mass")

    _omega: Tensor
    _hidden_centre: Tensor
    _class_centre: Tensor
    _scale: Tensor
    _shift: Tensor
    _mass: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        num_features: int = 64,
        floor: float = 0.1,
        refresh: int = 500,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_classes, refresh=refresh, device=device)
        self.num_features = check_positive_int("num_features", num_features)
        self.floor = check_finite_number("floor", floor, above=0.0, below=1.0)
        self.seed = check_int("seed", seed)
        self._touched: list[Tensor] = []

    def given(self, batch: Batch, *, shared: bool) -> Sampler:
        """Return the sampler of one batch, and remember in training which classes the batch will change."""
        noise = super().given(batch, shared=shared)
        touched = self._newly_touched()
        if touched is not None:
            touched.append(batch.target)
        return noise

    def _newly_touched(self) -> list[Tensor] | None:
        """Where to take down the classes that a batch changes: in training, and once."""
        return self._touched if self.training and not is_recomputation() else None

    def _build(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        num_classes, in_features = weight.shape
        self._omega = orthogonal_directions(self.num_features, in_features, self.seed).to(hidden)
        self._class_centre = weight.to(hidden.dtype).mean(0)
        self._hidden_centre = hidden.mean(0) if len(hidden) > 0 else hidden.new_zeros(in_features)
        spread = (weight.to(hidden.dtype) - self._class_centre).square().sum(1).mean()
        spread_hidden = (hidden - self._hidden_centre).square().sum(1).mean() if len(hidden) > 0 else spread
        scale = (spread / spread_hidden).sqrt().sqrt()  # equal root mean squares of x * scale and y / scale
        self._scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)

        log_feature = self._log_class_features(weight, bias)
        self._shift = log_feature.amax(0).clamp(min=torch.finfo(hidden.dtype).min)
        self._mass = hidden.new_zeros(2 * num_classes, self.num_features + 1)
        self._mass[num_classes:, : self.num_features] = (log_feature - self._shift).exp_()
        self._mass[num_classes:, self.num_features] = 1.0  # what the floor is spread over
        for level in reversed(inner_levels(num_classes)):
            children = self._mass[2 * level.start : 2 * level.stop]
            self._mass[level] = children[0::2] + children[1::2]
        self._touched.clear()

    def _update(self, weight: Tensor, bias: Tensor | None) -> None:
        if not self._touched:
            return
        ids = torch.cat([ids.reshape(-1).to(weight.device) for ids in self._touched]).unique()
        self._touched.clear()
        leaf = self.num_classes + ids
        above = list(_levels_above(leaf))

        def overwritten() -> Overwritten:
            node = torch.cat([leaf, *above])
            return {"_mass": (node, self._mass[node])}

        self._versions.before_change(overwritten)
        log_feature = self._log_class_features(weight[ids], None if bias is None else bias[ids])
        growth = (log_feature - self._shift).clamp_(max=MAX_LOG_GROWTH)
        self._mass[leaf, : self.num_features] = growth.exp_()
        for node in above:
            self._mass[node] = self._mass[2 * node] + self._mass[2 * node + 1]

    def _log_class_features(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Log of the features of class rows (n, d): (n, D)."""
        weight = weight.to(self._omega.dtype)
        rows = (weight - self._class_centre) / self._scale
        log_weight = weight @ self._hidden_centre - rows.square().sum(1) / 2
        if bias is not None:
            log_weight = log_weight + bias.to(log_weight.dtype)
        return torch.addmm(log_weight.unsqueeze(1), rows, self._omega.t())

    def _hidden_features(self, hidden: Tensor, tables: Tables) -> Tensor:
        """Features of hidden rows (N, d), each up to a factor of its own, and the one that the floor takes."""
        rows = (hidden.to(tables["_omega"].dtype) - tables["_hidden_centre"]) * tables["_scale"]
        log_feature = torch.addmm(tables["_shift"], rows, tables["_omega"].t())
        feature = (log_feature - log_feature.amax(1, keepdim=True)).exp_()
        total = feature @ tables["_mass"][1, : self.num_features]
        floor = total * (self.floor / (1 - self.floor) / self.num_classes)
        return torch.cat([feature, floor.unsqueeze(1)], 1)

    def _follow(self, hidden: Tensor, tables: Tables, *, shared: bool) -> Sampler:
        feature, mass = self._hidden_features(hidden, tables), tables["_mass"]
        touched = self._newly_touched()
        if not shared:
            return _FeatureRows(mass, feature, touched)
        mean = (feature / (feature @ mass[1]).unsqueeze(1)).mean(0, keepdim=True)
        return OneRow(_FeatureRows(mass, mean, touched))

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return (
            f"num_classes={self.num_classes}, num_features={self.num_features}, floor={self.floor:g}, "
            f"refresh={self.refresh}, seed={self.seed}"
        )


def _levels_above(node: Tensor) -> Iterator[Tensor]:
    """The parents of nodes, the parents of those, and so on to the root, each once a level."""
    while len(node := (node >> 1).unique()) > 0 and len(node := node[node > 0]) > 0:
        yield node


class _FeatureRows(HeapRows):
    """Each row of a batch by the masses of the tree's nodes under its own features."""

    def __init__(self, mass: Tensor, feature: Tensor, touched: list[Tensor] | None) -> None:
        super().__init__(len(mass) // 2, len(feature), device=mass.device)
        self.mass, self.feature, self.touched = mass, feature, touched

    def _draw_scored(self, shape: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        ids, log_prob = super()._draw_scored(shape, generator)
        if self.touched is not None:
            self.touched.append(ids)
        return ids, log_prob

    def _log_odds(self, rows: slice, node: Tensor) -> Tensor:
        (mass,) = chosen_logits(self.feature[rows], self.mass, torch.cat([2 * node, 2 * node + 1], -1))
        left, right = mass.log().chunk(2, -1)
        return left - right

    def _top_log_odds(self, rows: slice, num_nodes: int) -> Tensor:
        log_mass = (self.feature[rows] @ self.mass[: 2 * num_nodes].t()).log_()
        return log_mass[:, 0::2] - log_mass[:, 1::2]

    def _leaf_log_prob(self, leaf: Tensor) -> Tensor:
        (mass,) = chosen_logits(self.feature, self.mass, leaf)
        total = self.feature @ self.mass[1]
        return mass.double().log() - total.double().log().unsqueeze(1)

    def _class_of(self, leaf: Tensor) -> Tensor:
        return leaf - self.num_classes

    def _leaf_of(self, ids: Tensor) -> Tensor:
        return ids + self.num_classes


def orthogonal_directions(num_directions: int, dimension: int, seed: int) -> Tensor:
    """Return standard normal directions (num_directions, dimension), orthogonal within blocks of `dimension`."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for start in range(0, num_directions, dimension):
        size = min(dimension, num_directions - start)
        block = torch.randn(dimension, size, dtype=torch.float64, generator=generator)
        q, r = torch.linalg.qr(block)
        length = torch.randn(size, dimension, dtype=torch.float64, generator=generator).norm(dim=1)
        blocks.append((q * r.diagonal().sign()).t() * length.unsqueeze(1))
    return torch.cat(blocks)
