"""Forwards that are run a second time: what they read, learned, pushed and drew is what it was the first time.

`torch.utils.checkpoint` drops what a forward computed, and runs it again within the backward pass. It restores
torch's global random state for that and nothing else: a queue would be pushed to twice, and a loss differentiated
beside other negatives than those it was computed with. So a forward remembers what it read of such state (`once`),
and its recomputation reads that, and changes nothing.

A forward within a backward pass is a recomputation. Of which forward, that tells which torch restores: a forward
that reads state takes a number from the global generator on the CPU, and its recomputation takes the same number.
What cannot be told is an error: nothing is computed from any other state.

A forward may be run again if saved tensors have hooks, as within a checkpoint, or if it records no gradient, as
within one of `use_reentrant=True`; others remember nothing. What a forward read is kept as long as the graph of its
loss, and where it has no graph for the next `KEPT` forwards.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet, ref

import torch
from torch import Tensor

from vastmax.differentiation import saved_tensors_have_hooks

T = TypeVar("T")
P = ParamSpec("P")
Owner = TypeVar("Owner")

KEPT = 64
"""How many later forwards a forward without a graph is remembered for, and how many changes can be gone back on."""


def is_recomputation() -> bool:
    """Whether a forward that runs now has run before: within a backward pass, or where the caller says so."""
    return _said_so.get() or torch._C._current_graph_task_id() != -1


@contextmanager
def recomputing() -> Iterator[None]:
    """Say that what runs within has run before, without gradient, at the random states that it runs at now."""
    token = _said_so.set(True)
    try:
        yield
    finally:
        _said_so.reset(token)


def once(action: Callable[[], T], owner: object) -> T:
    """Return what `action` returns; in a recomputation, what it returned in the forward, without acting again.

    Args:
        action: reads state, or changes it. What it returns must not change afterwards.
        owner: whose state that is, where no `remembered` function is under way.

    Raises:
        RuntimeError: in a recomputation of no forward that is remembered, or of either of two.
    """
    run = _this_run()
    if run is not None:
        return run.once(action)
    run = _Run(owner)
    value = run.once(action)
    run.end(None)
    return value


def remembered(function: Callable[Concatenate[Owner, P], Tensor]) -> Callable[Concatenate[Owner, P], Tensor]:
    """Have a method that returns a loss be one forward: what it reads is kept as long as the graph of the loss."""

    @functools.wraps(function)
    def call(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling() or _this_run() is not None:  # what a graph draws it draws once
            return function(self, *args, **kwargs)
        run = _Run(self)
        token = _under_way.set(run)
        try:
            loss = function(self, *args, **kwargs)
        finally:
            _under_way.reset(token)
        run.end(loss)
        return loss

    return call


def replayed(generator: torch.Generator | None) -> torch.Generator | None:
    """Return a caller's generator; in a recomputation, another one in the state that it had in the forward."""
    if generator is None or generator is torch.default_generator or generator in torch.cuda.default_generators:
        return generator  # torch restores these
    if _this_run() is None and not (is_recomputation() or _may_run_again()):
        return generator  # and leave the global generator alone
    state = once(generator.get_state, None)
    if not is_recomputation():
        return generator
    again = torch.Generator(generator.device)
    again.set_state(state)
    return again


class _Forward:
    """What one forward read, in order."""

    def __init__(self, number: int, owner: object) -> None:
        self.number = number
        self.owner = None if owner is None else ref(owner)
        self.read: list[Any] = []
        self.recomputed = False
        self.place = next(_places)
        while _without_graph and _without_graph[0].place < self.place - KEPT:
            _without_graph.popleft()

    def is_of(self, owner: object) -> bool:
        return owner is (None if self.owner is None else self.owner())

    def read_the_same_as(self, other: _Forward) -> bool:
        return len(self.read) == len(other.read) and all(map(_same, self.read, other.read))


class _Run:
    """A forward under way, which adds what it reads to a `_Forward` or, in a recomputation, takes it from there."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.backward_pass = torch._C._current_graph_task_id()
        self.again = is_recomputation()
        self.may_run_again = _may_run_again()
        self.number: int | None = None
        self.forward: _Forward | None = None
        self.num_read = 0

    def once(self, action: Callable[[], T]) -> T:
        if self.number is None:
            self._start()
        if self.forward is None:
            return action()
        read = self.forward.read
        if not self.again:
            read.append(action())
        elif self.num_read == len(read):
            raise RuntimeError(f"a recomputation: expected to read state {len(read)} times, as its forward did")
        self.num_read += 1
        value: T = read[self.num_read - 1]
        return value

    def _start(self) -> None:
        """Take the number: not before state is read, but whether or not it is needed, so that later draws agree."""
        self.number = int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
        if self.again:
            self.forward = _found(self.number, self.owner)
        elif self.may_run_again:
            self.forward = _Forward(self.number, self.owner)
            _alive.add(self.forward)

    def end(self, loss: Tensor | None) -> None:
        if self.forward is None or self.again:
            return
        if loss is not None and loss.grad_fn is not None:
            metadata: Any = loss.grad_fn.metadata
            metadata["vastmax.recomputation"] = self.forward
        else:
            _without_graph.append(self.forward)


_said_so: ContextVar[bool] = ContextVar("said_so", default=False)
_under_way: ContextVar[_Run | None] = ContextVar("under_way", default=None)
_places = itertools.count()
_alive: WeakSet[_Forward] = WeakSet()
_without_graph: deque[_Forward] = deque()


def _this_run() -> _Run | None:
    """The forward under way, unless what runs now is a recomputation that a backward pass within it has started."""
    run = _under_way.get()
    return run if run is not None and run.backward_pass == torch._C._current_graph_task_id() else None


def _may_run_again() -> bool:
    if not torch.is_grad_enabled():
        return not torch.is_inference_mode_enabled()
    return saved_tensors_have_hooks()


def _found(number: int, owner: object) -> _Forward:
    """The forward that took this number from the random state: the latest of those not recomputed yet."""
    known = [forward for forward in _alive if forward.number == number and forward.is_of(owner)]
    waiting = [forward for forward in known if not forward.recomputed] or known
    if not waiting:
        raise RuntimeError(
            "a forward within a backward pass: expected the recomputation of an earlier one at the random state of "
            "that, by which it is known what it read of queue, sampler or generator; got the random state of none. "
            "torch.utils.checkpoint restores it with preserve_rng_state=True, its default. A forward is forgotten "
            f"with the graph of its loss or, under use_reentrant=True, after {KEPT} others"
        )
    latest = max(waiting, key=lambda forward: forward.place)
    if not all(forward is latest or forward.read_the_same_as(latest) for forward in waiting):
        raise RuntimeError(
            "a forward within a backward pass: expected the recomputation of one earlier forward, got "
            f"{len(waiting)} at its random state that read different states of queue, sampler or generator: seed "
            "once, not before each of several forwards that are backpropagated together"
        )
    latest.recomputed = True
    return latest


def _same(value: object, other: object) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return value is other
