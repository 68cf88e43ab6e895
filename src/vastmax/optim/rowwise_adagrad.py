"""Adagrad with one accumulator per row for sparse gradients."""

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.optimizer import ParamsT

from vastmax import kernels
from vastmax.kernels.reference.row_updates import Runs
from vastmax.optim.row_optimizer import (
    Group,
    RowOptimizer,
    State,
    check_flag,
    compute_dtype,
    step_counter,
    zeros_per_row,
)
from vastmax.validation import check_finite_number


class RowwiseAdagrad(RowOptimizer):
    r"""Adagrad for a whole model: dense gradients as `torch.optim.Adagrad`, sparse ones with one number per row.

    For a row $r$ with gradient $g_r$ of $d$ elements,

    $$G_r \leftarrow G_r + \frac{1}{d} \sum_j g_{rj}^2, \qquad
      w_r \leftarrow w_r - \eta\, \frac{g_r}{\sqrt{G_r} + \epsilon}.$$

    A row that is not touched is neither read nor written. Sharing $G_r$ within the row makes the state of a
    parameter (V, d) V numbers instead of Vd, and leaves the direction of the row's gradient as it is.

    The first gradient of a parameter decides its accumulator `sum` for good: (V, 1) if sparse, (V, d) if dense. A
    dense gradient to a row-wise one then touches every row, and a sparse gradient to an elementwise one updates
    its rows elementwise. For a parameter of one axis, such as a bias, the two are the same. State and arithmetic
    of half-precision parameters are float32.

    Args:
        params: parameters, named parameters, or groups of them with their own options.
        lr: learning rate $\eta$, 0 or greater; a tensor is kept and read at every step.
        eps: $\epsilon$, added to the root of the accumulator, 0 or greater.
        initial_accumulator_value: $G$ before the first step, 0 or greater.
        stochastic_rounding: round new weights of half precision up or down at random, so that the mean is exact.
        generator: of the draws for it; torch's default one if None.

    Raises:
        TypeError: an option is not a number, or a parameter is not real and floating-point.
        ValueError: an option is out of range.

    Source: Duchi, Hazan and Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization*, JMLR 12, 2011; the sharing by rows, Gupta, Bengio and Weston, *Training Highly Multiclass
    Classifiers*, JMLR 15, 2014, in the form of Mudigere et al., *Software-Hardware Co-design for Fast and Scalable
    Training of Deep Learning Recommendation Models*, ISCA 2022.

    Example:
        >>> embedding = torch.nn.Embedding(1000, 8, sparse=True)
        >>> optimizer = RowwiseAdagrad(embedding.parameters(), lr=0.1)
        >>> embedding(torch.tensor([7, 3, 7])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[embedding.weight]["sum"][[3, 7, 9]].flatten()
        tensor([1., 4., 0.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        *,
        stochastic_rounding: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "initial_accumulator_value": initial_accumulator_value,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults, generator)

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "eps", "initial_accumulator_value"):
            check_finite_number(name, group[name], at_least=0)
        check_flag("stochastic_rounding", group["stochastic_rounding"])

    def _new_state(self, param: Tensor, group: Group, *, sparse: bool) -> State:
        total = zeros_per_row(param) if sparse else torch.zeros_like(param, dtype=compute_dtype(param))
        return {"step": step_counter(), "sum": total.fill_(group["initial_accumulator_value"])}

    def _by_row(self, param: Tensor, state: State) -> bool:
        return state["sum"].shape != param.shape

    def _update_dense(
        self, weights: list[Tensor], grads: list[Tensor], states: list[State], group: Group, *, fused: bool
    ) -> None:
        adagrad(
            weights,
            grads,
            [state["sum"] for state in states],
            [state["step"] for state in states],
            fused=fused or None,  # None leaves the choice of kernel to torch
            lr=group["lr"],
            eps=group["eps"],
            weight_decay=0.0,
            lr_decay=0.0,
            maximize=False,
        )

    def _update_rows(
        self,
        weight: Tensor,
        rows: Tensor,
        table: Tensor,
        runs: Runs | None,
        state: State,
        group: Group,
        uniform: Tensor | None,
        step: int,
    ) -> None:
        update = kernels.implementation("adagrad_rows", weight, state["sum"], table)
        update(weight, state["sum"], rows, table, runs, lr=group["lr"], eps=group["eps"], uniform=uniform)
