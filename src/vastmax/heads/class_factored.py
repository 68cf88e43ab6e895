"""The class-factored softmax: first the group of a class, then the class within its group."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from vastmax import checking
from vastmax.checking import at_hand, require
from vastmax.differentiation import constant, outside_transforms
from vastmax.functional import nce_loss, sampled_softmax_loss
from vastmax.heads.base import Head, Table
from vastmax.heads.clusters import Clusters
from vastmax.heads.grouped_cross_entropy import classes_beside, grouped_cross_entropy
from vastmax.heads.running_topk import RunningTopK, topk_in_blocks
from vastmax.heads.targets import unmasked
from vastmax.recomputation import remembered
from vastmax.scoring import chosen_logits, linear_cross_entropy, linear_logits, linear_topk
from vastmax.scoring.catching_up import catch_up
from vastmax.scoring.top import TopK
from vastmax.validation import check_choice, check_finite, check_per_class, check_positive_int


class ClassFactoredSoftmax(Head):
    r"""The softmax over groups of classes, times the softmax over the classes of a group: local normalisation.

    $$\log p(c) = \log \frac{e^{u_{g(c)}}}{\sum_{g} e^{u_g}} + \log \frac{e^{s_c}}{\sum_{j \in g(c)} e^{s_j}},
      \qquad u_g = h \cdot v_g + a_g, \quad s_c = h \cdot w_c + b_c$$

    With about sqrt(V) groups of about sqrt(V) classes a row costs O(sqrt V). The second factor can instead be
    trained on candidates drawn within the target's group, from $q(c \mid g)$: the logits of target and candidates
    are corrected by $\log(k\, q(c \mid g))$, so that the optimum is the same. `nll`, `log_prob` and `topk` are
    exact whatever the loss is.

    A class is masked by its own bias or its group's. A group all of whose classes are masked is refused, unless it
    is masked itself by a `group_bias` of -inf.

    An exact step has a gradient in every class of the groups that its targets are in: with as many rows as groups
    that is most of the classes, and a sampled one is the cheaper.

    Args:
        in_features: d, the size of a hidden row.
        clusters: (V,) group of each class, 0 to G - 1, none of them empty: see `frequency_clusters` and
            `sqrt_clusters` of `vastmax.heads.clusters`. No part of the state dict.
        bias: whether classes and groups have biases.
        within: the loss within a group: `"exact"`; `"sampled"`, the softmax over the target and candidates; or
            `"nce"`, noise-contrastive estimation, whose classes' biases start at $\log q(c \mid g)$ so that each
            group starts normalised.
        num_samples: k, candidates of each row.
        counts: (V,) counts greater than 0 that $q(c \mid g)$ is proportional to; uniform in each group if omitted.
        sparse: give the weight and bias of the classes sparse gradients: rows of the groups that have targets, or
            of targets and candidates. Clip these by `vastmax.optim.clip_grad_norm_`: that of torch fails on them.
        class_weight: (V,) weight of each class in the training loss; 1 if None. The mean divides by the weights.
        ignore_index: rows with this target take no part in the loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters and tables are.
        dtype: of the parameters.

    Raises:
        TypeError: clusters that are not integers.
        ValueError: an empty group; a `within` that is none of these; `"nce"` without bias, whose model could not
            normalise itself.

    References:
        Goodman, Classes for Fast Maximum Entropy Training, 2001.
        Mikolov, Kombrink, Burget, Cernocky and Khudanpur, Extensions of Recurrent Neural Network Language
        Model, 2011.

    Example:
        >>> head = ClassFactoredSoftmax(16, torch.arange(1000) // 32, sparse=True)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 300, 999])
        >>> loss = head(hidden, target)
        >>> torch.allclose(loss, -head.log_prob(hidden)[range(4), target].mean(), atol=1e-5)
        True
        >>> loss.backward()
        >>> head.weight.grad.coalesce().indices().shape  # classes 0-31, 288-319 and 992-999
        torch.Size([1, 72])
    """

    bias: nn.Parameter | None
    group_bias: nn.Parameter | None
    trains_on_every_row = False

    def __init__(
        self,
        in_features: int,
        clusters: Tensor | ArrayLike,
        *,
        bias: bool = True,
        within: str = "exact",
        num_samples: int = 128,
        counts: Tensor | ArrayLike | None = None,
        sparse: bool = False,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        tables = Clusters(clusters, counts)
        super().__init__(
            in_features,
            tables.num_classes,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            device=device,
        )
        self.within = check_choice("within", within, ("exact", "sampled", "nce"))
        self.takes_probabilities = within == "exact"
        if within == "nce" and not bias:
            raise ValueError("bias: expected True with within='nce', whose classes are to normalise themselves")
        self.num_samples = check_positive_int("num_samples", num_samples)
        self.sparse = sparse
        self.num_groups = tables.num_groups
        empty = functools.partial(torch.empty, device=device, dtype=dtype)
        self.weight = nn.Parameter(empty(self.num_classes, self.in_features))
        self.register_parameter("bias", nn.Parameter(empty(self.num_classes)) if bias else None)
        self.group_weight = nn.Parameter(empty(self.num_groups, self.in_features))
        self.register_parameter("group_bias", nn.Parameter(empty(self.num_groups)) if bias else None)
        self.clusters = tables if self.weight.is_meta else tables.to(self.weight.device)
        self.reset_parameters()

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can take the training loss into its graph: with dense gradients."""
        return not self.sparse

    def _tables(self) -> Iterator[Table]:
        yield "weight", self.weight, self.num_classes, self.in_features
        yield "bias", self.bias, self.num_classes
        yield "group_weight", self.group_weight, self.num_groups, self.in_features
        yield "group_bias", self.group_bias, self.num_groups

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters as `nn.Linear` does; with `within="nce"` start the classes' bias at the noise."""
        bound = 1 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        if self.within == "nce" and self.bias is not None:
            every_class = torch.arange(self.num_classes, device=self.clusters.group.device)
            self.bias.copy_(self.clusters.log_expected_count(every_class, 1))

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        target_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the training loss of hidden (..., d) and target: a scalar or (...), in nats; see `Head`.

        Args:
            hidden: (..., d).
            target: (...) or (..., T) int64 class ids or `ignore_index`, or, with `within="exact"`, (..., V)
                probabilities.
            sample_weight: (...) weight per row; the mean divides by their sum.
            target_weight: (..., T) share of the row of each of several true classes; equal ones if omitted.
            generator: source of the draws, on the head's device; torch's global one if omitted.
        """
        self.check(hidden, target, sample_weight, target_weight)
        row_loss = functools.partial(self._row_loss, generator=generator)
        return self._train(
            lambda rows: row_loss(rows.hidden, rows.target), hidden, target, sample_weight, target_weight
        )

    def _row_loss(self, hidden: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.within == "exact":
            return self._row_nll(hidden, target)
        hidden = self._wide(hidden)
        return self._group_nll(hidden, target) + self._sampled_within(hidden, target, generator)

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        self._empty_groups()
        hidden = self._wide(hidden)
        return self._group_nll(hidden, target) + self._exact_within(hidden, target)

    def _possible(self, classes: Tensor) -> Tensor | None:
        inside, group = unmasked(self.bias, classes), unmasked(self.group_bias, self.clusters.group[classes])
        return None if inside is None or group is None else inside & group

    def _group_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        group = self.clusters.group[target]
        return linear_cross_entropy(hidden, self.group_weight, group, linear_bias=self.group_bias, reduction="none")

    def _exact_within(self, hidden: Tensor, target: Tensor) -> Tensor:
        catch_up((self.weight, self.bias), lambda: classes_beside(constant("target", target), self.clusters))
        return grouped_cross_entropy(hidden, self.weight, self.bias, target, self.clusters, sparse=self.sparse)

    @remembered
    def _sampled_within(self, hidden: Tensor, target: Tensor, generator: torch.Generator | None) -> Tensor:
        with outside_transforms():
            candidates = self.clusters.sample(constant("target", target), self.num_samples, generator)
        read = (constant("target", target), candidates.ids.reshape(-1))
        catch_up((self.weight, self.bias), lambda: torch.cat(read))
        target_logit, sampled_logit = chosen_logits(
            hidden,
            self.weight,
            target.unsqueeze(-1),
            candidates.ids,
            linear_bias=self.bias,
            sparse=self.sparse,
        )
        loss = nce_loss if self.within == "nce" else sampled_softmax_loss
        return loss(
            target_logit.squeeze(-1),
            sampled_logit,
            self.clusters.log_expected_count(target, self.num_samples),
            candidates.log_expected_count,
            reduction="none",
        )

    def _wide(self, hidden: Tensor) -> Tensor:
        """Hidden in the dtype of the arithmetic, so that the gradients of both factors are summed in it too."""
        widest = torch.promote_types(hidden.dtype, self.weight.dtype)
        return hidden.to(torch.promote_types(widest, torch.float32))

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats, in at least float32."""
        self.check(hidden)
        group, empty = self.clusters.group, self._empty_groups()
        logits = linear_logits(hidden, self.weight, linear_bias=self.bias)
        log_group = linear_logits(hidden, self.group_weight, linear_bias=self.group_bias).log_softmax(-1)
        highest = torch.full_like(log_group, -torch.inf)
        highest.scatter_reduce_(-1, group.expand(logits.shape), logits.detach(), "amax")
        highest = highest.masked_fill(empty, 0.0)
        logits = logits - highest.index_select(-1, group)
        mass = torch.zeros_like(log_group).index_add(-1, group, logits.exp())
        log_partition = mass.masked_fill(empty, 1.0).log()
        return logits + (log_group - log_partition).index_select(-1, group)

    @torch.no_grad()
    def _empty_groups(self) -> Tensor:
        """Return which groups all of whose classes are masked: (G,) bool.

        Raises:
            ValueError: one that is not masked itself, whose probability no class would have.
        """
        empty = torch.zeros(self.num_groups, dtype=torch.bool, device=self.weight.device)
        bias, group_bias = self.bias, self.group_bias
        if bias is None or group_bias is None or (at_hand(bias) and not bias.min().isneginf()):
            return empty  # as nearly always, after one look at each bias
        best = group_bias.new_full((self.num_groups,), -torch.inf)
        empty = best.scatter_reduce(0, self.clusters.group, bias, "amax").isneginf()
        astray = empty & ~group_bias.isneginf()
        expected = "bias: expected a class that is not masked in every group, or its group_bias masked too"

        def error() -> ValueError:
            group = int(astray.nonzero()[0])
            seen = f"got -inf for every class of group {group}, whose group_bias is {group_bias[group].item():g}"
            return ValueError(f"{expected}, {seen}")

        if not checking.are_off():
            require(~astray.any(), expected, error)
        return empty

    @torch.no_grad()
    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, without an N x V tensor.

        A group is scored for the rows only in which its own probability exceeds that of the k-th best class found
        so far: first the best group of each row, then the others.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """
        self.check(hidden)
        self._empty_groups()
        hidden = self._wide(hidden)
        return topk_in_blocks(self._topk, hidden, k, num_classes=self.num_classes, width=self.num_groups)

    def _topk(self, hidden: Tensor, k: int) -> TopK:
        log_group = linear_logits(hidden, self.group_weight, linear_bias=self.group_bias).log_softmax(-1)
        found = RunningTopK(len(hidden), k, like=log_group)

        def visit(group: int, rows: Tensor) -> None:
            members = self.clusters.members(group)
            bias = None if self.bias is None else self.bias[members]
            size = len(self.clusters.member_ids(group))
            values, place = linear_topk(hidden[rows], self.weight[members], min(k, size), linear_bias=bias)
            values = values + log_group[rows, group, None]
            found.offer(rows, TopK(values, self.clusters.member_ids(group)[place]))

        if len(hidden) > 0:
            best = log_group.argmax(-1)
            for group in best.unique().tolist():
                visit(group, (best == group).nonzero().squeeze(-1))
            bound = log_group.scatter(-1, best.unsqueeze(-1), -torch.inf)
            for group in bound.amax(0).argsort(descending=True).tolist():
                rows = found.contested(bound[:, group])
                if len(rows) > 0:
                    visit(group, rows)
        return found.best()

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return zeros (...): both softmaxes normalise themselves, whatever the loss within a group was."""
        self.check(hidden)
        return (self._wide(hidden) * 0.0).sum(-1)

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        r"""Set the biases so that, where hidden . weight is 0, the classes have these log-probabilities.

        A group's is $\log p(g)$, a class's $\log p(c \mid g)$.

        Args:
            log_prob: (V,) finite, in nats.

        Raises:
            ValueError: a head without bias, or a `log_prob` of another shape or not finite.
        """
        if self.bias is None or self.group_bias is None:
            raise ValueError("start_at: expected a head with bias=True, got one with bias=False")
        check_per_class("log_prob", log_prob, self.num_classes)
        check_finite("log_prob", log_prob)
        group = self.clusters.group
        highest = log_prob.new_full((self.num_groups,), -torch.inf).scatter_reduce_(0, group, log_prob, "amax")
        mass = torch.zeros_like(highest).index_add(0, group, (log_prob - highest[group]).exp())
        log_group = highest + mass.log()
        self.group_bias.copy_(log_group)
        self.bias.copy_(log_prob - log_group[group])

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        samples = "" if self.within == "exact" else f", num_samples={self.num_samples}"
        options = f"bias={self.bias is not None}, within={self.within!r}{samples}, sparse={self.sparse}"
        return f"{super().extra_repr()}, num_groups={self.num_groups}, {options}"
