"""AdamW that, given a sparse gradient, touches only its rows."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from vastmax import kernels
from vastmax.kernels.reference.row_updates import Runs
from vastmax.optim.row_optimizer import (
    Group,
    RowOptimizer,
    State,
    check_flag,
    compute_dtype,
    last_step,
    step_counter,
    zeros_per_row,
)
from vastmax.validation import check_finite_number, shown


class LazyAdamW(RowOptimizer):
    r"""AdamW for a whole model: dense gradients as `torch.optim.AdamW`, sparse ones row by row.

    A row $r$ with gradient $g$ at step $t$, last touched at step $s$, first makes the $n = t - s - 1$ steps that it
    missed, in which its gradient was zero: its moments and weight decay, and its movement by momentum, a sum that
    is geometric because $\sqrt v$ falls by $\sqrt{\beta_2}$ a step,

    $$w \leftarrow (1 - \eta\lambda)^n w
      - \eta\, \frac{m / (1 - \beta_1^{s+1})}{\sqrt{v / (1 - \beta_2^{s+1})} + \epsilon}
      \sum_{j=1}^{n} \rho^j, \quad \rho = \beta_1 / \sqrt{\beta_2}, \qquad
      m \leftarrow \beta_1^n m, \quad v \leftarrow \beta_2^n v.$$

    Then it makes AdamW's step $t$ with $g$. A row touched at every step follows AdamW exactly; another follows it
    late: what it missed is paid at its next touch, or by `catch_up`, with the learning rate and decay of then.
    Left out are the change of the bias corrections during the missed steps and the order of decay and movement
    within them. Without the movement only $1 - \beta_1$ of each gradient would reach a row that is touched now and
    then. A row that is not touched is neither read nor written, and stays behind until it is, or until `catch_up`.

    A parameter may have a dense gradient in one step and a sparse one in the next: a dense one touches all rows.
    The state per element is two numbers, `exp_avg` and `exp_avg_sq`, and per row an int32 `last_step`. Where the
    first gradient of a parameter is sparse, `rowwise_second_moment` makes `exp_avg_sq` one number per row, (V, 1),
    and with $\beta_1 = 0$ there is no `exp_avg`: both together leave two numbers per row. State and arithmetic of
    half-precision parameters are float32. A `state_dict` of `torch.optim.AdamW`, unless of its variants `amsgrad`
    and `maximize`, can be loaded.

    Args:
        params: parameters, named parameters, or groups of them with their own options.
        lr: learning rate $\eta$, 0 or greater; a tensor is kept and read at every step.
        betas: decay of the two moments, each in [0, 1).
        eps: $\epsilon$, added to the root of the second moment, 0 or greater.
        weight_decay: decoupled weight decay $\lambda$, 0 or greater.
        rowwise_second_moment: keep one second moment for a row, of the mean of $g^2$ over it.
        stochastic_rounding: round new weights of half precision up or down at random, so that the mean is exact.
        generator: of the draws for it; torch's default one if None.

    Raises:
        TypeError: an option is not a number, or a parameter is not real and floating-point.
        ValueError: an option is out of range.

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019; the second moment per row is
    that of FBGEMM's partial row-wise Adam.

    Example:
        >>> embedding = torch.nn.Embedding(1000, 8, sparse=True)
        >>> optimizer = LazyAdamW(embedding.parameters(), lr=0.1)
        >>> before = embedding.weight.detach().clone()
        >>> embedding(torch.tensor([7, 3, 7])).sum().backward()
        >>> optimizer.step()
        >>> (embedding.weight != before).any(dim=1).nonzero().flatten()
        tensor([3, 7])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        rowwise_second_moment: bool = False,
        stochastic_rounding: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rowwise_second_moment": rowwise_second_moment,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults, generator)

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_finite_number(name, group[name], at_least=0)
        if len(group["betas"]) != 2:
            raise ValueError(f"betas: expected two numbers, got {shown(group['betas'])}")
        for i, beta in enumerate(group["betas"]):
            check_finite_number(f"betas[{i}]", beta, at_least=0, below=1)
        for name in ("rowwise_second_moment", "stochastic_rounding"):
            check_flag(name, group[name])

    def _new_state(self, param: Tensor, group: Group, *, sparse: bool) -> State:
        zeros = torch.zeros_like(param, dtype=compute_dtype(param))
        state = {"step": step_counter()}
        if not sparse:
            state["exp_avg"] = torch.zeros_like(zeros)
        rowwise = sparse and group["rowwise_second_moment"]
        state["exp_avg_sq"] = zeros_per_row(param) if rowwise else zeros
        return state

    def _by_row(self, param: Tensor, state: State) -> bool:
        return "last_step" in state

    def _update_dense(
        self, weights: list[Tensor], grads: list[Tensor], states: list[State], group: Group, *, fused: bool
    ) -> None:
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused or None,  # None leaves the choice of kernel to torch
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
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
        if group["betas"][0] > 0 and "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(weight, dtype=compute_dtype(weight))
        update = kernels.implementation("adamw_rows", weight, state["exp_avg_sq"], table)
        update(
            weight,
            state.get("exp_avg"),
            state["exp_avg_sq"],
            last_step(state, weight, step),
            rows,
            table,
            runs,
            step=step,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            uniform=uniform,
        )
