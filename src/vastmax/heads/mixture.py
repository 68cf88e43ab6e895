"""A mixture of softmaxes over the same class rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vastmax.heads.base import Head, Table
from vastmax.heads.running_topk import topk_of_logits
from vastmax.heads.targets import unmasked
from vastmax.scoring import linear_cross_entropy, linear_logits
from vastmax.scoring.top import TopK, topk_by_id
from vastmax.validation import check_finite, check_k, check_per_class, check_positive_int


class Components(NamedTuple):
    """What a row is mixed of.

    Attributes:
        log_share: (N, M) log pi, of sum one over the M components.
        hidden: (N, M, c) the hidden row of each component.
    """

    log_share: Tensor
    hidden: Tensor


class MixtureOfSoftmaxes(Head):
    r"""A mixture of M softmaxes, each of its own projection of the hidden row, over one set of class rows.

    $$p_c = \sum_m \pi_m \frac{e^{s^m_c}}{Z_m}, \quad s^m_c = \tanh(P_m h) \cdot w_c + b_c, \quad
      \pi = \text{softmax}(G h), \qquad
      \ell = -\log \sum_m \exp(\log \pi_m + s^m_y - \log Z_m)$$

    The log-probabilities of one softmax over many contexts are a matrix of rank at most d + 2, those of a mixture
    of any rank: the way past the softmax bottleneck, at M times the cost of a step. Logits are made block by
    block; there is no N x M x V tensor. A mixture of one is the softmax of the hidden row itself: nothing is
    projected, and its parameters are those of `nn.Linear`.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        num_mixtures: M.
        class_features: c, the size of a class row; d if None, as it is for a mixture of one.
        bias: whether each class has a bias.
        class_weight: (V,) weight of each class in the training loss; 1 if None. The mean divides by the weights.
        ignore_index: rows with this target take no part in the loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters are.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: `class_features` other than d for a mixture of one, which projects nothing.

    References:
        Yang, Dai, Salakhutdinov and Cohen, Breaking the Softmax Bottleneck: A High-Rank RNN Language Model, 2018.

    Example:
        >>> head = MixtureOfSoftmaxes(16, 1000, 3)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 3, 999])
        >>> loss = head(hidden, target)
        >>> torch.allclose(loss, -head.log_prob(hidden)[range(4), target].mean(), atol=1e-5)
        True
    """

    bias: nn.Parameter | None
    gate: nn.Parameter | None
    projection: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_mixtures: int,
        *,
        class_features: int | None = None,
        bias: bool = True,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            device=device,
        )
        in_features, num_classes = self.in_features, self.num_classes
        self.num_mixtures = num_mixtures = check_positive_int("num_mixtures", num_mixtures)
        width = in_features if class_features is None else check_positive_int("class_features", class_features)
        if num_mixtures == 1 and width != in_features:
            raise ValueError(
                f"class_features: expected in_features = {in_features} for a mixture of one, got {class_features}"
            )
        self.class_features = width

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        mixed = num_mixtures > 1
        self.weight = parameter(num_classes, width)
        self.register_parameter("bias", parameter(num_classes) if bias else None)
        self.register_parameter("gate", parameter(num_mixtures, in_features) if mixed else None)
        self.register_parameter("projection", parameter(num_mixtures * width, in_features) if mixed else None)
        self.reset_parameters()

    def _tables(self) -> Iterator[Table]:
        yield "weight", self.weight, self.num_classes, self.class_features
        yield "bias", self.bias, self.num_classes
        yield "gate", self.gate, self.num_mixtures, self.in_features
        yield "projection", self.projection, self.num_mixtures * self.class_features, self.in_features

    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does."""
        for parameter in self.parameters():
            width = parameter.shape[1] if parameter.ndim == 2 else self.class_features
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def components(self, hidden: Tensor) -> Components:
        """Return the components of hidden (N, d), in at least float32."""
        if self.gate is None or self.projection is None:
            dtype = torch.promote_types(torch.promote_types(hidden.dtype, self.weight.dtype), torch.float32)
            return Components(hidden.new_zeros(*hidden.shape[:-1], 1, dtype=dtype), hidden.unsqueeze(-2))
        log_share = linear_logits(hidden, self.gate).log_softmax(-1)
        projected = linear_logits(hidden, self.projection).tanh()
        return Components(log_share, projected.unflatten(-1, (self.num_mixtures, self.class_features)))

    def _possible(self, classes: Tensor) -> Tensor | None:
        return unmasked(self.bias, classes)

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        log_share, rows = self.components(hidden)
        target = target.unsqueeze(-1).expand(log_share.shape)
        nll = linear_cross_entropy(
            rows, self.weight, target, linear_bias=self.bias, reduction="none", ignore_index=None
        )
        return _mixed_nll(log_share, nll)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats, one component after the other."""
        self.check(hidden)
        log_share, rows = self.components(hidden)
        return _mixed(
            log_share, (linear_logits(part, self.weight, linear_bias=self.bias) for part in rows.unbind(-2))
        )

    @torch.no_grad()
    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, a few rows at a time.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """
        self.check(hidden)
        k = check_k(k, self.num_classes)
        log_share, components = self.components(hidden.reshape(-1, self.in_features))

        def best(rows: slice, logits: Tensor) -> TopK:
            of_components = logits.view(-1, self.num_mixtures, self.num_classes).unbind(1)
            return topk_by_id(_mixed(log_share[rows], of_components), k)

        found = topk_of_logits(
            best, components.flatten(0, 1), self.weight, self.bias, k, together=self.num_mixtures
        )
        return TopK(*(x.view(*hidden.shape[:-1], k) for x in found))

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return zeros (...): each softmax normalises itself, and the shares sum to one."""
        self.check(hidden)
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, self.weight.dtype), torch.float32)
        return (hidden.to(dtype) * 0.0).sum(-1)

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        """Set the bias so that, where hidden is 0, the classes have these log-probabilities.

        Args:
            log_prob: (V,) finite, in nats.

        Raises:
            ValueError: a head without bias, or a `log_prob` of another shape or not finite.
        """
        if self.bias is None:
            raise ValueError("start_at: expected a head with bias=True, got one with bias=False")
        check_per_class("log_prob", log_prob, self.num_classes)
        check_finite("log_prob", log_prob)
        self.bias.copy_(log_prob)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        mixtures = f"num_mixtures={self.num_mixtures}, class_features={self.class_features}"
        return f"{super().extra_repr()}, {mixtures}, bias={self.bias is not None}"


def _mixed_nll(log_share: Tensor, nll: Tensor) -> Tensor:
    r"""Return $-\log \sum_m \pi_m e^{-\ell_m}$ of shares that sum to one.

    Of a probable class it is $-\log (1 - \sum_m \pi_m (1 - e^{-\ell_m}))$: the sum of the probabilities is 1 to
    rounding there, and its logarithm lost.
    """
    rest = -(log_share.exp() * torch.expm1(-nll)).sum(-1)
    probable = rest < 0.5
    near = -torch.log1p(-rest.masked_fill(~probable, 0.0))
    return torch.where(probable, near, -(log_share - nll).logsumexp(-1))


def _mixed(log_share: Tensor, logits: Iterable[Tensor]) -> Tensor:
    """Return the log-probabilities (..., V) of components with shares (..., M), from the logits of each in turn."""
    found = None
    for share, of_component in zip(log_share.unbind(-1), logits, strict=True):
        part = of_component.log_softmax(-1) + share.unsqueeze(-1)
        found = part if found is None else _log_add(found, part)
    assert found is not None
    return found


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """Return log(e^a + e^b), without a gradient where both are -inf: that of a class which is masked."""
    masked = a.isneginf() & b.isneginf()
    return torch.logaddexp(a.masked_fill(masked, 0.0), b.masked_fill(masked, 0.0)).masked_fill(masked, -torch.inf)
