"""Rows that make the steps they missed before a head reads them."""

import weakref
from contextlib import ExitStack

from torch import Tensor

from vastmax.optim.registration import registered
from vastmax.optim.row_optimizer import RowOptimizer
from vastmax.scoring import catching_up
from vastmax.scoring.catching_up import Payment


def catch_up_before_reading(optimizer: RowOptimizer, *parameters: Tensor) -> ExitStack:
    """Have heads bring class rows up to date before they read them: then sparse training is dense training.

    A sparse step leaves the rows that it does not touch behind, and a row that is touched next is scored before it
    pays. From now on every head pays first, as `optimizer.catch_up` does: for the targets and candidates of a
    training loss, for the nodes or groups of the targets in a tree or a factored softmax, and for all rows where
    all are scored, as in `nll`, `log_prob` and `topk`, in evaluation too. With `SGD` losses, gradients and weights
    are those of `torch.optim.SGD` and dense gradients, to rounding, while the options stay the same; with
    `LazyAdamW` they follow AdamW as closely as its formula does. What reads the weights by another way, as an
    embedding that is tied to a head, calls `optimizer.catch_up` itself.

    A training step costs another pass over the rows that it reads, and on an accelerator it waits for the device.
    Beside a sampler that reads all rows at each batch, `samplers.HardNegatives` or `samplers.TopAndTail`, it costs
    all rows.

    Autograd does not notice that rows pay: those that an earlier loss read have paid already, and do not move. A
    recomputation, by `torch.utils.checkpoint`, pays nothing. Where processes read different rows, as under
    DistributedDataParallel, their weights agree once all rows have caught up.

    Args:
        optimizer: an optimizer of this package, which has to be kept: it is held weakly.
        *parameters: those of its parameters that it applies to, such as `*head.parameters()`.

    Returns:
        What ends it: `close()`, or the end of a `with` statement. If it is dropped, nothing ends.

    Raises:
        TypeError: the optimizer is of another package, or a parameter is no tensor.
        ValueError: no parameter, one that the optimizer has not, or one for which it has been called already.

    Example:
        >>> from vastmax.heads import SampledSoftmax
        >>> from vastmax.optim import SGD
        >>> head = SampledSoftmax(8, 1000, num_samples=16, sparse=True)
        >>> optimizer = SGD(head.parameters(), lr=0.1, momentum=0.9)
        >>> with catch_up_before_reading(optimizer, *head.parameters()):
        ...     for _ in range(2):
        ...         head(torch.randn(4, 8), torch.randint(1000, (4,))).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...     found = head.topk(torch.randn(4, 8), k=3)
        >>> (optimizer.state[head.weight]["last_step"] == 2).all()
        tensor(True)
    """
    return registered(catching_up, optimizer, parameters, _payment)


def _payment(optimizer: RowOptimizer, parameter: Tensor) -> Payment:
    optimizer.group_of(parameter)
    # Weakly, both: the registry keeps the payment as long as the parameter lives, which must not live by it.
    kept_optimizer, kept_parameter = weakref.ref(optimizer), weakref.ref(parameter)

    def pay(rows: Tensor | None) -> None:
        optimizer, parameter = kept_optimizer(), kept_parameter()
        if optimizer is None or parameter is None:
            raise RuntimeError(
                "catch_up_before_reading: expected the optimizer to be kept, got none: it has been deleted, and "
                "what rows owe is not known; close what catch_up_before_reading returned first"
            )
        optimizer.pay(parameter, optimizer.group_of(parameter), rows)

    return pay
