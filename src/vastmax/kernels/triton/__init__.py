"""The kernels on a CUDA device, compiled by Triton on first use."""
