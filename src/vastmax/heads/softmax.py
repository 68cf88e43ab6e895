"""The exact head: every class, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vastmax.heads.flat import FlatHead
from vastmax.heads.targets import mean_class_weight, mean_weight, no_share, shares
from vastmax.reduction import CountedRows, reduce_rows
from vastmax.scoring import linear_cross_entropy, linear_soft_cross_entropy
from vastmax.scoring.cross_entropy import check_filter_eps
from vastmax.scoring.products import check_product_dtype
from vastmax.validation import check_finite, check_finite_number, check_per_class, check_share


class Softmax(FlatHead):
    r"""The exact softmax, in memory bounded by one block of logits.

    $$\ell = \log \sum_c e^{s_c} - s_y, \qquad s_c = \text{cap}\left(\frac{h \cdot w_c + b_c}{T}\right)$$

    A step costs O(V): three matrix products of N x d x V and a dense optimizer step. It is the yardstick of every
    other head, and with its weights any other flat head can be served.

    What its loss may have beside, in any combination: with class weights v, smoothed target
    $t'_c = (1 - \epsilon) t_c + \epsilon / V$ and $p = \text{softmax}(s + a)$,

    $$\ell = -\sum_c t'_c v_c (1 - p_c)^\gamma \log p_c + \text{z\_loss}\; v_y (\log Z)^2 .$$

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        label_smoothing: $\epsilon$, the share of the target's mass spread evenly over the classes, in [0, 1].
        focal_gamma: $\gamma$, at least 0: how much less a class that is probable already counts.
        logit_adjustment: (V,) a, finite, in nats: added to the logits in the training loss alone. With
            `tau * functional.log_prior(counts)` the head learns logits that predict rare and frequent classes
            equally well.
        z_loss: coefficient of the squared log-partition, which keeps it near 0.
        filter_eps: leave classes out of the gradients of rows in which they are less probable than this, a block
            of rows at a time; see `functional.linear_cross_entropy`, whose bound holds. The loss stays exact.
        product_dtype: `torch.bfloat16` to round the factors of the training loss's matrix products, on a CPU that
            has such products; see there, too. Neither is for targets of several classes, computed in full.
        **options: those of `FlatHead`: bias, temperature, softcap, class_weight, ignore_index, reduction, device,
            dtype.

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016 (label smoothing).
        Lin et al., Focal Loss for Dense Object Detection, 2017.
        Menon et al., Long-tail Learning via Logit Adjustment, 2021.

    Example:
        >>> head = Softmax(16, 1000)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 3, 999])
        >>> loss = head(hidden, target)
        >>> torch.allclose(loss, -head.log_prob(hidden)[range(4), target].mean(), atol=1e-5)
        True
    """

    logit_adjustment: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        logit_adjustment: Tensor | None = None,
        z_loss: float = 0.0,
        filter_eps: float | None = None,
        product_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **options)
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self.focal_gamma = check_finite_number("focal_gamma", focal_gamma, at_least=0.0)
        self.z_loss = check_finite_number("z_loss", z_loss, at_least=0.0)
        self.filter_eps = check_filter_eps(filter_eps, self.label_smoothing)
        check_product_dtype(product_dtype)
        self.product_dtype = product_dtype
        _check_adjustment(logit_adjustment, self.num_classes)
        self._register_setting("logit_adjustment", logit_adjustment, self.weight.device)
        self.reset_parameters()

    def _per_class(
        self, num_classes: int, *, logit_adjustment: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        adjustment = self._for_classes("logit_adjustment", logit_adjustment, num_classes)
        _check_adjustment(adjustment, num_classes)
        return {"logit_adjustment": adjustment, **super()._per_class(num_classes, **others)}

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the cross-entropy of hidden (..., d) and target: a scalar or (...), in nats; see `Head`."""
        self.check(hidden, target, sample_weight, target_weight)
        if target.ndim == hidden.ndim:
            return self._soft(hidden, target, sample_weight, target_weight)
        if self.log_temperature is not None:  # whose gradient would have a part in rows that do not count
            hidden = hidden.masked_fill((target == self.ignore_index).unsqueeze(-1), 0.0)
        # The reduced loss of one true class per row has its gradient made in the same pass over the classes.
        return linear_cross_entropy(
            self.divide(hidden),
            self.weight,
            target,
            linear_bias=self.exact_bias(),
            weight=self.class_weight,
            logit_adjustment=self.logit_adjustment,
            sample_weight=sample_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            focal_gamma=self.focal_gamma,
            link=self.link,
            filter_eps=self.filter_eps,
            product_dtype=self.product_dtype,
        )

    def _soft(
        self, hidden: Tensor, target: Tensor, sample_weight: Tensor | None, target_weight: Tensor | None
    ) -> Tensor:
        """The loss of several true classes or of probabilities: every row is scored once."""
        if target.is_floating_point():
            classes, share = None, target
        else:
            classes, _, share = shares(hidden, target, self.ignore_index, target_weight)
        ignored = no_share(share)
        if sample_weight is not None:
            ignored = ignored | (sample_weight == 0)
        if classes is not None:
            share = share.to(
                torch.promote_types(hidden.dtype, torch.promote_types(self.weight.dtype, torch.float32))
            )
        rows = CountedRows(~ignored)
        found = linear_soft_cross_entropy(
            self.divide(rows.of(hidden)),
            self.weight,
            rows.of(share),
            None if classes is None else rows.of(classes),
            linear_bias=self.exact_bias(),
            weight=self.class_weight,
            logit_adjustment=self.logit_adjustment,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            focal_gamma=self.focal_gamma,
            link=self.link,
        )
        loss = rows.in_their_places(found)
        mass = None
        if self.class_weight is not None:
            weight = self.class_weight.to(loss.dtype)
            if classes is None:
                mass = mean_class_weight(share, weight)
            else:
                mass = mean_weight(share * weight[classes], share)
        return reduce_rows(loss, reduction=self.reduction, weight=sample_weight, mass=mass, ignored=ignored)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does, and what its loss has beside the cross-entropy."""
        named = {name: getattr(self, name) for name in ("label_smoothing", "focal_gamma", "z_loss", "filter_eps")}
        said = "".join(f", {name}={value:g}" for name, value in named.items() if value)
        if self.product_dtype is not None:
            said += f", product_dtype={self.product_dtype}"
        return super().extra_repr() + said + (", logit_adjustment" if self.logit_adjustment is not None else "")


def _check_adjustment(logit_adjustment: Tensor | None, num_classes: int) -> None:
    check_per_class("logit_adjustment", logit_adjustment, num_classes)
    if logit_adjustment is not None and not logit_adjustment.is_meta:
        check_finite("logit_adjustment", logit_adjustment)
