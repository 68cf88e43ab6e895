"""Noise-contrastive estimation, with what helps a conditional model to normalise itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vastmax.arithmetic import without_autocast
from vastmax.functional import log_partition_estimate, nce_loss
from vastmax.heads.sampled_head import SampledHead, Scores
from vastmax.samplers import Batch, Candidates, HardNegatives, Sampler
from vastmax.scoring.chosen_losses import noise_contrast
from vastmax.validation import check_finite_number, check_per_class, shown


class NCE(SampledHead):
    r"""Noise-contrastive estimation: tell the target from the noise, and learn log-probabilities that need no Z.

    $$\ell = -\log \sigma(u_y - \log m_y) - \sum_j \frac{m_j}{m'_j} \log \sigma(-(u_j - \log m_j)), \qquad
      u_c = s_c - c(h)$$

    with $m_c$ the expected count of class c under the noise, and $m'_c$ under the distribution that the candidates
    come from, which is the noise unless a `proposal` is given. The optimum is $u_c = \log p_c$ for any number of
    candidates. One loss for all rows, the model must make its own Z near $e^{c(h)}$: `log_partition` shows the
    rest, $\log Z - c(h)$. `nll`, `log_prob` and `topk` normalise exactly.

    The bias starts at the noise distribution's log-probabilities, so that Z starts near 1 and the first losses do
    not depend on V.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        log_partition: the log-partition $c(h)$ that the model is given rather than has to learn: a number;
            `"learned"`, one number; `"conditional"`, a linear function of hidden, which takes the largest part
            of NCE's loss against the exact softmax where candidates are few; or a module, hidden (N, d) to
            (N, 1). If omitted, 0 in a head with bias and log V in one without.
        z_loss: weight of a penalty on the square of $\log \hat Z - c(h)$, with $\hat Z$ estimated from the
            candidates.
        proposal: where the candidates come from, if not from the noise: importance-weighted NCE. The weights
            make the expected loss that of candidates from the noise. It must draw all that the noise does.
        **options: those of `SampledHead`; `sampler` is the noise.

    A `log_partition` with parameters adds them to the state dict, under `normaliser`; `nn.Linear` takes it with
    `strict=False`.

    Raises:
        TypeError, ValueError: a `log_partition` or `z_loss` or `proposal` that is not as above; a `sampler` whose q
            depends on the batch together with a `proposal`.

    References:
        Gutmann and Hyvarinen, Noise-contrastive estimation, 2010.
        Mnih and Teh, A fast and simple algorithm for training neural probabilistic language models, 2012.

    Example:
        >>> from vastmax.samplers import Unigram
        >>> head = NCE(16, 4, sampler=Unigram([40, 30, 20, 10], power=1.0), num_samples=2)
        >>> head.bias.exp()
        tensor([0.4000, 0.3000, 0.2000, 0.1000], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        log_partition: float | str | nn.Module | None = None,
        z_loss: float = 0.0,
        proposal: Sampler | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **options)
        self.z_loss = check_finite_number("z_loss", z_loss, at_least=0.0)
        self.proposal = None if proposal is None else self._check_proposal(proposal, self.sampler)
        self.normaliser = self._build_normaliser(log_partition)
        self._start_normalised()

    def _per_class(self, num_classes: int, *, proposal: Sampler | None = None, **others: Any) -> dict[str, Any]:
        settings = super()._per_class(num_classes, **others)
        if self.proposal is not None:
            proposal = self._for_number("proposal", self.proposal, proposal, num_classes)
        settings["proposal"] = None if proposal is None else self._check_proposal(proposal, settings["sampler"])
        return settings

    def _check_proposal(self, proposal: Sampler, noise: Sampler) -> Sampler:
        proposal = self._on_device("proposal", proposal, noise.num_classes)
        if noise.conditional or noise.unique:
            raise ValueError(
                "sampler: expected, beside a proposal, independent draws from a q that does not depend on the "
                f"batch, got {shown(noise)}"
            )
        if isinstance(proposal, HardNegatives):
            raise ValueError(
                "proposal: expected one whose expected counts are those of its candidates, got HardNegatives"
            )
        if not proposal.conditional and not self.weight.is_meta:
            classes = torch.arange(noise.num_classes, device=self.weight.device)
            never = proposal.log_prob(classes).isneginf() & noise.log_prob(classes).isfinite()
            if never.any():
                raise ValueError(
                    f"proposal: expected one that can draw every class of the noise, got {shown(proposal)}, which "
                    f"never draws {int(never.nonzero()[0])}"
                )
        return proposal

    def _build_normaliser(self, log_partition: float | str | nn.Module | None) -> nn.Module:
        place: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        match log_partition:
            case nn.Module():
                return log_partition
            case None:
                return Constant(0.0 if self.bias is not None else math.log(self.num_classes))
            case "learned":
                return Constant(nn.Parameter(torch.zeros((), **place)))
            case "conditional":
                return Conditional(self.in_features, 1, **place)
            case str():
                expected = "a number, 'learned', 'conditional' or a module"
                raise ValueError(f"log_partition: expected {expected}, got {shown(log_partition)}")
        return Constant(check_finite_number("log_partition", log_partition))

    def reset_parameters(self) -> None:
        """Draw the weight as `nn.Linear` does, and start at the noise, with a Z of 1."""
        super().reset_parameters()
        if "normaliser" in self._modules:  # not yet, where the constructor of all sampled heads calls this
            self._start_normalised()

    def _start_normalised(self) -> None:
        if isinstance(self.normaliser, Constant | Conditional):
            self.normaliser.reset_parameters()
        if self.bias is None or self.bias.is_meta or self.sampler.conditional:
            return
        log_prob = self.sampler.log_prob(self.every_class())
        drawable = log_prob.isfinite()
        # A class that is never drawn has no part in Z, and its bias only has to be finite: that of the rarest.
        self.start_at(log_prob.where(drawable, log_prob[drawable].min()))

    def start_at(self, log_prob: Tensor) -> None:
        """Set the bias so that, where hidden is 0, the classes have these log-probabilities, and Z is 1."""
        check_per_class("log_prob", log_prob, self.num_classes)
        with torch.no_grad():
            given = self._given_log_partition(self.weight.new_zeros(1, self.in_features)).item()
        super().start_at(log_prob + given)

    def log_partition(self, hidden: Tensor) -> Tensor:
        r"""Return $\log Z - c(h)$ of each row (...): what the model falls short of normalising itself by."""
        rows = hidden.reshape(-1, self.in_features)
        return super().log_partition(hidden) - self._given_log_partition(rows).view(hidden.shape[:-1])

    def _given_log_partition(self, hidden: Tensor) -> Tensor:
        """The log-partition (N,) that the model is given."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with without_autocast(hidden.device):
            if isinstance(self.normaliser, nn.Linear):  # in the dtype of the losses, whatever its own
                weight, bias = self.normaliser.weight.to(dtype), self.normaliser.bias.to(dtype)
                given = nn.functional.linear(hidden.to(dtype), weight, bias)
            else:
                given = self.normaliser(hidden)
        if given.shape != (hidden.shape[0], 1):
            raise ValueError(
                f"log_partition: expected a module that returns shape {(len(hidden), 1)}, got {tuple(given.shape)}"
            )
        return given.squeeze(-1)

    def _check_several(self, sampler: Sampler, target: Tensor) -> None:
        super()._check_several(sampler if self.proposal is None else self.proposal, target)

    def _samplers(self) -> list[Sampler]:
        return super()._samplers() + ([] if self.proposal is None else [self.proposal])

    def _drawn_from(self, noise: Sampler, batch: Batch) -> Sampler:
        return noise if self.proposal is None else self.proposal.given(batch, shared=self.shared)

    def loss_in_one_pass(
        self, hidden: Tensor, target: Tensor, target_log_count: Tensor, candidates: Candidates
    ) -> Tensor | None:
        """Return the binary losses of target and noise, summed per row, where a constant log-partition is given."""
        given = self.normaliser.value if isinstance(self.normaliser, Constant) else None
        if not isinstance(given, float) or self.z_loss > 0 or self.proposal is not None:
            return None
        return noise_contrast(
            hidden,
            self.weight,
            self.bias,
            target,
            candidates.ids,
            target_log_count + given,
            candidates.log_expected_count + given,
            scale=1 / self._temperature,
            sparse=self.sparse,
        )

    def loss(self, scores: Scores) -> Tensor:
        """Return the binary losses of target and noise, summed per row."""
        given = self._given_log_partition(scores.hidden)
        target_logit = scores.target_logit - given
        sampled_logit = scores.sampled_logit - given.unsqueeze(-1)
        drawn_log_count = scores.candidates.log_expected_count
        noise_log_count, log_weight = drawn_log_count, None
        if self.proposal is not None:
            noise_log_count = self.log_expected_count(scores.candidates.ids)
            idle = scores.candidates.padding | noise_log_count.isneginf()  # what the noise never draws counts 0
            noise_log_count = noise_log_count.masked_fill(idle, math.inf)
            log_weight = (noise_log_count - drawn_log_count).masked_fill(idle, 0.0)
        loss = nce_loss(
            target_logit,
            sampled_logit,
            scores.target_log_count,
            noise_log_count,
            sampled_log_weight=log_weight,
            reduction="none",
        )
        if self.z_loss > 0:
            log_z = log_partition_estimate(sampled_logit, drawn_log_count)
            loss = loss + self.z_loss * log_z.masked_fill(log_z.isneginf(), 0.0).square()
        return loss

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"{super().extra_repr()}, z_loss={self.z_loss:g}"


class Conditional(nn.Linear):
    """A linear function of hidden that starts at 0."""

    def reset_parameters(self) -> None:
        """Set weight and bias to 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Constant(nn.Module):
    """The same log-partition for every row: fixed, or a parameter to learn."""

    def __init__(self, value: float | nn.Parameter) -> None:
        super().__init__()
        self.value = value

    def reset_parameters(self) -> None:
        """Set a value that is to be learned to 0."""
        if isinstance(self.value, Tensor):
            nn.init.zeros_(self.value)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value for each row of hidden (N, d): (N, 1)."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        if isinstance(self.value, Tensor):
            return self.value.to(dtype).expand(hidden.shape[0], 1)
        return torch.full((hidden.shape[0], 1), self.value, dtype=dtype, device=hidden.device)

    def extra_repr(self) -> str:
        """Say what the value is, or that it is learned."""
        return "learned" if isinstance(self.value, Tensor) else f"{self.value:g}"
