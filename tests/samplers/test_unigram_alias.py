"""Unigram draws read off an alias table: each class as often as declared, the same whatever made the table."""

import math

import pytest
import torch
from sampler_laws import probabilities, seeded
from torch import Tensor

from tables import tables_of
from vastmax import kernels
from vastmax.samplers import Sampler, Unigram

GENERATOR = torch.Generator().manual_seed(0)
COUNTS = {
    "one class": [3],
    "one class counted": [0, 0, 7, 0],
    "two": [1, 3],
    "equal": [1] * 1000,
    "one huge": [1.0] * 500 + [1e300] + [1.0] * 500,
    "geometric over 300 orders": 10.0 ** -torch.arange(301, dtype=torch.float64),
    "half never counted": torch.randn(10_007, dtype=torch.float64, generator=GENERATOR).relu(),
    "zipf": 1e9 / (1 + torch.randperm(10**6, generator=GENERATOR)).double(),
}
every_count = pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())


class GridSampler(Unigram):
    """Draws once in the middle of each of n equal parts of [0, 1), instead of at n uniforms."""

    def _uniform(self, shape, generator):  # type: ignore[no-untyped-def]
        return ((torch.arange(math.prod(shape), dtype=torch.float64) + 0.5) / math.prod(shape)).view(*shape)


def implied(sampler: Unigram) -> Tensor:
    """The probability of each class according to the table."""
    threshold, other = sampler._alias_table.unbind(1)
    return (threshold + torch.zeros_like(threshold).index_add_(0, other.long(), 1 - threshold)) / len(threshold)


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [([1, 1], [16, 16]), ([4, 0, 3, 1], [16, 0, 12, 4]), ([0, 31, 1, 0], [0, 31, 1, 0]), ([0, 1, 0], [0, 32, 0])],
)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_evenly_spaced_uniforms_draw_each_class_by_its_share(
    counts: list[int], drawn: list[int], backend: str
) -> None:
    with kernels.use(backend):
        ids = GridSampler(counts, power=1).sample((4, 8)).ids
    assert torch.bincount(ids.flatten(), minlength=len(counts)).tolist() == drawn


@pytest.mark.parametrize("power", [0, 0.75, 1.0])
@every_count
def test_the_table_holds_q(counts: object, power: float) -> None:
    sampler = Unigram(counts, power)
    q = probabilities(sampler)
    error = ((implied(sampler) - q) / q.where(q > 0, 1.0)).abs()
    # The rounding of all q together falls to the class of the greatest.
    assert error[q.argmax()] < 1e-12 + 4 * 2.0**-53 / q.max()
    error[q.argmax()] = 0
    assert error.max() < 1e-12


@every_count
def test_no_position_draws_a_class_never_counted(counts: object) -> None:
    sampler = Unigram(counts)
    threshold, other = sampler._alias_table.unbind(1)
    never = probabilities(sampler) == 0
    assert not threshold[never].any()
    assert not never[other.long()].any()


@pytest.mark.parametrize("unique", [False, True])
@every_count
def test_backends_draw_alike(counts: object, unique: bool) -> None:
    drawn = []
    for backend in ("torch", "numba"):
        with kernels.use(backend):
            sampler: Sampler = Unigram(counts, unique=unique)
            k = min(100, sampler.support_size)
            drawn.append(sampler.sample((50, k), generator=seeded(3)))
    for mine, other in zip(*drawn, strict=True):
        assert torch.equal(torch.as_tensor(mine), torch.as_tensor(other))


def test_a_table_moves_between_backends() -> None:
    with kernels.use("torch"):
        sampler = Unigram(COUNTS["zipf"])
        expected = sampler.sample((3, 1000), generator=seeded()).ids
    with kernels.use("numba"):
        assert torch.equal(sampler.sample((3, 1000), generator=seeded()).ids, expected)


def test_a_draw_takes_one_uniform() -> None:
    generator, other = seeded(), seeded()
    Unigram([1, 2, 3]).sample((10, 7), generator=generator)
    torch.rand(70, dtype=torch.float64, generator=other)
    assert torch.equal(generator.get_state(), other.get_state())


def test_tables_take_24_bytes_a_class() -> None:
    assert sum(table.nbytes for table in tables_of(Unigram([1] * 1000)).values()) == 24 * 1000


def test_sets_of_no_draws() -> None:
    assert Unigram([1, 2, 3]).sample((0, 5)).ids.shape == (0, 5)
