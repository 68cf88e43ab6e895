"""The head whose probabilities are mostly exactly 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vastmax.functional.entmax import log_entmax
from vastmax.functional.sparse import entmax_loss
from vastmax.heads.base import Head
from vastmax.heads.flat import FlatHead
from vastmax.heads.running_topk import topk_of_logits
from vastmax.heads.targets import RowLoss, mean_class_weight
from vastmax.kernels.reference import log_alpha
from vastmax.reduction import reduce_rows
from vastmax.scoring import linear_logits, linear_loss
from vastmax.scoring.top import TopK, topk_by_id
from vastmax.sharding import is_sharded
from vastmax.validation import check_finite_number, check_k, check_per_class


class Entmax(FlatHead):
    r"""The entmax of every class's logit, trained with its own Fenchel-Young loss, a few rows at a time.

    $$p_c = [1 + (\alpha - 1)(s_c - A)]_+^{1 / (\alpha - 1)}, \qquad
      \ell = \max_{q \in \Delta} \left[ \langle q, s \rangle + H_\alpha(q) \right] - s_y$$

    The gradient of the logits is p less the target, and classes that fall behind the largest logit by more than
    $1 / (\alpha - 1)$ have none. The loss is 0 where p is the target. A class outside the support has the exact
    probability 0: `log_prob` is -inf there, and `nll` inf.

    A floating target, (..., V) probabilities, is trained on with the same loss less $H_\alpha$ of the target; a row
    then counts for the mean class weight of its target.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        alpha: $\alpha$, 1 or greater: 1 is softmax, 2 sparsemax. Where it starts, above 1, if it is learned.
        learn_alpha: make it a parameter, `raw_alpha`, with $\alpha = 1 + \log(1 + e^{\text{raw}})$.
        **options: those of `FlatHead`: bias, temperature, softcap, class_weight, ignore_index, reduction, device,
            dtype.

    References:
        Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models, 2019.
        Blondel, Martins and Niculae, Learning with Fenchel-Young Losses, 2020.

    Example:
        >>> head = Entmax(16, 1000, alpha=2.0)
        >>> hidden = 9 * torch.randn(4, 16)
        >>> head(hidden, torch.tensor([1, 2, 3, 999])).backward()
        >>> p = head.log_prob(hidden).exp()
        >>> torch.allclose(p.sum(-1), torch.ones(4)), bool((p == 0).float().mean() > 0.9)
        (True, True)
    """

    raw_alpha: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        alpha: float = 1.5,
        *,
        learn_alpha: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **options)
        self._alpha = check_finite_number("alpha", alpha, at_least=1.0)
        if learn_alpha and self._alpha == 1.0:
            raise ValueError("alpha: expected a start above 1 for learn_alpha=True, got 1")
        raw = self.weight.new_empty(()) if learn_alpha else None
        self.register_parameter("raw_alpha", None if raw is None else nn.Parameter(raw))
        self.reset_parameters()

    forward = Head.forward

    @property
    def compiles(self) -> bool:
        """Not in one graph: its loss of logits is made of rows in blocks, by a function that no graph can name."""
        return False

    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does, and set alpha to where it starts."""
        super().reset_parameters()
        if self.raw_alpha is not None:
            above = self._alpha - 1
            nn.init.constant_(self.raw_alpha, above + math.log(-math.expm1(-above)))

    @property
    def alpha(self) -> float | Tensor:
        """How sparse the probabilities are: a number, or a differentiable scalar if it is learned."""
        if self.raw_alpha is None:
            return self._alpha
        return 1 + functional.softplus(self.raw_alpha.double())

    def _train(
        self,
        row_loss: RowLoss,
        hidden: Tensor,
        target: Tensor,
        sample_weight: Tensor | None,
        target_weight: Tensor | None,
    ) -> Tensor:
        if not target.is_floating_point():
            return super()._train(row_loss, hidden, target, sample_weight, target_weight)
        rows = target.shape[:-1]
        loss = self._of_logits(
            _loss, hidden.reshape(-1, self.in_features), target.reshape(-1, self.num_classes)
        ).view(rows)
        mass = None
        if self.class_weight is not None:
            mass = mean_class_weight(target, self.class_weight.to(loss.dtype))
            loss = loss * mass
        return reduce_rows(loss, reduction=self.reduction, weight=sample_weight, mass=mass)

    def _row_loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        return self._of_logits(_loss, hidden, target)

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        return self._of_logits(_nll, hidden, target)

    def _of_logits(self, function: Callable[..., Tensor], hidden: Tensor, *rows: Tensor) -> Tensor:
        """Apply a function of logits (n, V), what belongs to their rows, and alpha to a few rows at a time."""
        alpha = self.alpha
        if not isinstance(alpha, Tensor):
            alpha = torch.full((), alpha, dtype=torch.float64, device=self.weight.device)
        bias = self.exact_bias()
        return linear_loss(
            lambda scores, *others: function(self.bend(scores), *others),
            self.divide(hidden),
            self.weight,
            linear_bias=bias,
            rows=rows,
            shared=(alpha,),
        )

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats; -inf outside the support."""
        self.check(hidden)
        scores = linear_logits(self.divide(hidden), self.weight, linear_bias=self.exact_bias())
        return log_entmax(self.bend(scores), self.alpha)

    @torch.no_grad()
    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids; past the support
            the values are -inf and the classes those of the next largest logits. Equals go by rising id.
        """
        self.check(hidden)
        k = check_k(k, self.num_classes)

        def best(rows: slice, scores: Tensor) -> TopK:
            logits = self.bend(scores)
            indices = topk_by_id(logits, k).indices
            return TopK(log_entmax(logits, self.alpha).gather(-1, indices), indices)

        flat = self.divide(hidden.reshape(-1, self.in_features))
        found = topk_of_logits(best, flat, self.weight, self.exact_bias(), k)
        return TopK(*(x.view(*hidden.shape[:-1], k) for x in found))

    def log_partition(self, hidden: Tensor) -> Tensor:
        r"""Return A of each row (...): what to take from the logits to make $\exp_\alpha$ of them sum to one.

        It is log Z at $\alpha = 1$.
        """
        self.check(hidden)
        return self._of_logits(_partition, hidden.reshape(-1, self.in_features)).view(hidden.shape[:-1])

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        r"""Set the bias so that, where hidden . weight is 0, the classes have these probabilities, and A = 0.

        $$b_c = T \log_\alpha p_c = T \frac{p_c^{\alpha - 1} - 1}{\alpha - 1}$$

        Args:
            log_prob: (V,) finite, in nats; normalised first.

        Raises:
            ValueError: a head without bias, or a `log_prob` of another shape or not finite.
        """
        check_per_class("log_prob", log_prob, self.num_classes)
        order = torch.as_tensor(self.alpha, dtype=torch.float64, device=log_prob.device) - 1
        super().start_at(log_alpha(log_prob.double().log_softmax(-1), order))

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does, and its alpha."""
        if self.raw_alpha is None:
            return f"{super().extra_repr()}, alpha={self._alpha:g}"
        known = not (self.raw_alpha.is_meta or is_sharded(self.raw_alpha))
        value = f", alpha={float(torch.as_tensor(self.alpha).detach()):g}" if known else ""
        return f"{super().extra_repr()}{value}, learn_alpha=True"


def _loss(logits: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    return entmax_loss(logits, target, alpha, ignore_index=None, reduction="none")


def _nll(logits: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    return -log_entmax(logits, alpha).gather(-1, target.unsqueeze(-1)).squeeze(-1)


def _partition(logits: Tensor, alpha: Tensor) -> Tensor:
    largest, place = logits.max(-1, keepdim=True)
    log_p = log_entmax(logits, alpha).gather(-1, place)
    return (largest - log_alpha(log_p, (alpha - 1).to(logits.dtype))).squeeze(-1)
