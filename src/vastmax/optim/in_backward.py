"""Optimizer steps within the backward pass, without a gradient in between."""

import weakref
from contextlib import ExitStack

import torch
from torch import Tensor

from vastmax.kernels.reference.row_updates import Runs
from vastmax.optim.registration import registered
from vastmax.optim.row_optimizer import RowOptimizer
from vastmax.scoring import updates_in_backward
from vastmax.scoring.updates_in_backward import Update
from vastmax.sharding import is_sharded


def apply_in_backward(optimizer: RowOptimizer, *parameters: Tensor) -> ExitStack:
    """Update class rows as soon as the backward pass has their gradient, which is then never stored.

    From now on a backward pass through `vastmax.scoring.chosen_logits`, and so of every sampled head, makes the
    step of these parameters at once, row by row, with or without `sparse`, and leaves their `.grad` None.
    `optimizer.step()` has nothing left to do for them, and does the other parameters. Every backward pass is one
    step. The weight after it is the one that `backward()` and `step()` give with sparse gradients, to rounding.

    What needs the whole gradient before the step cannot be had for these parameters: clipping, accumulation over
    several backward passes, and the scaling of `torch.amp.GradScaler`, by which they would move scaled steps.
    A gradient that comes by another way than chosen classes, as that of a tied embedding, is stored in `.grad` as
    ever, for `optimizer.step()`, and so is that of a backward pass with `create_graph=True`. A backward pass
    through a graph that saved the old weight raises autograd's error. Nor can it be had for one of several
    replicas, whose mean gradient is there after the backward pass: the forward within `DistributedDataParallel`
    raises a RuntimeError.

    Args:
        optimizer: an optimizer of this package, which has to be kept: it is held weakly.
        *parameters: class rows (V, d) and biases (V,) among its parameters.

    Returns:
        What ends it: `close()`, or the end of a `with` statement. If it is dropped, nothing ends.

    Raises:
        TypeError: the optimizer is of another package, or a parameter is no tensor.
        ValueError: no parameter, one that the optimizer has not or that requires no gradient, one with a gradient
            that waits for its step, one that is updated in backward already, or one that FSDP shards.

    Source: Lv et al., *Full Parameter Fine-tuning for Large Language Models with Limited Resources*, ACL 2024.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> from vastmax.optim import RowwiseAdagrad
        >>> head = SampledSoftmax(8, 1000, num_samples=16, sparse=True)
        >>> optimizer = RowwiseAdagrad(head.parameters())
        >>> _ = apply_in_backward(optimizer, head.weight, head.bias)
        >>> before = head.weight.detach().clone()
        >>> head(torch.randn(4, 8), torch.randint(1000, (4,))).backward()
        >>> head.weight.grad is None, torch.equal(head.weight, before)
        (True, False)
    """
    return registered(updates_in_backward, optimizer, parameters, _update)


def _update(optimizer: RowOptimizer, parameter: Tensor) -> Update:
    _check(optimizer, parameter)
    # Weakly, both: the registry keeps the update as long as the parameter lives, which must not live by it.
    kept_optimizer, kept_parameter = weakref.ref(optimizer), weakref.ref(parameter)

    def update(rows: Tensor, table: Tensor, runs: Runs | None = None) -> None:
        optimizer, parameter = kept_optimizer(), kept_parameter()
        if optimizer is None or parameter is None:
            raise RuntimeError(
                "apply_in_backward: expected the optimizer to be kept, got none: it has been deleted"
            )
        with torch.no_grad():
            optimizer.step_rows(parameter, optimizer.group_of(parameter), rows, table, runs)

    return update


def _check(optimizer: RowOptimizer, parameter: Tensor) -> None:
    what = f"parameter of shape {tuple(parameter.shape)}"
    if parameter.ndim not in (1, 2):
        raise ValueError(f"{what}: expected class rows (V, d) or a bias (V,)")
    if is_sharded(parameter):
        raise ValueError(f"{what}: expected one that this process has whole, got one sharded over several")
    if not parameter.requires_grad:
        raise ValueError(f"{what}: expected one that requires a gradient, got requires_grad=False")
    if parameter.grad is not None:
        raise ValueError(f"{what}: expected no gradient that waits for its step, got one in .grad")
    optimizer.group_of(parameter)
