"""AdamW that, given a sparse gradient, touches only its rows."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from vastmax.optim.row_optimizer import Group, RowOptimizer, State, compute_dtype, in_one_pass
from vastmax.validation import check_finite_number


class LazyAdamW(RowOptimizer):
    r"""AdamW for a whole model: dense gradients as `torch.optim.AdamW`, sparse ones row by row.

    A row $r$ with gradient $g$ at step $t$, last touched at step $s$, is brought up to date and then updated:

    $$m \leftarrow \beta_1^{t-s} m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2^{t-s} v + (1 - \beta_2) g^2,$$

    $$w \leftarrow (1 - \eta\lambda)^{t-s} w
      - \eta\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}.$$

    So the moments of a touched row are those AdamW would hold had its gradient been zero in between, and no
    weight decay is lost; a row touched at every step follows AdamW exactly. What is left out is the movement
    by momentum alone in the steps that did not touch the row. A row that is not touched is neither read nor
    written: the decay it owes is paid at its next touch, with the options of that step, which differ from those
    of the steps missed if a schedule has changed them.

    A parameter may have a dense gradient in one step and a sparse one in the next: a dense one touches all rows.
    The state per element is two numbers, `exp_avg` and `exp_avg_sq`, and per row an int32 `last_step`. State and
    arithmetic of half-precision parameters are float32. A `state_dict` of `torch.optim.AdamW`, unless of its
    variants `amsgrad` and `maximize`, can be loaded.

    Args:
        params: parameters, named parameters, or groups of them with their own options.
        lr: learning rate $\eta$, 0 or greater.
        betas: decay of the two moments, each in [0, 1).
        eps: $\epsilon$, added to the root of the second moment, 0 or greater.
        weight_decay: decoupled weight decay $\lambda$, 0 or greater.

    Raises:
        TypeError: an option is not a number, or a parameter is not real and floating-point.
        ValueError: an option is out of range.

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.

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
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_finite_number(name, group[name], at_least=0)
        if len(group["betas"]) != 2:
            raise ValueError(f"betas: expected two numbers, got {group['betas']!r}")
        for i, beta in enumerate(group["betas"]):
            check_finite_number(f"betas[{i}]", beta, at_least=0, below=1)

    def _new_state(self, param: Tensor, group: Group, *, sparse: bool) -> State:
        return {
            # float64 counts on where float32 would stop, at 2^24 steps, and with it the decay of the rows.
            "step": torch.tensor(0.0, dtype=torch.float64),
            "exp_avg": torch.zeros_like(param, dtype=compute_dtype(param)),
            "exp_avg_sq": torch.zeros_like(param, dtype=compute_dtype(param)),
        }

    def _update_dense(
        self, weights: list[Tensor], grads: list[Tensor], states: list[State], group: Group, *, fused: bool
    ) -> None:
        for weight, state in zip(weights, states, strict=True):
            if "last_step" in state:
                step = int(state["step"].item())
                _catch_up(step - state["last_step"], weight, state["exp_avg"], state["exp_avg_sq"], group)
                state["last_step"].fill_(step + 1)
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        _adamw(weights, grads, exp_avgs, exp_avg_sqs, [state["step"] for state in states], group, fused=fused)

    def _update_rows(self, rows: Tensor, weight: Tensor, grad: Tensor, state: State, group: Group) -> None:
        step = int(state["step"].item())
        if "last_step" not in state:
            num_rows = state["exp_avg"].shape[0]
            state["last_step"] = torch.full((num_rows,), step, dtype=torch.int32, device=weight.device)
        exp_avg = state["exp_avg"].index_select(0, rows)
        exp_avg_sq = state["exp_avg_sq"].index_select(0, rows)
        missed = step - state["last_step"].index_select(0, rows)
        _catch_up(missed, weight, exp_avg, exp_avg_sq, group)
        fused = in_one_pass(weight, grad, exp_avg, exp_avg_sq)
        _adamw([weight], [grad], [exp_avg], [exp_avg_sq], [state["step"]], group, fused=fused)
        state["exp_avg"].index_copy_(0, rows, exp_avg)
        state["exp_avg_sq"].index_copy_(0, rows, exp_avg_sq)
        state["last_step"].index_fill_(0, rows, step + 1)


def _catch_up(missed: Tensor, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, group: Group) -> None:
    """Decay rows (n, ...) in place as AdamW does in `missed` (n,) steps of zero gradient, momentum aside."""
    beta1, beta2 = group["betas"]
    # In float64: 0.999 rounded to float32 and raised to a thousand steps is off in the fifth digit.
    exponent = missed.double().view(-1, *(1,) * (weight.ndim - 1))
    for rows, factor in ((weight, 1 - group["lr"] * group["weight_decay"]), (exp_avg, beta1), (exp_avg_sq, beta2)):
        if factor != 1:
            rows.mul_((factor**exponent).to(rows.dtype))


def _adamw(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    group: Group,
    *,
    fused: bool,
) -> None:
    """Take torch's own AdamW step in place, counting it in `steps`."""
    beta1, beta2 = group["betas"]
    adamw(
        weights,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=fused or None,  # None leaves the choice of kernel to torch
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
