"""A sampler is a module: it moves, copies and pickles, and leaves a head's state dict and dtype alone."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sampler_laws import seeded
from torch import nn

from tables import tables_of
from vastmax.samplers import LogUniform, Mixture, Sampler, Uniform, Unigram

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "uniform": lambda: Uniform(7),
    "log_uniform": lambda: LogUniform(7, unique=True),
    "unigram": lambda: Unigram([1, 5, 2, 0, 9, 4, 3], unique=True),
    "mixture": lambda: Mixture([Unigram([1, 5, 2, 0, 9, 4, 3]), Uniform(7)], [1, 2]),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


class Head(nn.Linear):
    def __init__(self, sampler: Sampler) -> None:
        super().__init__(3, 7)
        self.sampler = sampler


def assert_same(sampler: Sampler, other: Sampler) -> None:
    for size in (4, (3, 4)):
        first, second = (s.sample(size, generator=seeded()) for s in (sampler, other))
        assert torch.equal(first.ids, second.ids)
        assert torch.equal(first.log_expected_count, second.log_expected_count)
        assert first.unique == second.unique


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.float(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to(device="cpu", dtype=torch.float16),
        lambda module: module.type(torch.float16),
        lambda module: module.half().double(),
    ],
    ids=["half", "bfloat16", "float", "to dtype", "to device and dtype", "type", "half and back"],
)
@every_sampler
def test_a_cast_of_the_head_leaves_the_tables_alone(
    make: Callable[[], Sampler], cast: Callable[[nn.Module], nn.Module]
) -> None:
    head = Head(make())
    tables = list(tables_of(head.sampler).values())
    assert cast(head) is head
    for table, was in zip(tables_of(head.sampler).values(), tables, strict=True):
        assert table.dtype == torch.float64
        assert torch.equal(table, was)
    assert_same(head.sampler, make())


@every_sampler
def test_the_tables_move_with_the_head(make: Callable[[], Sampler]) -> None:
    head = Head(make()).to("meta", torch.float16)
    assert head.weight.dtype == torch.float16
    assert head.sampler.device.type == "meta"
    assert {(table.device.type, table.dtype) for table in tables_of(head.sampler).values()} == {
        ("meta", torch.float64)
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_sampler
def test_draws_are_made_where_the_tables_are(make: Callable[[], Sampler]) -> None:
    sampler = Head(make()).to("cuda").sampler
    for size in (4, (3, 4)):
        candidates = sampler.sample(size, generator=torch.Generator("cuda").manual_seed(0))
        assert candidates.ids.is_cuda
        expected = make().log_expected_count(candidates.ids.cpu(), size)
        expected = expected.masked_fill(candidates.padding.cpu(), math.inf)
        torch.testing.assert_close(candidates.log_expected_count.cpu(), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Uniform(7, device="meta"),
        lambda: LogUniform(7, device="meta"),
        lambda: Mixture([Uniform(7, device="meta"), LogUniform(7, device="meta")], [1, 2]),
    ],
)
def test_a_sampler_may_be_made_on_a_device(make: Callable[[], Sampler]) -> None:
    assert {table.device.type for table in tables_of(make()).values()} == {"meta"}


@every_sampler
def test_the_state_dict_is_that_of_a_linear_layer(make: Callable[[], Sampler]) -> None:
    head, linear = Head(make()), nn.Linear(3, 7)
    assert head.state_dict().keys() == linear.state_dict().keys()
    head.load_state_dict(linear.state_dict())
    linear.load_state_dict(head.state_dict())
    assert not list(head.sampler.parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))])
@every_sampler
def test_copies_draw_alike(make: Callable[[], Sampler], copied: Callable[[Sampler], Sampler]) -> None:
    sampler = make()
    other = copied(sampler)
    assert repr(other) == repr(sampler)
    assert_same(other, sampler)


def test_repr() -> None:
    assert repr(Uniform(10)) == "Uniform(num_classes=10, unique=False)"
    assert repr(LogUniform(10, unique=True)) == "LogUniform(num_classes=10, unique=True)"
    unigram = Unigram(np.ones(10000), unique=True)
    assert repr(unigram) == "Unigram(num_classes=10000, power=0.75, unique=True)"
    mixture = repr(Mixture([Uniform(10), LogUniform(10)], [1, 3]))
    assert mixture.startswith("Mixture(\n  num_classes=10, weights=[0.25, 0.75], unique=False\n")
    assert "Uniform(num_classes=10, unique=False)" in mixture


class Constant(Sampler):
    """The least a sampler of one's own has to say."""

    def _draw(self, shape, generator):  # type: ignore[no-untyped-def]
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def _log_prob(self, ids):  # type: ignore[no-untyped-def]
        return torch.where(ids == 0, 0.0, -math.inf).double()


def test_a_sampler_of_ones_own() -> None:
    sampler = Constant(3)
    ids, log_expected_count, _ = sampler.sample((2, 4))
    assert torch.equal(ids, torch.zeros(2, 4, dtype=torch.int64))
    torch.testing.assert_close(log_expected_count.exp(), torch.full((2, 4), 4.0, dtype=torch.float64))
    assert sampler.log_prob(torch.arange(3)).tolist() == [0.0, -math.inf, -math.inf]


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Sampler(3)
