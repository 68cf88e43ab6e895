"""A queue of past keys: negatives beyond the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vastmax.compilation import uncompiled
from vastmax.recomputation import once
from vastmax.validation import check_finite, check_hidden, check_positive_int
from vastmax.versions import Overwritten, Tables, Versions


class KeyQueue(nn.Module):
    """The newest keys of past batches, first in, first out; as buffers, so that `state_dict` has them.

    Old keys come from an encoder that has moved on since. Keep it slow, as `momentum_encoder` does, or the queue
    short. A forward that `torch.utils.checkpoint` runs again pushes once, and has the same `keys` again.

    Args:
        num_keys: keys held at most.
        features: d, the size of a key.
        device: where the keys are.
        dtype: of the keys, floating.

    References:
        He, Fan, Wu, Xie and Girshick, Momentum Contrast for Unsupervised Visual Representation Learning, 2020.

    Example:
        >>> queue = KeyQueue(4, 2)
        >>> queue.push(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
        >>> queue.push(torch.tensor([[4.0, 4.0], [5.0, 5.0]]))
        >>> queue.keys()[:, 0]
        tensor([2., 3., 4., 5.])
    """

    storage: Tensor
    num_pushed: Tensor

    def __init__(
        self,
        num_keys: int,
        features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_keys = check_positive_int("num_keys", num_keys)
        self.features = check_positive_int("features", features)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}")
        self.register_buffer("storage", torch.zeros(self.num_keys, self.features, device=device, dtype=dtype))
        self.register_buffer("num_pushed", torch.zeros((), dtype=torch.int64, device=device))
        self._versions = Versions()

    def __len__(self) -> int:
        """Return how many keys there are now."""
        return min(int(self.num_pushed), self.num_keys)

    @uncompiled
    def keys(self) -> Tensor:
        """Return a copy of the keys, oldest first: (len(self), d), without gradient."""
        tables = self._versions.read(self._tables)
        storage, num_pushed = tables["storage"], int(tables["num_pushed"])
        oldest = num_pushed % self.num_keys
        return torch.cat([storage[oldest : min(num_pushed, self.num_keys)], storage[:oldest]])

    @uncompiled
    def push(self, keys: Tensor) -> None:
        """Put keys in, the last row as the newest; the oldest make room.

        Args:
            keys: (n, d), any n; of more than `num_keys` the last are kept.

        Raises:
            TypeError: keys that are not floating.
            ValueError: keys of another shape, NaN or infinite.
        """
        check_hidden("keys", keys, self.features)
        if keys.ndim != 2:
            raise ValueError(f"keys: expected shape (n, {self.features}), got {tuple(keys.shape)}")
        check_finite("keys", keys)
        once(lambda: self._push(keys), self)

    @torch.no_grad()
    def _push(self, keys: Tensor) -> None:
        newest = keys[-self.num_keys :]
        number = torch.arange(len(keys) - len(newest), len(keys), device=self.storage.device) + self.num_pushed
        place = number % self.num_keys

        def overwritten() -> Overwritten:
            return {"storage": (place, self.storage[place]), "num_pushed": (None, self.num_pushed.clone())}

        self._versions.before_change(overwritten)
        self.storage[place] = newest.to(self.storage)
        self.num_pushed += len(keys)

    def _tables(self) -> Tables:
        return {"storage": self.storage, "num_pushed": self.num_pushed}

    def extra_repr(self) -> str:
        """Describe the queue by its sizes."""
        return f"num_keys={self.num_keys}, features={self.features}"
