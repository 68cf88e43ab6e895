"""Parameters whose class rows are updated within the backward pass, and by what."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

Update = Callable[[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None], None]
"""Takes distinct rows (S,) and their gradient as the kernels of row updates do: a table, and runs of it or None."""

_updates = WeakTensorKeyDictionary()


def register(parameter: Tensor, update: Update) -> None:
    """Have the backward pass of chosen classes hand the gradient of this parameter to `update`, and give none.

    `update` must not hold the parameter, which would then live for ever.

    Raises:
        ValueError: the parameter has an update already.
    """
    if parameter in _updates:
        raise ValueError(
            f"parameter of shape {tuple(parameter.shape)}: expected one that is not updated in backward yet, "
            "got one that is"
        )
    _updates[parameter] = update


def remove(parameter: Tensor) -> None:
    """Let the parameter have its gradient again, if it had not."""
    _updates.pop(parameter, None)


def update_of(parameter: Tensor | None) -> Update | None:
    """Return what updates this parameter within the backward pass; None if its gradient is wanted as ever."""
    return None if parameter is None else _updates.get(parameter)


def check_not_replicated(*parameters: Tensor | None) -> None:
    """Raise RuntimeError in the forward of a replica of which a parameter is updated within backward.

    It would be by that replica's gradient alone, before DistributedDataParallel has the mean: replicas drift apart.
    """
    replica = DistributedDataParallel._active_ddp_module
    if replica is None or not len(_updates) or replica.process_group.size() == 1:
        return
    averaged = set(map(id, replica._module_parameters))
    for parameter in parameters:
        if id(parameter) in averaged and update_of(parameter) is not None:
            raise RuntimeError(
                f"apply_in_backward: expected a model of one process, got a parameter of shape "
                f"{tuple(parameter.shape)} whose gradient DistributedDataParallel averages over "  # type: ignore[union-attr]
                f"{replica.process_group.size()} of them: leave the update to optimizer.step()"
            )
