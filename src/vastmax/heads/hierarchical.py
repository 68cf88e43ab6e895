"""Hierarchical softmax: a class is a way down a tree, and its probability that of the turns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vastmax.differentiation import constant
from vastmax.heads.base import Head, Table
from vastmax.heads.running_topk import with_the_impossible
from vastmax.scoring import chosen_logits, linear_logits
from vastmax.scoring.catching_up import catch_up
from vastmax.scoring.chosen_losses import logistic_rows
from vastmax.scoring.top import TopK, best_of, topk_by_id
from vastmax.trees import Tree
from vastmax.trees.search import Search, best_first
from vastmax.validation import check_finite, check_k, check_per_class

LOG_PROB_ELEMENTS = 1 << 22
"""Log-probabilities alive at a time where the search gives way to scoring every node."""


class HierarchicalSoftmax(Head):
    r"""A binary decision at each node of a tree: normalised by construction, and O(log V) to train.

    $$p(c \mid h) = \prod_{n \in \text{path}(c)} \sigma(\pm z_n), \qquad z_n = h \cdot w_n + b_n, \qquad
      \ell = -\log p(y \mid h)$$

    with + where the path turns left. A row touches the nodes of its target's path only: the mean of their number
    is least with `trees.huffman(counts)`, and the tree decides what the head can learn easily. The parameters are
    the V - 1 nodes' and not the classes': `weight` (V - 1, d) and `bias` (V - 1,). For V = 1 there is one row,
    never read.

    A bias of -inf closes the turn to the left at its node, one of +inf that to the right: the classes below are
    masked, and the others take the node's mass.

    The state dict holds the tree beside the parameters, which mean nothing without it: loading those of another
    tree is an error, and `Tree(state_dict["_extra_state"])` is the tree of a saved head.

    Args:
        in_features: d, the size of a hidden row.
        tree: of V classes. It moves to the device of the rows at the first call there.
        bias: whether each node has a bias.
        sparse: give the parameters sparse gradients, as `nn.Embedding(sparse=True)` does, for the optimizers of
            `vastmax.optim`; a step then makes nothing of the size of V. Targets that are probabilities reach every
            node: theirs are dense. Clip sparse ones by `vastmax.optim.clip_grad_norm_`: torch's fails on them.
        class_weight: (V,) weight of each class in the training loss; 1 if None. The mean divides by the weights.
        ignore_index: rows with this target take no part in the loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters are.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: an argument that is not as above.

    Source: Morin and Bengio, *Hierarchical probabilistic neural network language model*, AISTATS 2005; with
    Huffman's tree, Mikolov et al., *Distributed representations of words and phrases*, NeurIPS 2013.

    Example:
        >>> from vastmax import trees
        >>> head = HierarchicalSoftmax(16, trees.huffman(range(1000, 0, -1)), sparse=True)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 3, 999])
        >>> loss = head(hidden, target)
        >>> torch.allclose(loss, -head.log_prob(hidden)[range(4), target].mean(), atol=1e-5)
        True
    """

    bias: nn.Parameter | None
    trains_on_every_row = False

    def __init__(
        self,
        in_features: int,
        tree: Tree,
        *,
        bias: bool = True,
        sparse: bool = False,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(tree, Tree):
            raise TypeError(f"tree: expected a vastmax.trees.Tree, got {type(tree).__name__}")
        super().__init__(
            in_features,
            tree.num_classes,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            device=device,
        )
        self.tree = tree
        self.sparse = sparse
        num_rows = max(tree.num_nodes, 1)
        self.weight = nn.Parameter(torch.empty(num_rows, self.in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(num_rows, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def compiles(self) -> bool:
        """Whether `torch.compile` can take the training loss into its graph: with dense gradients."""
        return not self.sparse

    def _tables(self) -> Iterator[Table]:
        num_rows = max(self.tree.num_nodes, 1)
        yield "weight", self.weight, num_rows, self.in_features
        yield "bias", self.bias, num_rows

    def reset_parameters(self) -> None:
        """Draw the weight twice as wide as `nn.Linear` does, and set the bias to 0.

        A node stands for the difference of two rows of a softmax; one epoch of a small language model ends 1.5%
        lower in perplexity than with the width of one.

        Where hidden . weight is 0, a class at depth D then has probability 2^-D: with Huffman's tree, about its
        frequency.
        """
        bound = 2 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def start_at(self, log_prob: Tensor) -> None:
        """Set the bias so that, where hidden . weight is 0, the classes have these log-probabilities.

        Args:
            log_prob: (V,) finite, in nats.

        Raises:
            ValueError: a head without bias, or a `log_prob` of another shape or not finite.
        """
        if self.bias is None:
            raise ValueError("start_at: expected a head with bias=True, got one with bias=False")
        check_per_class("log_prob", log_prob, self.num_classes)
        check_finite("log_prob", log_prob)
        logits = self._tree_on(log_prob.device).node_logits(log_prob.double())
        self.bias[: self.tree.num_nodes] = logits.to(self.bias)

    def _row_nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        nodes, turns, padding = self._tree_on(hidden.device).paths(target)
        catch_up((self.weight, self.bias), lambda: constant("target", nodes))
        share = (~padding).to(self._arithmetic(hidden))
        offset = torch.zeros_like(share)
        return logistic_rows(hidden, self.weight, self.bias, nodes, ~turns, offset, share, sparse=self.sparse)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the exact log-probability of every class: (..., V), in nats, in at least float32."""
        self.check(hidden)
        logits = linear_logits(hidden, self.weight)
        if self.bias is not None:  # of which all may be infinite: every node has a turn left
            logits = logits + self.bias.to(logits.dtype)
        return self._tree_on(hidden.device).log_prob(logits[..., : self.tree.num_nodes])

    def topk(self, hidden: Tensor, k: int) -> TopK:
        """Return the k most probable classes of each row, exactly; see `search`.

        Returns:
            `(values, indices)`, each (..., k): exact log-probabilities, falling, and class ids.
        """
        found = self.search(hidden, k)
        return TopK(found.values, found.indices)

    @torch.no_grad()
    def search(self, hidden: Tensor, k: int) -> Search:
        r"""Find the k most probable classes of each row, scoring no node but those more probable than the k-th.

        Where that would be more than $4 \sqrt V$ nodes, as in a head that knows nothing yet, the row scores all
        V - 1 of them at once, which is then faster.

        Args:
            hidden: (..., d).
            k: classes wanted, at most V.

        Returns:
            `Search(values, indices, visited)`: log-probabilities in nats, falling, and class ids, each (..., k);
            the number of nodes scored (...).

        Raises:
            TypeError: a tensor of the wrong dtype, or k not an integer.
            ValueError: shapes that do not fit, k out of range, NaN or infinite hidden.
        """
        self.check(hidden)
        k = check_k(k, self.num_classes)
        flat = hidden.reshape(-1, self.in_features)

        def node_logit(rows: Tensor, nodes: Tensor) -> Tensor:
            (logits,) = chosen_logits(flat[rows], self.weight, nodes.unsqueeze(-1), linear_bias=self.bias)
            return logits.squeeze(-1)

        found, given_up = best_first(
            self._tree_on(hidden.device),
            node_logit,
            len(flat),
            k,
            max_visited=4 * math.isqrt(self.num_classes),
            dtype=self._arithmetic(hidden),
        )
        for rows in given_up.split(max(1, LOG_PROB_ELEMENTS // self.num_classes)):
            found.values[rows], found.indices[rows] = topk_by_id(self.log_prob(flat[rows]), k)
            found.visited[rows] = self.tree.num_nodes
        values, indices = with_the_impossible(best_of(found.values, found.indices, k))
        answers = (*hidden.shape[:-1], k)
        return Search(values.view(answers), indices.view(answers), found.visited.view(answers[:-1]))

    def log_partition(self, hidden: Tensor) -> Tensor:
        """Return log Z of each row (...): 0, for the probabilities sum to one whatever the parameters are."""
        self.check(hidden)
        return hidden[..., :0].sum(-1, dtype=self._arithmetic(hidden))

    def get_extra_state(self) -> Tensor:
        """Return the tree's children (V - 1, 2), which a state dict holds under `_extra_state`."""
        return self.tree.children

    def set_extra_state(self, state: Tensor) -> None:
        """Raise unless `state` is the tree of this head.

        Raises:
            ValueError: it is another, for which the parameters that came with it are meant.
        """
        children = self.tree.children
        if not isinstance(state, Tensor):
            raise TypeError(f"tree: expected a tensor of children in the state dict, got {type(state).__name__}")
        if not torch.equal(state.to(children), children):
            raise ValueError(
                f"tree: expected the parameters of a head with the same tree, {self.tree!r}; got those of another "
                f'of {len(state) + 1} classes, which is vastmax.trees.Tree(state_dict["..._extra_state"])'
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The tree is compared before any parameter is copied: a refused load changes nothing.
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self.set_extra_state(state)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Describe the head as `nn.Linear` does."""
        return f"{super().extra_repr()}, tree={self.tree!r}, bias={self.bias is not None}, sparse={self.sparse}"

    def _tree_on(self, device: torch.device) -> Tree:
        """Return the tree where the rows are, and keep it there."""
        self.tree = self.tree.to(device)
        return self.tree

    def _arithmetic(self, hidden: Tensor) -> torch.dtype:
        return torch.promote_types(torch.promote_types(hidden.dtype, self.weight.dtype), torch.float32)
