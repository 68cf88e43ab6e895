"""Vectors of tokens from their neighbours in a text."""

import pytest
import torch

from vastmax.data.contexts import context_vectors

TEXT = torch.randint(6, (400,), generator=torch.Generator().manual_seed(0))


def test_inner_products_are_those_of_the_square_roots_of_neighbour_shares():
    """With all components kept, X X^T is the matrix of Bhattacharyya coefficients, counted here pair by pair."""
    share = torch.zeros(6, 12)
    for before, after in zip(TEXT[:-1].tolist(), TEXT[1:].tolist(), strict=True):
        share[after, before] += 1
        share[before, 6 + after] += 1
    rows = (share / TEXT.bincount(minlength=6)[:, None]).sqrt()
    x = context_vectors(TEXT, 6, smoothing=0.0)
    assert x.shape == (6, 6)
    torch.testing.assert_close(x @ x.t(), rows @ rows.t(), atol=1e-4, rtol=1e-4)


def test_smoothing_draws_rare_tokens_to_the_mean():
    text = torch.tensor([0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 1])
    counts = text.bincount(minlength=4).unsqueeze(-1)
    plain = context_vectors(text, 4, smoothing=0.0)
    mean = (counts * plain).sum(0) / counts.sum()
    expected = mean + counts / (counts + 2.5) * (plain - mean)
    expected[3] = mean  # not in the text
    torch.testing.assert_close(context_vectors(text, 4, smoothing=2.5), expected)


def test_it_repeats_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first = context_vectors(TEXT, 6, width=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(context_vectors(TEXT, 6, width=3), first)


def test_short_texts():
    for text in ([], [1]):
        assert torch.equal(context_vectors(torch.tensor(text, dtype=torch.int64), 3, width=2), torch.zeros(3, 2))


def test_errors():
    with pytest.raises(ValueError, match=r"tokens: expected class ids in \[0, 3\), got 5 at \(1,\)"):
        context_vectors(torch.tensor([0, 5]), 3)
    with pytest.raises(ValueError, match="smoothing: expected a finite number of at least 0, got -1"):
        context_vectors(TEXT, 6, smoothing=-1.0)
    with pytest.raises(ValueError, match="width: expected an integer of at least 1, got 0"):
        context_vectors(TEXT, 6, width=0)
