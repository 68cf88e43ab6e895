"""The queue of keys against a Python deque."""

from collections import deque

import pytest
import torch

from vastmax.contrastive.key_queue import KeyQueue


@pytest.mark.parametrize(
    "sizes", [[1] * 12, [2, 2, 2, 2], [3, 3, 3, 3], [5, 1], [4, 7, 2], [12, 0, 3], [5, 5], [0]]
)
def test_holds_what_a_deque_holds(sizes):
    """Batches that divide the queue, that wrap around its end, that are larger than it, that are empty."""
    queue, reference, total = KeyQueue(5, 2), deque(maxlen=5), 0
    for size in sizes:
        keys = torch.arange(total, total + size).unsqueeze(-1) + torch.tensor([0.0, 0.5])
        queue.push(keys)
        reference.extend(keys)
        total += size
        assert len(queue) == len(reference)
        expected = torch.stack(list(reference)) if reference else torch.zeros(0, 2)
        assert torch.equal(queue.keys(), expected)


def test_keys_are_a_copy_without_gradient():
    """The keys of a loss that is yet to be backpropagated stay as they were when the queue moves on."""
    queue, keys = KeyQueue(2, 2), torch.ones(2, 2, requires_grad=True)
    queue.push(keys * 3)
    held = queue.keys()
    queue.push(torch.zeros(2, 2))
    assert not held.requires_grad
    assert torch.equal(held, torch.full((2, 2), 3.0))


def test_state_dict_restores_keys_and_place():
    queue, other = KeyQueue(3, 2), KeyQueue(3, 2)
    queue.push(torch.arange(8.0).view(4, 2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(torch.full((1, 2), 9.0))
    assert torch.equal(queue.keys(), other.keys())
    assert queue.keys()[:, 0].tolist() == [4.0, 6.0, 9.0]
    assert not list(queue.parameters())


def test_dtype_and_device():
    queue = KeyQueue(3, 2, dtype=torch.bfloat16, device="cpu")
    queue.push(torch.ones(1, 2, dtype=torch.float64))
    assert queue.keys().dtype == torch.bfloat16
    assert KeyQueue(3, 2, device="meta").storage.is_meta


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KeyQueue(0, 2), ValueError, "num_keys: expected an integer of at least 1, got 0"),
        (lambda: KeyQueue(2, 1.5), TypeError, "features: expected an integer"),
        (lambda: KeyQueue(2, 2, dtype=torch.int64), TypeError, "dtype: expected a floating-point dtype"),
        (
            lambda: KeyQueue(2, 2).push(torch.ones(2, 3)),
            ValueError,
            r"keys: expected shape \(..., 2\), got \(2, 3\)",
        ),
        (lambda: KeyQueue(2, 2).push(torch.ones(2)), ValueError, r"keys: expected shape \(n, 2\), got \(2,\)"),
        (lambda: KeyQueue(2, 2).push(torch.ones(2, 2).long()), TypeError, "keys: expected a floating-point tensor"),
        (lambda: KeyQueue(2, 2).push(torch.full((1, 2), torch.nan)), ValueError, "keys: expected finite values"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
