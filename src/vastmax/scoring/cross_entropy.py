"""Cross-entropy of a linear layer's softmax, without the N x V logits."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.reduction import REDUCTIONS, CountedRows, check_sample_weight, total_weight
from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.every_class import RowLoss, check_linear, row_statistics, summed_loss
from vastmax.scoring.links import Link, check_link, link_of
from vastmax.scoring.products import check_product_dtype
from vastmax.scoring.soft_cross_entropy import linear_soft_cross_entropy
from vastmax.validation import (
    check_choice,
    check_finite,
    check_finite_number,
    check_per_class,
    check_share,
    check_target,
)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    focal_gamma: float = 0.0,
    logit_adjustment: Tensor | None = None,
    link: Link | None = None,
    block_size: int | None = None,
    filter_eps: float | None = None,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Return `cross_entropy(linear(input), target)` in memory bounded by one block of logits.

    With $s_{rc} = \text{cap}((h_r \cdot w_c + b_c) / T)$, $\log p_{rc} = s_{rc} - \log Z_r$, class weights $v$,
    smoothing $\epsilon$ and $\text{cap}(x) = \text{softcap} \tanh(x / \text{softcap})$, the loss of a row is

    $$\ell_r = (1 - \epsilon)\, v_y f(p_{ry}) + \frac{\epsilon}{V} \sum_c v_c f(p_{rc})
      + \text{z\_loss}\; v_y (\log Z_r)^2, \qquad f(p) = -(1 - p)^\gamma \log p .$$

    It is torch's `cross_entropy` where the two share an option, but for one case: with no row left to count,
    the mean is 0 and not nan. With `reduction="mean"` or `"sum"` the gradient is made during the forward pass,
    in three matrix products; with `"none"` the logits are scored again on the way back. Half-precision inputs are
    multiplied and summed in float32, and the loss is float32.

    Args:
        input: (..., d) hidden rows.
        linear_weight: (V, d) class rows, as in `torch.nn.Linear`.
        target: (...) int64 class ids, or `ignore_index`.
        linear_bias: (V,) or None.
        weight: (V,) weight per class; the mean divides by the sum of the targets' weights.
        sample_weight: (...) weight per row, multiplied with that of the target's class.
        reduction: `"mean"`, `"sum"` or `"none"`.
        ignore_index: rows with this target take no part, whatever their hidden holds; None for no such target.
        label_smoothing: share of the target's mass spread evenly over the classes, in [0, 1].
        temperature: T, greater than 0.
        z_loss: coefficient of the squared log-partition.
        softcap: bound on the size of a logit, greater than 0; None for no bound.
        focal_gamma: $\gamma$, at least 0: how much less a class that is probable already counts (Lin et al., Focal
            Loss for Dense Object Detection, 2017). Beside `label_smoothing` it needs the probability of every
            class twice, so the gradient scores the logits again.
        logit_adjustment: (V,) finite, added to the logits last of all, such as a multiple of the log-prior; a
            setting, without a gradient.
        link: an increasing function from scores to logits, of `vastmax.scoring.links`, in place of `softcap`.
        block_size: classes scored at a time; chosen from the shapes if omitted.
        filter_eps: leave a class out of the gradients of some rows, a block of them, where its probability is
            below this in all of them and it is the target of none. The loss stays exact. Every element of the
            gradient with respect to the logits is off by less than `filter_eps` times what the row's probabilities
            are multiplied by, which is its weight without `focal_gamma` and `z_loss`; hidden's, by no more than
            that times $\sum_c \lVert w_c \rVert$ over the classes left out.
        product_dtype: `torch.bfloat16` to round the factors of every matrix product to it, on a CPU that has such
            products; on another a warning says once that it has none. Sums stay float32. The gradients are then off
            by some 2^-8 of their size. On a processor with AMX float32 products of torch in other threads are
            rounded likewise for the time of the call. Beside `filter_eps` only the gradients of the classes that it
            names are computed so, which then are not left out: the loss stays exact, and the gradients' error is a
            2^-8 of what leaving them out would make it.

    Returns:
        A scalar, or (...) with `reduction="none"`, in nats.

    Raises:
        TypeError: a tensor of the wrong dtype.
        ValueError: shapes that do not fit, a target out of range, NaN or infinite input, an option out of range.

    Example:
        >>> hidden, weight = torch.randn(4, 8), torch.randn(1000, 8)
        >>> target = torch.tensor([1, 2, -100, 999])
        >>> loss = linear_cross_entropy(hidden, weight, target)
        >>> torch.allclose(loss, torch.nn.functional.cross_entropy(hidden @ weight.T, target), atol=1e-5)
        True
    """
    block_size = check_linear(input, linear_weight, linear_bias, block_size)
    check_link(link)
    num_classes = linear_weight.shape[0]
    counted = ~check_target(target, input.shape[:-1], num_classes, ignore_index)
    check_per_class("weight", weight, num_classes)
    check_per_class("logit_adjustment", logit_adjustment, num_classes)
    if logit_adjustment is not None:
        check_finite("logit_adjustment", logit_adjustment)
    check_choice("reduction", reduction, REDUCTIONS)
    temperature = check_finite_number("temperature", temperature, above=0.0)
    z_loss = check_finite_number("z_loss", z_loss, at_least=0.0)
    focal_gamma = check_finite_number("focal_gamma", focal_gamma, at_least=0.0)
    label_smoothing = check_share("label_smoothing", label_smoothing)
    filter_eps = check_filter_eps(filter_eps, label_smoothing)
    check_product_dtype(product_dtype, input.device)
    link = link_of(softcap, link)
    if sample_weight is not None:
        check_sample_weight(sample_weight, target.shape)
    check_finite("input", input, counted)

    picked = CountedRows(counted)
    label = picked.of(target)
    smoothed = None
    if label_smoothing > 0.0:
        smoothed = linear_weight.new_ones(num_classes) if weight is None else weight
    scorer = LinearScorer(
        picked.of(input),
        linear_weight,
        linear_bias,
        label,
        smoothed,
        temperature,
        link,
        None if logit_adjustment is None else logit_adjustment.detach(),
        block_size,
        filter_eps,
        product_dtype,
    )
    target_weight = torch.ones(label.shape, dtype=scorer.dtype, device=label.device)
    if weight is not None:
        target_weight = weight.to(scorer.dtype)[label]
    row_weight = torch.ones_like(target_weight)
    if sample_weight is not None:
        row_weight = picked.of(sample_weight).to(scorer.dtype)
    if picked.blank is not None:
        row_weight = row_weight.masked_fill(picked.blank, 0.0)
    if reduction == "mean":
        row_weight = row_weight / total_weight(target_weight * row_weight)

    if smoothed is not None and focal_gamma > 0:
        # Every class has a focal term of its own: no function of the row's statistics.
        loss = row_weight * linear_soft_cross_entropy(
            scorer.hidden / temperature,
            linear_weight,
            torch.ones_like(target_weight).unsqueeze(-1),
            label.unsqueeze(-1),
            linear_bias=None if linear_bias is None else linear_bias / temperature,
            weight=weight,
            logit_adjustment=logit_adjustment,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            focal_gamma=focal_gamma,
            link=link,
        )
        if reduction == "none":
            return picked.in_their_places(loss)
        return loss.sum()

    row_loss = RowLoss(row_weight, target_weight, num_classes, label_smoothing, z_loss, focal_gamma)
    if reduction == "none":
        loss = row_loss(row_statistics(scorer), slice(None))
        return picked.in_their_places(loss)
    return summed_loss(scorer, row_loss, held=(weight, sample_weight))


def check_filter_eps(filter_eps: float | None, label_smoothing: float) -> float | None:
    """Return `filter_eps` if classes can be left out of the gradient for being less probable than this."""
    if filter_eps is None:
        return None
    filter_eps = check_finite_number("filter_eps", filter_eps, above=0.0, below=1.0)
    if label_smoothing != 0:
        raise ValueError(
            f"filter_eps: expected none beside label_smoothing={label_smoothing}, which gives every class a "
            f"gradient, got {filter_eps}"
        )
    return filter_eps
