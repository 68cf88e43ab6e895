"""What fused functions compute, in torch's operators: differentiable as often as one likes, and of full size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.arithmetic import without_autocast
from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.partition import RowStatistics


def statistics(scorer: LinearScorer) -> RowStatistics:
    """Return the statistics of every row of a scorer; exact, whatever it leaves out or rounds in its gradients."""
    with without_autocast(scorer.hidden.device):
        hidden, bias = scorer.hidden.to(scorer.dtype), scorer.bias
        bias = None if bias is None else bias.to(scorer.dtype)
        scores = functional.linear(hidden, scorer.weight.to(scorer.dtype), bias) / scorer.temperature
        logits = scores if scorer.link is None else scorer.link(scores)
        if scorer.offset is not None:
            logits = logits + scorer.offset.to(scorer.dtype)
        log_prob, target = logits.log_softmax(-1), scorer.target.unsqueeze(-1)
        of_target, target_logit = log_prob.gather(-1, target).squeeze(-1), logits.gather(-1, target).squeeze(-1)
        weighted = torch.zeros_like(of_target)
        if scorer.class_weight is not None:
            weighted = log_prob @ scorer.class_weight.to(scorer.dtype)
        return RowStatistics(of_target, target_logit, logits.logsumexp(-1), weighted)


def chosen_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    """Return the logits (N, K) of `ids`, (K,) or (N, K)."""
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    with without_autocast(hidden.device):
        rows, hidden = weight[ids].to(dtype), hidden.to(dtype)
        logits = hidden @ rows.t() if ids.ndim == 1 else (rows @ hidden.unsqueeze(-1)).squeeze(-1)
        return logits if bias is None else logits + bias[ids].to(dtype)
