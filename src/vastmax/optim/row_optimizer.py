"""What the optimizers share: one step for dense and row-sparse gradients, and state that keeps its dtype."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from vastmax.checking import at_hand
from vastmax.kernels.reference.rounding import stochastic_round
from vastmax.kernels.reference.row_updates import Runs
from vastmax.kernels.reference.segments import segments
from vastmax.validation import LARGEST_INT, check_ids, plain, shown

Group = dict[str, Any]
State = dict[str, Tensor]

CAUGHT_UP_ELEMENTS = 1 << 22
"""Elements of rows that catch up at a time, by a gradient of as many zeros."""


class RowOptimizer(Optimizer):
    """Base of the optimizers: dense gradients in batches, sparse ones row by row.

    A subclass says which options and which state it has, and defines its update of weights by gradients, in place:
    of whole parameters, in `compute_dtype`, and of distinct rows, by a kernel.
    """

    generator: torch.Generator | None

    def __init__(self, params: ParamsT, defaults: Group, generator: torch.Generator | None) -> None:
        self.generator = generator
        super().__init__(params, _kept(defaults, defaults))

    def _check_options(self, group: Group) -> None:
        raise NotImplementedError

    def _new_state(self, param: Tensor, group: Group, *, sparse: bool) -> State:
        raise NotImplementedError

    def _by_row(self, param: Tensor, state: State) -> bool:
        """Return whether the state is such that a dense gradient, too, updates the rows one by one."""
        raise NotImplementedError

    def _update_dense(
        self, weights: list[Tensor], grads: list[Tensor], states: list[State], group: Group, *, fused: bool
    ) -> None:
        raise NotImplementedError

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
        """Make the step of rows that `step` steps came before, and first those that they missed among them."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "generator": self.generator}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # one of an earlier version, or of torch, lacks the options that it had not
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters with its own options; one that is refused is not added."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            group.update(_kept(group, self.defaults))
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

    def catch_up(self, rows: Tensor | None = None, parameters: Iterable[Tensor] | None = None) -> None:
        """Make the steps that rows missed since they were last touched: they move by momentum and decay.

        A row is then where it would be had the last step given it a gradient of zero: in `SGD` where
        `torch.optim.SGD` has it, to rounding, and in `LazyAdamW` where its formula has it. Call it before the
        weights are evaluated, saved or handed on. Rows that owe nothing stay as they are: those of parameters
        whose gradients are dense, and all of `RowwiseAdagrad`.

        The learning rate and the other options of the missed steps are those of now: call it before a scheduler
        changes them, above all to a rate of 0, by which no row would move.

        Args:
            rows: int64 ids of the rows, of any shape, repeated or not; all rows if omitted.
            parameters: which parameters; all of the optimizer's if omitted.

        Raises:
            TypeError: ids that are not an int64 tensor.
            ValueError: an id that one of the parameters has no row of, or another parameter than the optimizer's;
                nothing has been changed then.

        Example:
            >>> from vastmax.optim import SGD
            >>> embedding = torch.nn.Embedding(1000, 8, sparse=True)
            >>> optimizer = SGD(embedding.parameters(), lr=1.0, momentum=0.5)
            >>> before = embedding.weight.detach().clone()
            >>> for token in (7, 3, 3):
            ...     optimizer.zero_grad()
            ...     embedding(torch.tensor([token])).sum().backward()
            ...     optimizer.step()
            >>> optimizer.catch_up(torch.tensor([7]))
            >>> round((before - embedding.weight.detach())[7, 0].item(), 3)  # 1 + 1/2 + 1/4
            1.75
        """
        if parameters is None:
            chosen = [param for group in self.param_groups for param in group["params"] if self._may_owe(param)]
        else:
            chosen = list(parameters)
        groups = [self.group_of(param) for param in chosen]
        if rows is not None:
            check_ids("rows", rows, min((len(param) for param in chosen if param.ndim > 0), default=LARGEST_INT))
        for param, group in zip(chosen, groups, strict=True):
            if self.pay(param, group, rows):
                torch.autograd.graph.increment_version(param)

    @torch.no_grad()
    def pay(self, param: Tensor, group: Group, rows: Tensor | None) -> bool:
        """Make the steps that rows missed, all rows if None, unseen by autograd; return whether there were any."""
        if not self._may_owe(param):
            return False
        options = self._options(group)
        state = self._state_of(param, options, sparse=True)
        step, last = int(state["step"].item()), state["last_step"]
        if rows is None:
            rows = (last < step).nonzero().squeeze(-1)
        else:
            rows = rows.to(param.device).unique()
            rows = rows[last[rows] < step]
        size = max(1, CAUGHT_UP_ELEMENTS // max(1, math.prod(param.shape[1:])))
        zeros = param.new_zeros(min(size, len(rows)), *param.shape[1:], dtype=compute_dtype(param))
        for part in rows.split(size):
            uniform = self._uniform(param, zeros[: len(part)].shape, options)
            # The last of the missed steps is one of gradient zero: what a step does after those before it.
            self._update_rows(param.data, part, zeros[: len(part)], None, state, options, uniform, step - 1)
        return len(rows) > 0

    def _may_owe(self, param: Tensor) -> bool:
        """Return whether some rows of a parameter may have made fewer steps than it."""
        return "last_step" in self.state.get(param, {})

    def group_of(self, param: Tensor) -> Group:
        """Return a parameter's group, whose options may change at any time, as by a scheduler.

        Raises:
            ValueError: a parameter that the optimizer has not.
        """
        for group in self.param_groups:
            if any(own is param for own in group["params"]):
                return group
        raise ValueError(f"parameter of shape {tuple(param.shape)}: expected one of the optimizer's, got another")

    def _options(self, group: Group) -> Group:
        """Return a group's options as they are now, as plain numbers: what a scheduler has set may be a tensor."""
        return {name: plain(group[name]) for name in self.defaults}

    def _step_group(self, group: Group) -> None:
        options = self._options(group)
        together: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.is_sparse:
                self._step_rows(param, options, *_rows_of(grad))
                continue
            state = self._state_of(param, options, sparse=False)
            if self._by_row(param, state):
                self._step_rows(param, options, torch.arange(len(param), device=param.device), grad)
                continue
            grad = _placed_as(param, grad)
            fused = in_one_pass(*map(own_part, (param, grad, *state.values())))
            if param.dtype == compute_dtype(param):
                together[fused].append((param, grad))
            else:  # alone, so that only one float32 copy of a parameter is held at a time
                self._step_dense([(param, grad)], options, fused=fused)
        for fused, pairs in together.items():
            if pairs:
                self._step_dense(pairs, options, fused=fused)

    def _step_dense(self, pairs: list[tuple[Tensor, Tensor]], options: Group, *, fused: bool) -> None:
        # Elementwise, and so of each process's own part where several share a parameter.
        parts = [own_part(param) for param, _ in pairs]
        weights = [part.to(compute_dtype(part)) for part in parts]
        grads = [own_part(grad).to(weight.dtype) for (_, grad), weight in zip(pairs, weights, strict=True)]
        states = [{name: own_part(value) for name, value in self.state[param].items()} for param, _ in pairs]
        self._update_dense(weights, grads, states, options, fused=fused)
        for (param, _), part, weight in zip(pairs, parts, weights, strict=True):
            if weight is not part:
                uniform = self._uniform(param, weight.shape, options)
                part.copy_(weight if uniform is None else stochastic_round(weight, part.dtype, uniform))
            if part is not param:
                torch.autograd.graph.increment_version(param)

    def step_rows(self, param: Tensor, group: Group, rows: Tensor, table: Tensor, runs: Runs | None = None) -> None:
        """Update distinct rows of a parameter by their gradients, `table` or sums of it as kernels take them."""
        self._step_rows(param, self._options(group), rows, table, runs)

    def _step_rows(
        self, param: Tensor, options: Group, rows: Tensor, table: Tensor, runs: Runs | None = None
    ) -> None:
        dtype = compute_dtype(param)
        if runs is not None:
            runs = (*runs[:2], runs[2].to(dtype))
        state = self._state_of(param, options, sparse=True)
        uniform = self._uniform(param, (len(rows), *param.shape[1:]), options)
        # Detached, and so of the same memory: kernels of other makers than torch leave the graph and its versions.
        step = int(state["step"].item())
        self._update_rows(param.detach(), rows, table.to(dtype), runs, state, options, uniform, step)
        state["step"] += 1
        torch.autograd.graph.increment_version(param)

    def _state_of(self, param: Tensor, options: Group, *, sparse: bool) -> State:
        if not self.state[param]:
            self.state[param] = self._new_state(param, options, sparse=sparse)
        state: State = self.state[param]
        for name, value in state.items():  # which the kernels trust, and would read and write past its end
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) != len(param):
                raise ValueError(
                    f"state {name!r}: expected {len(param)} rows, as the parameter has, got {len(value)}: "
                    "a head that is resized has to be given its optimizer"
                )
        state.setdefault("step", step_counter())  # the state of torch.optim.SGD has none
        return state

    def _uniform(self, param: Tensor, shape: Sequence[int], options: Group) -> Tensor | None:
        """Draw the numbers that round new weights stochastically; None for rounding to the nearest."""
        if not options["stochastic_rounding"] or param.dtype == compute_dtype(param):
            return None
        return torch.rand(shape, generator=self.generator, device=param.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()`, whose tensors keep the dtype they were computed in.

        The base class casts all state to the parameter's dtype: that would round the float32 state of a
        half-precision parameter, and make floats of row counters.

        Raises:
            ValueError: the state is of other parameters, by their number or shapes, or of a variant of the method
                that this optimizer has not; nothing has been loaded then.
        """
        saved: dict[str, Any] = {}

        def check_and_keep(_: Optimizer, final: dict[str, Any]) -> None:
            _check_variant(final["param_groups"], self.defaults)
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


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor, Runs | None]:
    """Return the rows of a sparse gradient, and what the gradient of each is made of, as kernels take it.

    Whether they are distinct is not asked of a device, nor how many are: there each is the first of its run, and in
    the places that are left over it is -1.
    """
    if at_hand(grad):
        return *summed_rows(grad), None
    ids, values = grad._indices()[0], grad._values()
    table = values.reshape(len(values), -1).to(compute_dtype(values))
    rows, starts, order = segments(ids, len(grad))
    return rows, table, (order, starts, table.new_ones(len(order)))


def summed_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of a sparse gradient and the sum for each: the updates are not linear in it.

    Autograd forgets that a gradient was coalesced, and to do that again copies it.
    """
    rows = grad._indices()[0]
    if not (rows[1:] > rows[:-1]).all():
        grad = grad.coalesce()
        rows = grad.indices()[0]
    return rows, grad._values()


def compute_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a parameter's state and arithmetic: its own, or float32 for half precision."""
    return torch.promote_types(param.dtype, torch.float32)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor that several share (a DTensor), where it is; any other as it is."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _placed_as(param: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of a parameter that several processes share as they share that."""
    placed: Any = grad
    if getattr(param, "placements", None) == getattr(grad, "placements", None):
        return grad
    redistributed: Tensor = placed.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return redistributed


def in_one_pass(*tensors: Tensor) -> bool:
    """Return whether torch's fused CPU kernels apply to these tensors.

    They are several times faster than the op-by-op kernels, but walk the memory in storage order whatever the
    strides: a tensor that is not contiguous would have its elements paired with the wrong ones, silently.
    """
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)


def _kept(options: Group, names: Iterable[str]) -> Group:
    """Return the named options as a group keeps them: a tensor as it is, which a scheduler fills in place."""
    return {name: x if isinstance(x := options[name], Tensor) else plain(x) for name in names}


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


def _check_variant(groups: Iterable[Group], options: Group) -> None:
    for group in groups:
        for name in ("amsgrad", "maximize", "dampening", "lr_decay", "weight_decay"):
            if group.get(name) and name not in options:
                raise ValueError(
                    f"state_dict: expected no {name!r}, which this optimizer has not, got {shown(group[name])}"
                )


def _check_state(param: Tensor, state: State) -> None:
    # The kernels trust the shapes: state of another one would be read and written past its end.
    full, by_row = param.shape, param.shape[:1]
    per_row = torch.Size((*by_row, *(1,) * (param.ndim - 1)))
    for name, value in state.items():
        if name == "step":
            continue
        if name == "last_step":
            shapes, expected = [by_row], f"{tuple(by_row)}, as the parameter has rows,"
        elif name in ("sum", "exp_avg_sq"):
            shapes, expected = [full, per_row], f"{tuple(full)}, or of one number per row,"
        else:
            shapes, expected = [full], f"{tuple(full)}, as the parameter,"
        if value.shape not in shapes:
            raise ValueError(f"state_dict: expected {shown(name)} of shape {expected} got {tuple(value.shape)}")


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)} of type {type(value).__name__}")


def step_counter() -> Tensor:
    """Return the state `step` at its start."""
    # float64 counts on where float32 would stop, at 2^24 steps, and with it the decay of the rows.
    return torch.tensor(0.0, dtype=torch.float64)


def zeros_per_row(param: Tensor) -> Tensor:
    """Return state of one zero per row, (V, 1, ...), in the dtype of a parameter's state."""
    return param.new_zeros((param.shape[0], *(1,) * (param.ndim - 1)), dtype=compute_dtype(param))


def last_step(state: State, param: Tensor, so_far: int) -> Tensor:
    """Return the state `last_step` (V,); where it is new, every row has made all steps so far."""
    if "last_step" not in state:
        state["last_step"] = torch.full(param.shape[:1], so_far, dtype=torch.int32, device=param.device)
    return state["last_step"]
