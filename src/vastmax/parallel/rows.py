"""Sparse gradients of replicas, which DistributedDataParallel leaves to a reduction of rows."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from vastmax.compilation import uncompiled
from vastmax.heads.base import Head
from vastmax.parallel.average import average_gradients
from vastmax.scoring.updates_in_backward import update_of

Model = TypeVar("Model", bound=nn.Module)


def reduce_rows(model: Model, process_group: dist.ProcessGroup | None = None) -> Model:
    r"""Have replicas of a model average its sparse gradients as rows, which DistributedDataParallel cannot.

    $$g \leftarrow \frac 1 P \sum_{p=1}^{P} g_p$$

    Call it on the module that `DistributedDataParallel` is about to wrap. From then on DDP leaves alone the
    parameters of heads with `sparse=True` and of `nn.Embedding` and `nn.EmbeddingBag` with `sparse=True`, and those
    tied to them. At the end of every backward pass their gradients are exchanged, ids and rows, summed and divided
    by the number of processes P, as DDP does with the others: before clipping and the optimizer's step. What is
    sent grows with the rows that the processes touched, not with V. Within `no_sync()` gradients add up where they
    are. A gradient that one process lacks counts as zero there; one that is dense, as that of a dense tied
    embedding, is reduced as a whole.

    The parameters start as they are in the group's first process: at once where `torch.distributed` has been
    initialized, else at the first training forward. With one process nothing is done. A model whose parameters are
    all sparse needs no DDP, which refuses it: what this returns is a replica by itself.

    Args:
        model: the module to be wrapped; it is changed in place. One without sparse gradients stays as it is.
        process_group: the one that DDP is given; the default one if None.

    Returns:
        The model.

    Raises:
        TypeError: what is given is no module, or is wrapped already.
        ValueError: a parameter is updated within backward (`optim.apply_in_backward`).
        RuntimeError: in a forward: DDP holds the parameters nonetheless, has another group, or is within `join`.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body = torch.nn.Linear(8, 16)
        ...         self.head = SampledSoftmax(16, 1000, num_samples=32, sparse=True)
        ...     def forward(self, x, target):
        ...         return self.head(self.body(x), target)
        >>> model = reduce_rows(Model())  # then DistributedDataParallel(model)
        >>> model(torch.randn(4, 8), torch.tensor([1, 2, 3, 4])).backward()
    """
    if not isinstance(model, nn.Module) or isinstance(model, DistributedDataParallel):
        raise TypeError(f"model: expected the module that is to be wrapped, got {type(model).__name__}")
    names = _names(model)
    if not names:
        return model
    _check_not_updated(model.get_parameter(name) for name in names)
    # Where DDP builds its reducer, a parameter of the module itself is named with a leading dot.
    ignored = {*getattr(model, "_ddp_params_and_buffers_to_ignore", ()), *names, *(f".{name}" for name in names)}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(ignored))
    reduction = getattr(model, "_row_reduction", None)
    if reduction is None:
        reduction = model._row_reduction = RowReduction()  # type: ignore[assignment]
        model.register_forward_pre_hook(reduction.before_forward)
        model.register_forward_hook(reduction.after_forward)
    reduction.names, reduction.group, reduction.started = names, process_group, False
    if reduction.is_needed():
        reduction.start(model)
    return model


class RowReduction:
    """The hooks of a model that average its sparse gradients at the end of a backward pass.

    Every process has to take part, also one in which the head had no row. So it is not the gradients that say when,
    but what the forward returned, which every backward pass goes through; and the parameters beside it, for a
    backward pass within the forward, such as that of Lightning's manual optimization. The exchange itself is the
    last thing that the pass does, after all exchanges of DDP have been begun, in the same order everywhere.
    """

    names: list[str]
    group: dist.ProcessGroup | None

    def __init__(self) -> None:
        self.started = False
        self.wanted = True
        self.queued = False
        self._model: weakref.ref[nn.Module] | None = None
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> RowReduction:
        copied = RowReduction()  # of another model, which has yet to start
        copied.names, copied.group = list(self.names), self.group
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "started": False, "_model": None, "_wrapper": None}

    def is_needed(self) -> bool:
        """Return whether there are other processes."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1

    def start(self, model: nn.Module) -> None:
        """Take the parameters of the first process."""
        group = self._group()
        first = dist.get_global_rank(group, 0)
        self._model = weakref.ref(model)
        for parameter in self._parameters():
            dist.broadcast(parameter.detach(), first, group=group)
            parameter.register_post_accumulate_grad_hook(self._queue)
        self.started = True

    @uncompiled
    def before_forward(self, model: nn.Module, _: Any) -> None:
        """Learn whether the backward pass is to reduce: not within DDP's `no_sync`."""
        if not (torch.is_grad_enabled() and self.is_needed()):
            return
        if not self.started:
            self.start(model)
        ddp = DistributedDataParallel._active_ddp_module
        if ddp is not None:
            self._check_wrapper(ddp)
        self.wanted = ddp is None or ddp.require_backward_grad_sync
        self.queued = False  # whatever became of the last backward pass

    @uncompiled
    def after_forward(self, model: nn.Module, _: Any, output: Any) -> None:
        """Have the backward pass of what is returned reduce."""
        if self.wanted and torch.is_grad_enabled() and self.is_needed():
            for leaf in pytree.tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(self._queue)

    def _queue(self, _: Tensor) -> None:
        if self.wanted and not self.queued:
            self.queued = True
            Variable._execution_engine.queue_callback(self._reduce)

    def _reduce(self) -> None:
        self.queued = False
        average_gradients(self._parameters(), self._group())

    def _parameters(self) -> list[Tensor]:
        model = None if self._model is None else self._model()
        if model is None:
            raise RuntimeError("reduce_rows: expected the model to be kept, got none: it has been deleted")
        return [model.get_parameter(name) for name in self.names]

    def _group(self) -> dist.ProcessGroup:
        return dist.group.WORLD if self.group is None else self.group  # type: ignore[return-value]

    def _check_wrapper(self, ddp: DistributedDataParallel) -> None:
        _check_not_updated(self._parameters())
        if self._wrapper is None or self._wrapper() is not ddp:
            self._check_division_of_work(ddp)
            self._wrapper = weakref.ref(ddp)
        if ddp._join_config.enable:
            raise RuntimeError(
                "DistributedDataParallel.join: expected as many batches on every process beside reduce_rows, whose "
                "rows a process that has joined does not exchange"
            )

    def _check_division_of_work(self, ddp: DistributedDataParallel) -> None:
        own = set(map(id, self._parameters()))
        if any(id(parameter) in own for parameter in ddp._module_parameters):
            raise RuntimeError(
                "reduce_rows: expected to be called on the module that DistributedDataParallel wraps, before it "
                f"does, got one that holds {self.names[0]!r} itself"
            )
        if ddp.process_group is not self._group():
            raise RuntimeError("reduce_rows: expected the process_group of DistributedDataParallel, got another")


def _names(model: nn.Module) -> list[str]:
    """Return the names of the parameters whose gradients may be sparse, one for each place of a tied one."""
    kinds = (Head, nn.Embedding, nn.EmbeddingBag)
    sparse = (x for x in model.modules() if isinstance(x, kinds) and getattr(x, "sparse", False))
    found = {id(parameter) for parameter in chain.from_iterable(x.parameters() for x in sparse)}
    return [name for name, x in model.named_parameters(remove_duplicate=False) if id(x) in found]


def _check_not_updated(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        if update_of(parameter) is not None:
            raise ValueError(
                f"parameter of shape {tuple(parameter.shape)}: expected one whose gradient is there after "
                "backward, to be averaged over processes, got one that optim.apply_in_backward updates within it"
            )
