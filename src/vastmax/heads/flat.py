"""Heads with one row of weight per class, as `nn.Linear` has."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vastmax.compilation import Coded
from vastmax.heads.base import Head, Table
from vastmax.heads.resizing import check_optimizer, give_rows, resize_state
from vastmax.heads.targets import unmasked
from vastmax.scoring import linear_cross_entropy, linear_log_partition, linear_logits, linear_topk
from vastmax.scoring.links import Link, SoftCap, link_of
from vastmax.scoring.top import TopK
from vastmax.validation import (
    check_class_weight,
    check_finite,
    check_finite_number,
    check_per_class,
    check_positive_int,
    shown,
)


class FlatHead(Head):
    r"""A head with the parameters of `nn.Linear(in_features, num_classes)`, under the same names.

    $$s_c = \text{cap}\left(\frac{h \cdot w_c + b_c}{T}\right), \qquad
      \text{cap}(x) = \text{softcap} \tanh \frac x {\text{softcap}}$$

    `linear.load_state_dict(head.state_dict())` and the reverse both work, unless the temperature is learned. A
    subclass calls `reset_parameters` at the end of its constructor, when all that a start may depend on is there.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        bias: whether each class has a bias.
        temperature: T, greater than 0; `"learned"`, a parameter `log_temperature` that starts at log 1; or
            `"sqrt_classes"`, the square root of V.
        softcap: bound on the size of a logit, greater than 0, in training and in all that the head tells; no bound,
            $\text{cap}(x) = x$, if None. Not for a head whose logits are another function of the scores.
        class_weight: (V,) weight of each class in the training loss; 1 if None. The mean divides by the weights.
        ignore_index: rows with this target take no part in a loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters are.
        dtype: of the parameters.
    """

    bias: nn.Parameter | None
    log_temperature: nn.Parameter | None
    link: Link | None = None
    """What makes logits of the scores; the scores are the logits if None."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = True,
        temperature: float | str = 1.0,
        softcap: float | None = None,
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
        self.weight = nn.Parameter(torch.empty(self.num_classes, self.in_features, device=device, dtype=dtype))
        empty = torch.empty(self.num_classes, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(empty) if bias else None)
        self._temperature = _temperature(temperature, self.num_classes)
        self._divided_by_sqrt_classes = temperature == "sqrt_classes"
        self.link = self._link(softcap)
        learned = temperature == "learned"
        zero = torch.zeros((), device=device, dtype=dtype)
        self.register_parameter("log_temperature", nn.Parameter(zero) if learned else None)

    def _link(self, softcap: float | None) -> Link | None:
        """What makes logits of the scores of this head, by its kind or by a cap."""
        kind = type(self).link
        if softcap is not None and kind is not None:
            raise ValueError(
                f"softcap: expected None in {type(self).__name__}, whose logits are {kind!r} of its scores, "
                f"got {shown(softcap)}"
            )
        return link_of(softcap, kind)

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the training loss: what a flat head differs from another by; see `Head`."""

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can take the training loss into its graph: with a link that it can name."""
        return self.names_link

    @property
    def names_link(self) -> bool:
        """Whether a graph has a name for what makes logits of the scores."""
        return self.link is None or isinstance(self.link, Coded)

    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        if self.log_temperature is not None:
            nn.init.zeros_(self.log_temperature)

    def _tables(self) -> Iterator[Table]:
        yield "weight", self.weight, self.num_classes, self.in_features
        yield "bias", self.bias, self.num_classes

    @property
    def temperature(self) -> float | Tensor:
        """What the logits are divided by: a number, or a differentiable scalar if it is learned."""
        if self.log_temperature is None:
            return self._temperature
        return self.log_temperature.to(torch.promote_types(self.weight.dtype, torch.float32)).exp()

    def divide(self, scores: Tensor) -> Tensor:
        """Return scores, or hidden rows, divided by the temperature, in at least float32 if that is not 1."""
        if self.log_temperature is None and self._temperature == 1.0:
            return scores
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.log_temperature is None:
            return scores / self.temperature
        # A masked class, of score -inf, has no part in the gradient of the temperature.
        masked = scores.isneginf()
        return (scores.masked_fill(masked, 0.0) / self.temperature).masked_fill(masked, -torch.inf)

    def bend(self, scores: Tensor) -> Tensor:
        """Return the logits of scores that are divided by the temperature."""
        return scores if self.link is None else self.link(scores)

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        """Set the bias so that, where hidden . weight is 0, the classes have these log-probabilities.

        A model that starts at the classes' frequencies need not spend its first thousand steps learning them.

        Args:
            log_prob: (V,) finite, in nats.

        Raises:
            ValueError: a head without bias; a `log_prob` of another shape, not finite, or out of the reach of a
                `softcap`.
        """
        if self.bias is None:
            raise ValueError("start_at: expected a head with bias=True, got one with bias=False")
        check_per_class("log_prob", log_prob, self.num_classes)
        check_finite("log_prob", log_prob)
        offset = self.log_prob_offset()
        if offset is not None:
            # A class whose offset is -inf has probability 0 whatever its bias is.
            log_prob = log_prob - offset.masked_fill(offset.isneginf(), 0.0)
        scores = log_prob if self.link is None else self.link.inverse(log_prob)
        if isinstance(self.link, SoftCap) and not scores.isfinite().all():
            raise ValueError(
                f"log_prob: expected logits of a size below softcap = {self.link.softcap:g}, "
                f"got one of {log_prob.abs().max().item():g}"
            )
        self.bias.copy_(self.temperature * scores)

    @torch.no_grad()
    def resize(self, num_classes: int, optimizer: Optimizer | None = None, **per_class: Any) -> None:
        """Change the number of classes: the first keep their rows, new ones are drawn as `reset_parameters` does.

        The parameters stay the objects they are: a table that is tied to them is resized with them, and an
        optimizer goes on with them. Of their gradients nothing is kept.

        Args:
            num_classes: V from now on.
            optimizer: one that has weight and bias, whose state of them is resized too: kept for the classes that
                stay, and for new ones as of rows that were never updated. It must be given if there is one.
            **per_class: what the head was given of each class, or for their number, anew: `class_weight`, and
                `logit_adjustment`, `sampler` or `proposal` where the head has it. What has a number for each class
                is cut to the first of fewer; uniform samplers are made anew by themselves.

        Raises:
            TypeError: an argument of the wrong type, or one that the head has not.
            ValueError: a number of classes that is not at least 1, an optimizer of other parameters, or something
                of each class that is missing or does not fit.
            RuntimeError: a loss from before is kept, whose graph would hold the parameters to their former shape.

        Example:
            >>> from vastmax.heads import Softmax
            >>> head = Softmax(8, 1000)
            >>> optimizer = torch.optim.AdamW(head.parameters())
            >>> before = head.weight[999].detach().clone()
            >>> head.resize(1200, optimizer)
            >>> head.weight.shape, torch.equal(head.weight[999], before)
            (torch.Size([1200, 8]), True)
        """
        num_classes = check_positive_int("num_classes", num_classes)
        settings = self._per_class(num_classes, **per_class)
        tables = [table for table in (self.weight, self.bias) if table is not None]
        if optimizer is not None:
            check_optimizer(optimizer, tables)
        others = [x for x in self.parameters() if all(x is not table for table in tables)]
        values, former = [x.clone() for x in others], give_rows(tables, num_classes)
        self.num_classes = num_classes
        for name, value in settings.items():
            setattr(self, name, value)
        if self._divided_by_sqrt_classes:
            self._temperature = math.sqrt(num_classes)
        self.reset_parameters()
        for parameter, value in zip(others, values, strict=True):
            parameter.copy_(value)
        for table, rows in zip(tables, former, strict=True):
            kept = min(len(rows), num_classes)
            table[:kept] = rows[:kept]
            if optimizer is not None:
                resize_state(optimizer, table, len(rows))

    def _per_class(self, num_classes: int, *, class_weight: Tensor | None = None) -> dict[str, Any]:
        """Return what the head keeps of each class, or for their number, for another number of classes."""
        setting = self._for_classes("class_weight", class_weight, num_classes)
        return {"class_weight": check_class_weight("class_weight", setting, num_classes)}

    def _for_classes(self, name: str, given: Tensor | None, num_classes: int) -> Tensor | None:
        """Return a setting of each class for another number of them: what is given, or the first of the present."""
        present: Tensor | None = getattr(self, name)
        if given is None and present is not None:
            if num_classes > self.num_classes:
                raise ValueError(
                    f"{name}: expected one number for each of {num_classes} classes, as there is one for each of "
                    f"{self.num_classes}, got None"
                )
            given = present[:num_classes]
        return None if given is None else given.detach().to(self.weight.device, copy=True)

    def log_prob_offset(self) -> Tensor | None:
        """What to add to each class's logit to make it a log-probability up to a constant of the row: (V,)."""
        return None

    def exact_bias(self) -> Tensor | None:
        """The bias of the linear layer of `divide(hidden)` whose softmax is this head's distribution."""
        bias = None if self.bias is None else self.divide(self.bias)
        offset = self.log_prob_offset()
        if offset is None:
            return bias
        offset = offset.to(torch.promote_types(self.weight.dtype, torch.float32))
        return offset if bias is None else bias + offset

    def _possible(self, classes: Tensor) -> Tensor | None:
        return unmasked(self.bias, classes)

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(
            self.divide(hidden),
            self.weight,
            target,
            linear_bias=self.exact_bias(),
            link=self.link,
            reduction="none",
        )

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats, in at least float32."""
        self.check(hidden)
        scores = linear_logits(self.divide(hidden), self.weight, linear_bias=self.exact_bias())
        return self.bend(scores).log_softmax(-1)

    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """
        self.check(hidden)
        return linear_topk(self.divide(hidden), self.weight, k, linear_bias=self.exact_bias(), link=self.link)

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return log Z of each row (...): what the head's log-probabilities fall short of normalisation by."""
        self.check(hidden)
        bias = self.exact_bias()
        hidden = self.divide(hidden)
        return linear_log_partition(hidden, self.weight, linear_bias=bias, link=self.link).log_partition

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        learned = "'learned'" if self.log_temperature is not None else f"{self._temperature:g}"
        temperature = "" if learned == "1" else f", temperature={learned}"
        cap = f", softcap={self.link.softcap:g}" if isinstance(self.link, SoftCap) else ""
        return f"{super().extra_repr()}, bias={self.bias is not None}{temperature}{cap}"


def _temperature(temperature: object, num_classes: int) -> float:
    match temperature:
        case "learned":
            return 1.0
        case "sqrt_classes":
            return math.sqrt(num_classes)
        case str():
            raise ValueError(
                f"temperature: expected a number, 'learned' or 'sqrt_classes', got {shown(temperature)}"
            )
    return check_finite_number("temperature", temperature, above=0.0)
