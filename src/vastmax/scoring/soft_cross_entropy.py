"""Cross-entropy of a linear layer's softmax with a distribution over the classes, or with a few shares of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vastmax.compilation import Coded
from vastmax.scoring.focal import focal
from vastmax.scoring.links import Link, check_link
from vastmax.scoring.loss_of_logits import linear_loss
from vastmax.validation import check_finite_number, check_share


def linear_soft_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    share: Tensor,
    classes: Tensor | None = None,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    logit_adjustment: Tensor | None = None,
    link: Link | None = None,
) -> Tensor:
    r"""Return the cross-entropy of each row with a soft target, the rows' logits made a few rows at a time.

    With class weights v, shares t of mass $m = \sum_c t_c$, smoothed $t'_c = (1 - \epsilon) t_c + m \epsilon / V$,

    $$\ell_r = -\sum_c t'_c v_c (1 - p_c)^\gamma \log p_c + \text{z\_loss} \sum_c t_c v_c (\log Z_r)^2 .$$

    The shares need not sum to one: a teacher's best few probabilities are a target as they are.

    Args:
        input: (N, d) hidden rows.
        linear_weight: (V, d) class rows.
        share: (N, T) shares of the classes named in `classes`, or (N, V) of all.
        classes: (N, T) int64 class ids, of which one may be named twice; None if `share` has every class.
        linear_bias: (V,) or None.
        weight: (V,) weight per class.
        label_smoothing: share of the target's mass spread evenly over the classes.
        z_loss: coefficient of the squared log-partition.
        focal_gamma: how much less a class that is probable already counts.
        logit_adjustment: (V,) added to the logits last of all; a setting, without a gradient.
        link: an increasing function from scores to logits, of `vastmax.scoring.links`.

    Returns:
        (N,) losses in nats, at least float32.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, an option out of range.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(1000, 8)
        >>> teacher = torch.randn(4, 1000).softmax(-1).topk(3)
        >>> linear_soft_cross_entropy(hidden, weight, teacher.values, teacher.indices).shape
        torch.Size([4])
    """
    check_link(link)
    label_smoothing = check_share("label_smoothing", label_smoothing)
    z_loss = check_finite_number("z_loss", z_loss, at_least=0.0)
    focal_gamma = check_finite_number("focal_gamma", focal_gamma, at_least=0.0)

    loss = _SoftCrossEntropy(
        label_smoothing,
        z_loss,
        focal_gamma,
        named=classes is not None,
        adjusted=logit_adjustment is not None,
        link=link if link is None else Coded.coded(link),
    )
    adjustment = () if logit_adjustment is None else (logit_adjustment.detach(),)
    return linear_loss(
        loss if link is None or isinstance(link, Coded) else partial(loss.of, link=link),
        input,
        linear_weight,
        linear_bias=linear_bias,
        rows=(share,) if classes is None else (share, classes),
        shared=adjustment if weight is None else (*adjustment, weight),
    )


@dataclass(frozen=True)
class _SoftCrossEntropy(Coded):
    """The loss (n,) of scores (n, V), shares, and, if there are any, classes, adjustments and class weights."""

    label_smoothing: float
    z_loss: float
    focal_gamma: float
    named: bool
    adjusted: bool
    link: str | None

    def __call__(self, scores: Tensor, share: Tensor, *tables: Tensor) -> Tensor:
        return self.of(scores, share, *tables, link=Coded.decoded(self.link))

    def of(self, scores: Tensor, share: Tensor, *tables: Tensor, link: Link | None) -> Tensor:
        """The same with a link that has no name."""
        remaining = list(tables)
        target = share.to(scores.dtype)
        if self.named:
            target = scores.new_zeros(scores.shape).scatter_add(-1, remaining.pop(0), target)
        logits = scores if link is None else link(scores)
        if self.adjusted:
            logits = logits + remaining.pop(0).to(logits.dtype)
        class_weight = remaining.pop(0).to(logits.dtype) if remaining else logits.new_ones(())
        log_z = logits.logsumexp(-1)
        mass = target.sum(-1, keepdim=True)
        smoothing = self.label_smoothing
        weight = class_weight * ((1 - smoothing) * target + smoothing / logits.shape[-1] * mass)
        # A class of no weight counts for nothing, though its log-probability were -inf.
        log_p = logits.log_softmax(-1).masked_fill(weight == 0, 0.0)
        loss = (weight * focal(log_p, self.focal_gamma)).sum(-1)
        return loss + self.z_loss * (target * class_weight).sum(-1) * log_z.square()
