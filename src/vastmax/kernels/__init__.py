"""Kernels: what costs the time, each with one meaning and up to three implementations.

`reference` says in torch's operators what a kernel means; `numba` and `triton` do the same on a CPU and on a CUDA
device in fewer passes over the memory. `use` chooses among them, and every test of a kernel is equality.
"""

from vastmax.kernels.choice import backend, has_kernel, implementation, use

__all__ = ["backend", "has_kernel", "implementation", "use"]
