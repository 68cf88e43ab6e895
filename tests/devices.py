"""Devices that need not be there: their tensors have shapes, dtypes and no values, so that reading one raises."""

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vastmax import kernels

SHAPES = "cuda" if torch.backends.cuda.is_built() else "meta"
"""The device type: a build of torch for CPUs knows no gradient on a CUDA device, not even of shapes."""


@contextmanager
def shapes_alone():
    """Within it tensors of device `SHAPES` can be computed with, by torch's operators."""
    with kernels.use("torch"):
        if SHAPES == "meta":
            yield
        else:
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield


def without_values(module):
    """Move a module to the device, within `shapes_alone`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=SHAPES))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
