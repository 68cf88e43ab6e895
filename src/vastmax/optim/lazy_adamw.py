"""AdamW that, given a sparse gradient, touches only its rows."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from vastmax.optim.row_optimizer import Group, RowOptimizer, State, compute_dtype, in_one_pass
from vastmax.validation import check_finite_number


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
    late: what it missed is paid at its next touch, with the learning rate and decay of that step. Left out
    are the change of the bias corrections during the missed steps and the order of decay and movement within
    them. Without the movement only $1 - \beta_1$ of each gradient would reach a row that is touched now and then.
    A row that is not touched is neither read nor written.

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
                _catch_up(step - state["last_step"], step, weight, state["exp_avg"], state["exp_avg_sq"], group)
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
        _catch_up(missed, step, weight, exp_avg, exp_avg_sq, group)
        fused = in_one_pass(weight, grad, exp_avg, exp_avg_sq)
        _adamw([weight], [grad], [exp_avg], [exp_avg_sq], [state["step"]], group, fused=fused)
        state["exp_avg"].index_copy_(0, rows, exp_avg)
        state["exp_avg_sq"].index_copy_(0, rows, exp_avg_sq)
        state["last_step"].index_fill_(0, rows, step + 1)


def _catch_up(missed: Tensor, step: int, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, group: Group) -> None:
    """Make the `missed` (n,) last steps before `step` in place on rows (n, ...), as AdamW with zero gradients."""
    beta1, beta2 = group["betas"]
    # In float64: 0.999 rounded to float32 and raised to a thousand steps is off in the fifth digit.
    steps = missed.double().view(-1, *(1,) * (weight.ndim - 1))
    weight.mul_(((1 - group["lr"] * group["weight_decay"]) ** steps).to(weight.dtype))
    if beta1 > 0:
        first = step - steps + 1
        ratio = beta1 / beta2**0.5 if beta2 > 0 else 0.0
        distance = group["lr"] * _geometric_sum(ratio, steps) / (1 - beta1**first)
        root = exp_avg_sq.div((1 - beta2**first).to(exp_avg_sq.dtype)).sqrt_().add_(group["eps"])
        weight.addcdiv_(exp_avg * distance.to(exp_avg.dtype), root, value=-1)
    exp_avg.mul_((beta1**steps).to(exp_avg.dtype))
    exp_avg_sq.mul_((beta2**steps).to(exp_avg_sq.dtype))


def _geometric_sum(ratio: float, terms: Tensor) -> Tensor:
    """Return ratio + ratio^2 + ... of so many terms."""
    return terms if ratio == 1 else ratio * (1 - ratio**terms) / (1 - ratio)


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
