"""How large a tensor a piece of code makes at most."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Within this context, `largest` is the number of elements of the largest dense tensor made so far.

    A view of a tensor that is there already is none.
    """

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor) and not x.is_sparse}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            if dense and tensor.untyped_storage().data_ptr() not in there:
                self.largest = max(self.largest, tensor.numel())
        return out
