"""Batches of a token stream for truncated back-propagation through time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vastmax.validation import check_positive_int, shown

CONTIGUOUS = torch.contiguous_format
IGNORE_INDEX = -100  # the default of torch's losses and of every head


class TokenBatches:
    r"""Pairs `(input, target)` of a token stream cut into `batch_size` strands that run side by side.

    Token $x_{i+1}$ is the target of $x_i$. With strands of length $L$, batch $t$ of width $w$ (`seq_len`) holds

    $$\text{input}_{bs} = x_{bL + tw + s}, \qquad \text{target}_{bs} = x_{bL + tw + s + 1},$$

    so a row of one batch continues that row of the batch before, and a recurrent state can be carried over.

    With `drop_last`, $L = \lfloor (T - 1) / \text{batch\_size} \rfloor$ and every batch is full: what does not fill
    a strand or a batch is left out. Without it, for evaluation, every token of the stream but the first is a
    target exactly once: $L$ is rounded up, the last batch may be narrower, and past the end of the stream
    `input` is 0 and `target` is -100, which losses ignore.

    The object can be iterated any number of times. `state_dict` and `load_state_dict` follow the protocol by
    which Lightning resumes within an epoch.

    Args:
        tokens: (T,) int64 stream.
        batch_size: number of strands.
        seq_len: number of tokens of a strand in one batch.
        drop_last: leave out what does not fill a batch.

    Raises:
        TypeError: `tokens` that are not an int64 tensor.
        ValueError: `tokens` that are not (T,), or too few for one batch.

    Example:
        >>> for input, target in TokenBatches(torch.arange(10), batch_size=2, seq_len=3, drop_last=False):
        ...     print(input.tolist(), target.tolist())
        [[0, 1, 2], [5, 6, 7]] [[1, 2, 3], [6, 7, 8]]
        [[3, 4], [8, 0]] [[4, 5], [9, -100]]
    """

    def __init__(self, tokens: Tensor, batch_size: int, seq_len: int, *, drop_last: bool = True) -> None:
        batch_size = check_positive_int("batch_size", batch_size)
        seq_len = check_positive_int("seq_len", seq_len)
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
            got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens: expected an int64 tensor (T,), got {got}")
        if tokens.ndim != 1:
            raise ValueError(f"tokens: expected shape (T,), got {tuple(tokens.shape)}")
        needed = batch_size * seq_len + 1 if drop_last else 2
        if len(tokens) < needed:
            advice = "; lower batch_size or seq_len, or bring more text" if drop_last else ""
            raise ValueError(
                f"tokens: expected at least {needed} for one batch of batch_size={batch_size} strands of "
                f"seq_len={seq_len}, got {len(tokens)}{advice}"
            )
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.drop_last = drop_last
        self._num_tokens = len(tokens)
        num_targets = len(tokens) - 1
        length = num_targets // batch_size if drop_last else -(-num_targets // batch_size)
        surplus = batch_size * length - num_targets  # negative: `pad` then crops
        self._input = pad(tokens[:-1], (0, surplus), value=0).view(batch_size, length)
        self._target = pad(tokens[1:], (0, surplus), value=IGNORE_INDEX).view(batch_size, length)
        self._first_batch = 0  # of the next pass
        self._next_batch = 0  # of the pass under way

    def __len__(self) -> int:
        """Return the number of batches of a whole pass."""
        length = self._input.shape[1]
        return length // self.seq_len if self.drop_last else -(-length // self.seq_len)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first, self._first_batch = self._first_batch, 0
        for batch in range(first, len(self)):
            self._next_batch = batch + 1  # counted as done when handed out: state is saved after the step on it
            columns = slice(batch * self.seq_len, (batch + 1) * self.seq_len)
            input, target = self._input[:, columns], self._target[:, columns]
            yield input.clone(memory_format=CONTIGUOUS), target.clone(memory_format=CONTIGUOUS)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the stream: after the last batch, the first batch of the next pass.

        A pass cut short from outside, as by Lightning's `limit_train_batches`, is resumed where it was cut: to
        train on less, hand over fewer tokens.
        """
        return {"next_batch": self._next_batch % len(self), **self._layout()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass begin where `state_dict` was taken; passes after it are whole.

        Raises:
            ValueError: a state of another stream, `batch_size` or `seq_len`: its place means nothing here.
        """
        saved = {key: state_dict.get(key) for key in self._layout()}
        if saved != self._layout():
            raise ValueError(f"state_dict: expected the place in a stream of {self._layout()}, got {shown(saved)}")
        self._first_batch = self._next_batch = state_dict["next_batch"]

    def _layout(self) -> dict[str, Any]:
        return {
            "num_tokens": self._num_tokens,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "drop_last": self.drop_last,
        }
