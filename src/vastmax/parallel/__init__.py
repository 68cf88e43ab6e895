"""Heads on several processes, beside `torch.distributed`'s own wrappers."""

from vastmax.parallel.rows import reduce_rows

__all__ = ["reduce_rows"]
