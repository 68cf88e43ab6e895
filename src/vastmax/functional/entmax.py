r"""From the hard to the soft: mappings of logits to probabilities of which most are exactly 0.

Written with the logarithm and exponential that Tsallis deformed, and $a = \alpha - 1$:

$$\log_\alpha p = \frac{p^a - 1}{a}, \qquad \exp_\alpha z = [1 + a z]_+^{1/a},$$

which are log and exp at $\alpha = 1$.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from vastmax.compilation import operator, uncompiled
from vastmax.differentiation import along, check_not_batched, takes_operators
from vastmax.functional.precision import at_least_float32
from vastmax.functional.softmax import check_logits, log_softmax, softmax
from vastmax.kernels import implementation, reference
from vastmax.scoring.top import topk_by_id
from vastmax.validation import check_all, check_finite_number, check_k


def topk_softmax(logits: Tensor, k: int, dim: int = -1) -> Tensor:
    r"""Return the softmax of the k largest logits of each row, and 0 for the rest.

    $$p_c = \frac{e^{s_c} [c \in T]}{\sum_{j \in T} e^{s_j}}, \qquad T = \text{the } k \text{ largest of } s$$

    `k = 1` is `hardmax`, and k = V `softmax`. Of equal logits at the edge those of the lowest ids are taken.

    Args:
        logits: (..., V), floating; -inf masks a class.
        k: classes that share the probability, at most V.
        dim: the class axis.

    Returns:
        Probabilities in the shape and dtype of `logits`; computed in at least float32.

    Raises:
        TypeError: logits that are not floating, or k not an integer.
        ValueError: k or the axis out of range, a row that holds NaN or +inf, or in which every class is masked.

    Example:
        >>> topk_softmax(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2)
        tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    check_logits(logits, dim)
    k = check_k(k, logits.shape[dim])
    values, indices = topk_by_id(at_least_float32(logits).movedim(dim, -1), k)
    found = functional.softmax(values, -1).movedim(-1, dim)
    indices = indices.movedim(-1, dim)
    return torch.zeros_like(logits, dtype=found.dtype).scatter(dim, indices, found).to(logits.dtype)


def sparsemax(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the sparsemax: the probabilities nearest to the logits. It is `entmax` with $\alpha = 2$.

    $$\text{sparsemax}(s) = \arg\min_{p \in \Delta} \|p - s\|^2 = [s - \tau]_+$$

    Args:
        logits: (..., V), floating; -inf masks a class.
        dim: the class axis.

    Returns:
        Probabilities in the shape and dtype of `logits`; computed in at least float32.

    Raises:
        TypeError: logits that are not floating.
        ValueError: no such axis, a row that holds NaN or +inf, or in which every class is masked.

    References:
        Martins and Astudillo, From Softmax to Sparsemax, 2016.

    Example:
        >>> sparsemax(torch.tensor([1.0, 0.8, 0.1]))
        tensor([0.6000, 0.4000, 0.0000])
    """
    return entmax(logits, 2.0, dim)


def entmax15(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Return the 1.5-entmax, half way from softmax to sparsemax: `entmax` with $\alpha = 1.5$.

    $$\text{entmax}_{1.5}(s)_c = [s_c / 2 - \tau]_+^2$$

    Args:
        logits: (..., V), floating; -inf masks a class.
        dim: the class axis.

    Returns:
        Probabilities in the shape and dtype of `logits`; computed in at least float32.

    Raises:
        TypeError: logits that are not floating.
        ValueError: no such axis, a row that holds NaN or +inf, or in which every class is masked.

    References:
        Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models, 2019.

    Example:
        >>> entmax15(torch.tensor([2.0, 2.0, 0.0]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    return entmax(logits, 1.5, dim)


def entmax(logits: Tensor, alpha: float | Tensor, dim: int = -1) -> Tensor:
    r"""Return the $\alpha$-entmax: what maximises the expected logit and the Tsallis entropy together.

    $$\text{entmax}_\alpha(s) = \arg\max_{p \in \Delta} \langle p, s \rangle + H_\alpha(p)
      = \exp_\alpha(s - A) = [(\alpha - 1) s - \tau]_+^{1 / (\alpha - 1)}$$

    $\alpha = 1$ is softmax, and $\alpha = 2$ sparsemax; the larger, the more classes get exactly 0. The result is
    exact to rounding. Both arguments get a gradient, at $\alpha = 1$ too: there it is the limit from above.

    Args:
        logits: (..., V), floating; -inf masks a class.
        alpha: 1 or greater: a number, or a tensor that broadcasts to `logits` with size 1 on the class axis.
        dim: the class axis.

    Returns:
        Probabilities in the shape and dtype of `logits`; computed in at least float32.

    Raises:
        TypeError: logits or alpha that are not floating.
        ValueError: alpha below 1 or of a shape that does not fit, no such axis, a row that holds NaN or +inf, or
            in which every class is masked.

    References:
        Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models, 2019.
        Correia, Niculae and Martins, Adaptively Sparse Transformers, 2019.

    Example:
        >>> entmax(torch.tensor([[1.0, 0.8, 0.1]]).expand(3, 3), torch.tensor([[1.0], [1.5], [2.0]]))
        tensor([[0.4494, 0.3679, 0.1827],
                [0.5292, 0.3937, 0.0770],
                [0.6000, 0.4000, 0.0000]])
    """
    if _is_softmax(alpha):
        return softmax(logits, dim)
    return _entmax(logits, alpha, dim, log=False)


def log_entmax(logits: Tensor, alpha: float | Tensor, dim: int = -1) -> Tensor:
    r"""Return the logarithm of `entmax`: -inf for a class of probability 0.

    Args:
        logits: (..., V), floating; -inf masks a class.
        alpha: 1 or greater: a number, or a tensor that broadcasts to `logits` with size 1 on the class axis.
        dim: the class axis.

    Returns:
        Log-probabilities in nats, in the shape and dtype of `logits`; computed in at least float32. No gradient
        flows from those that are -inf.

    Raises:
        TypeError: logits or alpha that are not floating.
        ValueError: alpha below 1 or of a shape that does not fit, no such axis, a row that holds NaN or +inf, or
            in which every class is masked.

    Example:
        >>> log_entmax(torch.tensor([1.0, 0.8, 0.1]), 2.0)
        tensor([-0.5108, -0.9163,    -inf])
    """
    if _is_softmax(alpha):
        return log_softmax(logits, dim)
    return _entmax(logits, alpha, dim, log=True)


def _is_softmax(alpha: float | Tensor) -> bool:
    """Whether alpha is the number 1; a tensor is not looked into, for it may want a gradient."""
    return not isinstance(alpha, Tensor) and check_finite_number("alpha", alpha, at_least=1.0) == 1


@uncompiled
def _entmax(logits: Tensor, alpha: float | Tensor, dim: int, *, log: bool) -> Tensor:
    check_logits(logits, dim)
    order = entmax_order(alpha, logits, dim)
    wide = at_least_float32(logits).movedim(dim, -1)
    found: Tensor = _Entmax.apply(wide.reshape(-1, wide.shape[-1]), order, log)  # type: ignore[no-untyped-call]
    return found.view(wide.shape).movedim(-1, dim).to(logits.dtype)


def _entmax_shapes(logits: Tensor, order: Tensor, log: bool) -> list[Tensor]:
    return [torch.empty_like(logits)]


@operator("Tensor logits, Tensor order, bool log", _entmax_shapes)
def _solved(logits: Tensor, order: Tensor, log: bool) -> list[Tensor]:
    return [implementation("entmax", logits)(logits, order, log=log)]


class _Entmax(torch.autograd.Function):
    """Entmax of rows (N, V) or its logarithm, for order a (N, 1) or (1, 1); see `reference.entmax_gradient`."""

    @staticmethod
    def forward(logits: Tensor, order: Tensor, log: bool) -> Tensor:
        return _solved(logits, order, log)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, order, ctx.log = inputs
        ctx.save_for_backward(output, order)
        ctx.save_for_forward(output, order)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:  # of a loss at its maximum, where a change of p changes nothing
            return None, None, None
        found, order = ctx.saved_tensors
        # What has a derivative itself is made of torch's operators.
        plain = takes_operators(upstream)
        gradient = reference.entmax_gradient if plain else implementation("entmax_gradient", found, order, upstream)
        grad_logits, of_rows = gradient(found, order, upstream, log=ctx.log, of_order=ctx.needs_input_grad[1])
        grad_order = None if of_rows is None else of_rows.sum_to_size(order.shape).to(order.dtype)
        return grad_logits, grad_order, None

    @staticmethod
    @along
    def jvp(ctx: Any, saved: tuple[Tensor, Tensor], logits: Tensor | None, order: Tensor | None, _: None) -> Tensor:
        found, at_order = saved
        return reference.entmax_direction(found, at_order, logits, order, log=ctx.log)

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        """Never come to: torch asks for it where directions are batched; numbers that are have been refused."""
        raise NotImplementedError("entmax: expected one tensor of logits, got a batch of torch.func.vmap's")


def entmax_order(alpha: float | Tensor, logits: Tensor, dim: int) -> Tensor:
    """Return a = alpha - 1 in float64, (N, 1) for the N rows of logits or (1, 1) for all of them."""
    if not isinstance(alpha, Tensor):
        order = check_finite_number("alpha", alpha, at_least=1.0) - 1
        return torch.full((1, 1), order, dtype=torch.float64, device=logits.device)
    if not alpha.is_floating_point():
        raise TypeError(f"alpha: expected a floating-point tensor, got dtype {alpha.dtype}")
    check_not_batched("alpha", alpha)
    accepted = alpha.detach().isfinite() & (alpha.detach() >= 1)
    check_all("alpha", "finite values of at least 1", alpha, accepted)
    if alpha.numel() == 1 and alpha.ndim <= logits.ndim:
        return alpha.double().reshape(1, 1) - 1
    rows = list(logits.shape)
    rows[dim] = 1
    try:
        return alpha.double().expand(rows).movedim(dim, -1).reshape(-1, 1) - 1
    except RuntimeError as error:
        raise ValueError(
            f"alpha: expected a shape that broadcasts to {tuple(rows)}, got {tuple(alpha.shape)}"
        ) from error
