"""What the optimizers share: one step for dense and row-sparse gradients, and state that keeps its dtype."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
State = dict[str, Tensor]


class RowOptimizer(Optimizer):
    """Base of the optimizers: dense gradients in batches, sparse ones row by row.

    A subclass says which options and which state it has, and defines its update of weights by gradients: of
    whole parameters, and of distinct rows. Both updates are in place, on weights and gradients of `compute_dtype`.
    """

    def _check_options(self, group: Group) -> None:
        raise NotImplementedError

    def _new_state(self, param: Tensor, group: Group, *, sparse: bool) -> State:
        raise NotImplementedError

    def _update_dense(
        self, weights: list[Tensor], grads: list[Tensor], states: list[State], group: Group, *, fused: bool
    ) -> None:
        raise NotImplementedError

    def _update_rows(self, rows: Tensor, weight: Tensor, grad: Tensor, state: State, group: Group) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters with its own options; one that is refused is not added."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_options(group)
            _check_params(group["params"])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; with a closure, compute the gradients first.

        Raises:
            ValueError: a gradient is sparse, but not by whole rows; nothing has been updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_gradients(group["params"])
        with torch.no_grad():
            for group in self.param_groups:
                self._step_group(group)
        return loss

    def _step_group(self, group: Group) -> None:
        together: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if not self.state[param]:
                self.state[param] = self._new_state(param, group, sparse=grad.is_sparse)
            if grad.is_sparse:
                self._step_rows(param, grad, group)
                continue
            fused = in_one_pass(param, grad, *self.state[param].values())
            if param.dtype == compute_dtype(param):
                together[fused].append((param, grad))
            else:  # alone, so that only one float32 copy of a parameter is held at a time
                self._step_dense([(param, grad)], group, fused=fused)
        for fused, pairs in together.items():
            if pairs:
                self._step_dense(pairs, group, fused=fused)

    def _step_dense(self, pairs: list[tuple[Tensor, Tensor]], group: Group, *, fused: bool) -> None:
        weights = [param.to(compute_dtype(param)) for param, _ in pairs]
        grads = [grad.to(compute_dtype(param)) for param, grad in pairs]
        self._update_dense(weights, grads, [self.state[param] for param, _ in pairs], group, fused=fused)
        for (param, _), weight in zip(pairs, weights, strict=True):
            if weight is not param:
                param.copy_(weight)

    def _step_rows(self, param: Tensor, grad: Tensor, group: Group) -> None:
        grad = grad.coalesce()  # the updates are not linear: a row's gradient has to be summed first
        rows = grad.indices()[0]
        weight = param.index_select(0, rows).to(compute_dtype(param))
        self._update_rows(rows, weight, grad.values().to(weight.dtype), self.state[param], group)
        param.index_copy_(0, rows, weight.to(param.dtype))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`, whose tensors keep the dtype they were computed in.

        The base class casts all state to the parameter's dtype: that would round the float32 state of a
        half-precision parameter, and make floats of row counters.

        Raises:
            ValueError: the state is of other parameters, by their number or shapes; nothing has been loaded then.
        """
        saved: dict[str, Any] = {}

        def check_and_keep(_: Optimizer, final: dict[str, Any]) -> None:
            for param, state in self._saved_states(final):
                _check_state(param, state)
            saved.update(final)

        # Registered last, the hook sees what the user's own hooks have made of the state.
        hook = self.register_load_state_dict_pre_hook(check_and_keep)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        for param, state in self._saved_states(saved):
            for name, value in state.items():
                if name != "step":
                    dtype = compute_dtype(param) if value.is_floating_point() else value.dtype
                    self.state[param][name] = value.to(param.device, dtype)

    def _saved_states(self, saved: dict[str, Any]) -> Iterator[tuple[Tensor, State]]:
        ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, param in zip(ids, params, strict=False):  # a difference in number is the base class's error
            yield param, saved["state"].get(saved_id, {})


def compute_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's state and arithmetic: its own, or float32 for half precision."""
    return torch.promote_types(param.dtype, torch.float32)


def in_one_pass(*tensors: Tensor) -> bool:
    """Return whether torch's fused CPU kernels apply to these tensors.

    They are several times faster than the op-by-op kernels, but walk the memory in storage order whatever the
    strides: a tensor that is not contiguous would have its elements paired with the wrong ones, silently.
    """
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def _check_params(params: Iterable[Tensor]) -> None:
    for param in params:
        if not param.is_floating_point():
            raise TypeError(
                f"params: expected real floating-point parameters, got {param.dtype} of shape {tuple(param.shape)}"
            )


def _check_gradients(params: Iterable[Tensor]) -> None:
    for param in params:
        if param.grad is not None and param.grad.is_sparse and param.grad.sparse_dim() != 1:
            raise ValueError(
                f"gradient of a parameter of shape {tuple(param.shape)}: expected a dense tensor, or a sparse one "
                f"of whole rows (sparse_dim 1), got sparse_dim {param.grad.sparse_dim()}"
            )


def _check_state(param: Tensor, state: State) -> None:
    # The fused kernels trust the shapes: state of another one would be read and written past its end.
    num_rows = param.shape[:1]
    shapes = (param.shape, num_rows, (*num_rows, *(1,) * (param.ndim - 1)))
    for name, value in state.items():
        if name != "step" and value.shape not in shapes:
            raise ValueError(
                f"state_dict: expected {name!r} of shape {tuple(param.shape)}, or of one number per row, "
                f"got {tuple(value.shape)}"
            )
