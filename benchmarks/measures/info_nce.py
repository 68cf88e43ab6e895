"""InfoNCE of a large batch, forward and backward, beside the N x N matrix of logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contest import rows_of
from benchmarks.floors import best_products, every_way
from benchmarks.measures.exact_loss import forward_backward
from benchmarks.rows import Row, Target
from benchmarks.settings import Settings
from benchmarks.timing import Timer, side_by_side
from vastmax import heads

ROWS, FEATURES = 32_768, 256
BLOCKS = (1024, 4096)
TEMPERATURE = 0.07
OURS, PLAIN = "vastmax InfoNCE", "torch N x N logits + cross_entropy"


def plain(query: Tensor, key: Tensor, target: Tensor) -> Tensor:
    """Form every logit."""
    cosines = functional.normalize(query, dim=1) @ functional.normalize(key, dim=1).T
    return functional.cross_entropy(cosines / TEMPERATURE, target)


def ours(query: Tensor, key: Tensor, target: Tensor) -> Tensor:
    """Take ours, to which a row's target is its own key."""
    loss: Tensor = heads.InfoNCE(TEMPERATURE)(query, key)
    return loss


def contenders(rows: int) -> dict[str, Callable[[], Timer]]:
    """Both on the same rows."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, FEATURES, generator=generator)
    key = query + torch.randn(rows, FEATURES, generator=generator)
    given = (query.requires_grad_(), key.requires_grad_(), torch.arange(rows))
    return {OURS: partial(forward_backward, ours, given), PLAIN: partial(forward_backward, plain, given)}


def run(settings: Settings) -> list[Row]:
    """Measure, and return the rows."""
    rows = settings.scaled(ROWS, least=64)
    side_by_side(contenders(min(rows, 1024)), rounds=1)
    products = every_way(rows, rows, FEATURES, BLOCKS, most_blocks=2)
    bare = {f"{product}": product.prepare for product in products}
    found = side_by_side(
        contenders(rows),
        floors=bare,
        rounds=settings.rounds if settings.full else min(settings.rounds, 2),
        memory=True,
        warm=settings.scale == 1,
    )
    floor = best_products(products, [found.pop(name) for name in bare])
    ratio = found[OURS].over(found[PLAIN])
    peak = found[OURS].peak_bytes

    def targets(name: str) -> list[Target]:
        if name != OURS:
            return []
        megabytes = None if peak is None else peak / 1e6
        return [Target("over N x N logits", ratio, 1.0), Target("memory", megabytes, 300.0, unit="MB")]

    measure = f"InfoNCE, forward + backward, N={rows:,} d={FEATURES}"
    return rows_of(measure, found, floor=floor, peers={"over N x N logits": PLAIN}, targets=targets)
