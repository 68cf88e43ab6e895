"""SGD with momentum that, given a sparse gradient, touches only its rows."""

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

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
)
from vastmax.validation import check_finite_number


class SGD(RowOptimizer):
    r"""SGD with momentum for a whole model: dense gradients as `torch.optim.SGD`, sparse ones row by row.

    A row with gradient $g$ at step $t$, last touched at step $s$, first makes the $n = t - s - 1$ steps that it
    missed, in which its gradient was zero. Such a step is linear in the weight and its momentum $b$,

    $$b \leftarrow \mu b + \lambda w, \qquad w \leftarrow w - \eta b,$$

    or $w \leftarrow w - \eta (\lambda w + \mu b)$ after Nesterov, so that $n$ of them are the $n$-th power of a
    2 x 2 matrix. Without weight decay that is $w \leftarrow w - \eta\, b \sum_{j=1}^n \mu^j$ and
    $b \leftarrow \mu^n b$. Then the row makes SGD's step with $g$. A row that is touched is exactly where
    `torch.optim.SGD` has it, given zero gradients in between, with weight decay too. The learning rate and options
    of the missed steps are those of the step that pays for them. A row that is not touched is neither read nor
    written, and stays behind until it is, or until `catch_up`.

    Weight decay is coupled, as in `torch.optim.SGD`: $\lambda w$ is part of the gradient and enters the momentum.

    A parameter may have a dense gradient in one step and a sparse one in the next: a dense one touches all rows.
    The state per element is one number, `momentum_buffer`, and per row an int32 `last_step`. Without momentum there
    is no `momentum_buffer`, and without momentum and weight decay no `last_step`. State and arithmetic of
    half-precision parameters are float32. A `state_dict` of `torch.optim.SGD`, unless of its variants `dampening`
    and `maximize`, can be loaded.

    Args:
        params: parameters, named parameters, or groups of them with their own options.
        lr: learning rate $\eta$, 0 or greater; a tensor is kept and read at every step.
        momentum: $\mu$, in [0, 1).
        weight_decay: coupled weight decay $\lambda$, 0 or greater.
        nesterov: step by $g + \mu b$ instead of $b$; needs momentum.
        stochastic_rounding: round new weights of half precision up or down at random, so that the mean is exact.
        generator: of the draws for it; torch's default one if None.

    Raises:
        TypeError: an option is not a number, or a parameter is not real and floating-point.
        ValueError: an option is out of range, or Nesterov's momentum is 0.

    Source: Sutskever, Martens, Dahl and Hinton, *On the importance of initialization and momentum in deep
    learning*, ICML 2013, in the form of `torch.optim.SGD`.

    Example:
        >>> embedding = torch.nn.Embedding(1000, 8, sparse=True)
        >>> optimizer = SGD(embedding.parameters(), lr=0.1, momentum=0.9)
        >>> before = embedding.weight.detach().clone()
        >>> embedding(torch.tensor([7, 3, 7])).sum().backward()
        >>> optimizer.step()
        >>> (before - embedding.weight.detach())[[3, 7, 9], 0]
        tensor([0.1000, 0.2000, 0.0000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        stochastic_rounding: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults, generator)

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "weight_decay"):
            check_finite_number(name, group[name], at_least=0)
        check_finite_number("momentum", group["momentum"], at_least=0, below=1)
        for name in ("nesterov", "stochastic_rounding"):
            check_flag(name, group[name])
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("nesterov: expected a momentum greater than 0 with it, got momentum 0")

    def _new_state(self, param: Tensor, group: Group, *, sparse: bool) -> State:
        return {"step": step_counter()}

    def _state_of(self, param: Tensor, options: Group, *, sparse: bool) -> State:
        state = super()._state_of(param, options, sparse=sparse)
        if options["momentum"] > 0 and "momentum_buffer" not in state:  # which may be switched on at any time
            state["momentum_buffer"] = torch.zeros_like(param, dtype=compute_dtype(param))
        return state

    def _by_row(self, param: Tensor, state: State) -> bool:
        return "last_step" in state

    def _update_dense(
        self, weights: list[Tensor], grads: list[Tensor], states: list[State], group: Group, *, fused: bool
    ) -> None:
        sgd(
            weights,
            grads,
            [state.get("momentum_buffer") if group["momentum"] else None for state in states],
            fused=fused or None,  # None leaves the choice of kernel to torch
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )
        for state in states:
            state["step"] += 1

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
        buffer = state.get("momentum_buffer")
        lazy = buffer is not None or group["weight_decay"] > 0 or "last_step" in state
        update = kernels.implementation("sgd_rows", weight, buffer, table)
        update(
            weight,
            buffer,
            last_step(state, weight, step) if lazy else None,
            rows,
            table,
            runs,
            step=step,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            uniform=uniform,
        )
