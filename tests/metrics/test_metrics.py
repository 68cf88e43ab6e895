"""The metrics against the formula over all rows at once."""

import math

import pytest
import torch

from vastmax.metrics import PartitionSpread, Perplexity


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_batches_merge_to_the_whole(batch):
    values = torch.randn(10, generator=torch.Generator().manual_seed(0)) + 1000
    spread, perplexity = PartitionSpread(), Perplexity()
    for rows in values.split(batch):
        spread.update(rows)
        perplexity.update(rows / 1000)
    spread.update(values[:0])
    assert spread.mean() == pytest.approx(values.double().mean().item(), abs=1e-9)
    assert spread.std() == pytest.approx(values.double().std(correction=0).item(), abs=1e-9)
    assert perplexity.compute() == pytest.approx(math.exp(values.double().mean() / 1000), rel=1e-6)


def test_reading_before_a_row_is_an_error():
    for read in (PartitionSpread().mean, PartitionSpread().std, Perplexity().compute):
        with pytest.raises(ValueError, match="expected at least one row"):
            read()


def test_rows_that_do_not_count():
    perplexity = Perplexity()
    perplexity.update(torch.tensor([2.0, 0.0, 0.0]).log().nan_to_num(0.0), torch.tensor([True, False, False]))
    assert perplexity.compute() == pytest.approx(2.0)


def test_a_broken_model_is_not_a_hopeless_one():
    perplexity = Perplexity()
    perplexity.update(torch.tensor([torch.nan]))
    assert math.isnan(perplexity.compute())


def test_a_hopeless_model_has_infinite_perplexity():
    perplexity = Perplexity()
    perplexity.update(torch.tensor([1e9]))
    assert perplexity.compute() == math.inf
