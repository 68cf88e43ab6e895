"""Contrastive batches larger than what an encoder's activations leave room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vastmax.arithmetic import without_autocast
from vastmax.recomputation import recomputing
from vastmax.validation import check_positive_int, shown

Encoder = Callable[..., Tensor]
Input = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
RandomState = tuple[Tensor, list[Tensor]]
"""The states of the CPU's generator and of every CUDA device's."""


def cached_backward(
    loss: Callable[..., Tensor], encoders: Sequence[Encoder], inputs: Sequence[Input], *, chunk_size: int
) -> Tensor:
    r"""Backpropagate the loss of a whole batch through encoders that see `chunk_size` rows of it at a time.

    With $h_r = f(x_r)$, the gradient is a sum over rows once $\partial \ell / \partial h$ is known:

    $$\frac{\partial \ell(h_1, \dots, h_N)}{\partial \theta}
      = \sum_r \frac{\partial \ell}{\partial h_r} \frac{\partial f(x_r)}{\partial \theta}$$

    So the rows are encoded without a graph; the loss and its gradient with respect to the embeddings are taken over
    all of them; then each chunk is encoded once more, with a graph, and backpropagated. The activations of one
    chunk are alive at a time, at the price of a second forward pass. Dropout repeats itself: each chunk is encoded
    under the random state, of the CPU and of every CUDA device, that it had at first, and the state left behind is
    that of one plain pass over the chunks. Called within `torch.autocast`, both passes are cast.

    Gradients are added to `.grad` of the parameters of the encoders and of the loss (a learned temperature). An
    encoder without anything to train has no second pass. Under a `torch.amp.GradScaler` let the loss scale itself,
    `lambda *h: scaler.scale(loss(*h))`: what is returned is then scaled too.

    Args:
        loss: `loss(*embeddings) -> ()`, of all rows at once; called once.
        encoders: one for each input, the same one several times if they share it; `encoder(x) -> (n, ...)`, each
            row of its own row of input.
        inputs: for each encoder a tensor (N, ...), a tuple of such for `encoder(*x)` or a dict for `encoder(**x)`;
            cut along the first axis.
        chunk_size: rows encoded at a time; it need not divide N.

    Returns:
        The loss, detached.

    Raises:
        TypeError: inputs that are not tensors, or an encoder that returns none.
        ValueError: encoders and inputs that do not pair, no rows or not as many everywhere, a loss that is not a
            scalar or has no gradient, or an encoder with a batch normalisation in training mode, whose rows depend
            on their chunk: in a module, or in that of a bound method or a `functools.partial`. One inside any
            other function, as a lambda, cannot be seen.

    References:
        Gao, Zhang, Han and Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.

    Example:
        >>> from vastmax.functional.contrastive import info_nce
        >>> encoder, x, y = torch.nn.Linear(8, 4), torch.randn(100, 8), torch.randn(100, 8)
        >>> value = cached_backward(info_nce, [encoder, encoder], [x, y], chunk_size=16)
        >>> encoder.weight.grad.shape
        torch.Size([4, 8])
    """
    chunk_size = check_positive_int("chunk_size", chunk_size)
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")
    if len(encoders) != len(inputs) or not encoders:
        raise ValueError(f"encoders: expected one for each input, got {len(encoders)} and {len(inputs)} inputs")
    for number, encoder in enumerate(encoders):
        _check_rows_are_independent(f"encoders[{number}]", encoder)
    batches = [_arguments(f"inputs[{number}]", batch) for number, batch in enumerate(inputs)]

    first = [_encode(encoder, batch, chunk_size) for encoder, batch in zip(encoders, batches, strict=True)]
    embeddings = [embedding for embedding, _ in first]
    value = loss(*embeddings)
    if not isinstance(value, Tensor) or value.ndim != 0:
        seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: expected a scalar of all rows, got {seen}")
    if not value.requires_grad:
        raise ValueError("loss: expected a value that depends on the embeddings, got one without a gradient")
    _backward(value)

    after = _random_state()
    for encoder, batch, (embedding, states) in zip(encoders, batches, first, strict=True):
        if embedding.grad is not None:
            _encode_again(encoder, batch, chunk_size, states, embedding.grad)
    _set_random_state(after)
    return value.detach()


@dataclass(frozen=True)
class _Arguments:
    """What an encoder is called with: tensors whose first axis is the rows."""

    positional: tuple[Tensor, ...]
    named: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return [*self.positional, *self.named.values()]

    def chunks(self, size: int) -> Iterator[_Arguments]:
        for start in range(0, len(self.tensors()[0]), size):
            rows = slice(start, start + size)
            yield _Arguments(tuple(x[rows] for x in self.positional), {n: x[rows] for n, x in self.named.items()})

    def passed_to(self, encoder: Encoder) -> Tensor:
        embedding = encoder(*self.positional, **self.named)
        num_rows = len(self.tensors()[0])
        if not isinstance(embedding, Tensor) or not embedding.is_floating_point():
            kind = embedding.dtype if isinstance(embedding, Tensor) else type(embedding).__name__
            raise TypeError(f"encoders: expected each to return a floating-point tensor, got {kind}")
        if embedding.shape[:1] != (num_rows,):
            raise ValueError(
                f"encoders: expected an embedding ({num_rows}, ...), one per row, got {tuple(embedding.shape)}"
            )
        return embedding


def _arguments(name: str, batch: Input) -> _Arguments:
    named = dict(batch) if isinstance(batch, Mapping) else {}
    positional = batch if isinstance(batch, tuple) else () if isinstance(batch, Mapping) else (batch,)
    arguments = _Arguments(positional, named)
    for tensor in arguments.tensors():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name}: expected a tensor, a tuple or a dict of tensors, got one that is {type(tensor).__name__}"
            )
    shapes = [tuple(x.shape) for x in arguments.tensors()]
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"{name}: expected tensors of one number of rows, at least 1, got shapes {shown(shapes)}")
    return arguments


@torch.no_grad()
def _encode(encoder: Encoder, batch: _Arguments, chunk_size: int) -> tuple[Tensor, list[RandomState]]:
    """Embed all rows, without a graph; return the random state before each chunk too."""
    embeddings, states = [], []
    for chunk in batch.chunks(chunk_size):
        states.append(_random_state())
        embeddings.append(chunk.passed_to(encoder))
    return torch.cat(embeddings).requires_grad_(), states


def _encode_again(
    encoder: Encoder, batch: _Arguments, chunk_size: int, states: list[RandomState], gradient: Tensor
) -> None:
    """Embed each chunk as it was the first time and backpropagate the gradient of its embedding."""
    for chunk, state, part in zip(batch.chunks(chunk_size), states, gradient.split(chunk_size), strict=True):
        _set_random_state(state)
        with recomputing():
            embedding = chunk.passed_to(encoder)
        if not embedding.requires_grad:
            return
        _backward(embedding, part)


def _backward(output: Tensor, gradient: Tensor | None = None) -> None:
    """Backpropagate outside of autocast, as its gradients are meant to be."""
    with without_autocast(output.device):
        output.backward(gradient)


def _random_state() -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_state(state: RandomState) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(cuda)


def _check_rows_are_independent(name: str, encoder: Encoder) -> None:
    if not callable(encoder):
        raise TypeError(f"{name}: expected a callable, got {type(encoder).__name__}")
    for root in _modules_behind(encoder):
        for path, module in root.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                raise ValueError(
                    f"{name}: expected rows that do not depend on the others of their chunk, got "
                    f"{type(module).__name__} {shown(path)} in training mode; .eval() uses its running statistics"
                )


def _modules_behind(function: object) -> Iterator[nn.Module]:
    """The modules that a function is known to use: itself, its method's, and those bound by a partial."""
    if isinstance(function, nn.Module):
        yield function
    elif isinstance(function, partial):
        for part in (function.func, *function.args, *function.keywords.values()):
            yield from _modules_behind(part)
    elif isinstance(function, MethodType):
        yield from _modules_behind(function.__self__)
