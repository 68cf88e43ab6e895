"""Heads on several processes, beside the wrappers of `torch.distributed`."""

from vastmax.parallel.rows import reduce_rows
from vastmax.parallel.shards import fully_shard

__all__ = ["fully_shard", "reduce_rows"]
