"""Backpropagation by chunks against one plain backward pass over the same chunks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from vastmax.contrastive.gradient_cache import cached_backward
from vastmax.functional.contrastive import info_nce
from vastmax.heads.info_nce import InfoNCE

N, D = 10, 5


class Tower(nn.Module):
    """An encoder with dropout that can be called with one tensor, two, or by name."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3), nn.Dropout(0.1))

    def forward(self, x, shift=None):
        return self.layers(x if shift is None else x + shift)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def towers(shared):
    torch.manual_seed(0)
    encoder = Tower().double()
    return [encoder, encoder] if shared else [encoder, Tower().double()]


def call(encoder, x):
    return encoder(*x) if isinstance(x, tuple) else encoder(**x) if isinstance(x, dict) else encoder(x)


def plain_backward(loss, encoders, chunks):
    """What `cached_backward` does, with all graphs alive at once."""
    value = loss(*(torch.cat([call(f, x) for x in batch]) for f, batch in zip(encoders, chunks, strict=True)))
    value.backward()
    return value.detach()


def gradients(*modules):
    return [p.grad for m in modules for p in m.parameters()]


def assert_same(mine, theirs):
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 5, 10, 99])
def test_equals_plain_backpropagation(shared, chunk_size):
    """With dropout, a learned temperature, chunks that do not divide the batch; the random state after, too."""
    inputs = [draw(N, D, seed=1), draw(N, D, seed=2)]
    encoders, loss = towers(shared), InfoNCE(0.5, learn_temperature=True, symmetric=True).double()
    copies, their_loss = copy.deepcopy((encoders, loss))

    def noisy(loss):
        return lambda query, key: loss(functional.dropout(query, 0.2), key)

    torch.manual_seed(3)
    theirs = plain_backward(noisy(their_loss), copies, [x.split(chunk_size) for x in inputs])
    after = torch.rand(5)
    torch.manual_seed(3)
    ours = cached_backward(noisy(loss), encoders, inputs, chunk_size=chunk_size)
    assert torch.equal(torch.rand(5), after)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not ours.requires_grad
    assert_same(gradients(*encoders, loss), gradients(*copies, their_loss))


def test_inputs_as_tuples_and_dicts():
    (encoder, other), x = towers(False), [draw(N, D, seed=s) for s in range(4)]
    encoders, copies = [encoder, other], copy.deepcopy([encoder, other])
    inputs = [(x[0], x[1]), {"shift": x[2], "x": x[3]}]
    chunks = [
        list(zip(x[0].split(4), x[1].split(4), strict=True)),
        [{"x": a, "shift": b} for a, b in zip(x[3].split(4), x[2].split(4), strict=True)],
    ]
    torch.manual_seed(3)
    theirs = plain_backward(info_nce, copies, chunks)
    torch.manual_seed(3)
    torch.testing.assert_close(cached_backward(info_nce, encoders, inputs, chunk_size=4), theirs)
    assert_same(gradients(*encoders), gradients(*copies))


def test_negatives_of_another_number_and_accumulation():
    """A third input with more rows, each row's loss drawn once, gradients added to what is there."""
    encoders, inputs = [*towers(False), Tower().double()], [draw(n, D, seed=n) for n in (6, 6, 9)]
    inputs[1] = inputs[1] + 1
    copies = copy.deepcopy(encoders)
    for _ in range(2):
        state = torch.get_rng_state()
        plain_backward(info_nce, copies, [x.split(4) for x in inputs])
        torch.set_rng_state(state)
        cached_backward(info_nce, encoders, inputs, chunk_size=4)
    assert_same(gradients(*encoders), gradients(*copies))


def test_a_scaled_loss_has_scaled_gradients():
    encoders, inputs = towers(False), [draw(N, D, seed=1), draw(N, D, seed=2)]
    copies = copy.deepcopy(encoders)
    torch.manual_seed(3)
    ours = cached_backward(lambda q, k: 1024 * info_nce(q, k), encoders, inputs, chunk_size=4)
    torch.manual_seed(3)
    theirs = cached_backward(info_nce, copies, inputs, chunk_size=4)
    torch.testing.assert_close(ours, 1024 * theirs)
    assert_same(gradients(*encoders), [1024 * g for g in gradients(*copies)])


def test_autocast_in_both_passes():
    """Embeddings are the same twice, in bfloat16, and the gradients those of plain mixed precision."""
    torch.manual_seed(0)
    encoders, inputs = [Tower(), Tower()], [draw(N, D, seed=s).float() for s in (1, 2)]
    copies, seen, backward_casts = copy.deepcopy(encoders), [], []

    def recorded(x):
        seen.append(encoders[0](x))
        if seen[-1].requires_grad:
            seen[-1].register_hook(lambda _: backward_casts.append(torch.is_autocast_enabled("cpu")))
        return seen[-1]

    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        cached_backward(info_nce, [recorded, encoders[1]], inputs, chunk_size=4)
    assert backward_casts == [False] * 3
    assert all(a.dtype == torch.bfloat16 and torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = [torch.cat([f(chunk) for chunk in x.split(4)]) for f, x in zip(copies, inputs, strict=True)]
        value = info_nce(*embeddings)
    value.backward()
    for mine, other in zip(gradients(*encoders), gradients(*copies), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2 * other.abs().max().item())


def test_a_frozen_encoder_and_an_unused_embedding_are_encoded_once():
    calls = [0, 0]
    frozen = nn.Linear(D, 3).requires_grad_(False)
    trained, unused = nn.Linear(D, 3), nn.Linear(D, 3)

    def counted(number, module):
        def encode(x):
            calls[number] += 1
            return module(x)

        return encode

    inputs = [torch.randn(N, D)] * 3
    cached_backward(
        lambda q, k, _: info_nce(q, k), [trained, counted(0, frozen), counted(1, unused)], inputs, chunk_size=5
    )
    assert trained.weight.grad is not None
    assert frozen.weight.grad is unused.weight.grad is None
    assert calls == [3, 2]  # that the frozen one has nothing to train shows in its first chunk


def test_activations_of_one_chunk_alone_are_alive():
    """Each chunk has a first pass without a graph and a second with one."""
    rows = []

    class Recorded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(D, 3)

        def forward(self, x):
            rows.append((len(x), torch.is_grad_enabled()))
            return self.layer(x)

    cached_backward(info_nce, [Recorded(), nn.Linear(D, 3)], [torch.randn(N, D)] * 2, chunk_size=4)
    assert rows == [(4, False), (4, False), (2, False), (4, True), (4, True), (2, True)]


def test_batch_normalisation_in_training_is_refused_and_in_evaluation_not():
    encoder = nn.Sequential(nn.Linear(D, 3), nn.Sequential(nn.BatchNorm1d(3)))
    inputs = [torch.randn(N, D)] * 2
    with pytest.raises(ValueError, match=r"encoders\[1\]: .* got BatchNorm1d '1.0' in training mode"):
        cached_backward(info_nce, [nn.Linear(D, 3), encoder], inputs, chunk_size=4)
    encoder.eval()
    copied = copy.deepcopy(encoder)
    cached_backward(info_nce, [encoder, encoder], inputs, chunk_size=4)
    plain_backward(info_nce, [copied, copied], [[x] for x in inputs])
    for mine, other in zip(gradients(encoder), gradients(copied), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


class Pair(nn.Module):
    """Two encoders in one module, called by their methods."""

    def __init__(self):
        super().__init__()
        self.text, self.image = nn.Linear(D, 3), nn.Sequential(nn.Linear(D, 3), nn.BatchNorm1d(3))

    def encode_text(self, x):
        return self.text(x)

    def encode_image(self, x, scale=1.0):
        return scale * self.image(x)


def encode(model, x):
    return model(x)


@pytest.mark.parametrize(
    "encoder",
    [
        lambda model: model.encode_image,
        lambda model: partial(model.encode_image, scale=2.0),
        lambda model: partial(partial(encode, model.image)),
        lambda model: partial(torch.nn.Module.__call__, model.image),
        lambda model: partial(lambda x, scale, f: f(x, scale=scale), scale=2.0, f=model.encode_image),
    ],
    ids=["method", "partial of a method", "argument", "first argument", "keyword"],
)
def test_batch_normalisation_behind_a_method_or_a_partial_is_refused(encoder):
    model, inputs = Pair(), [torch.randn(N, D)] * 2
    with pytest.raises(ValueError, match=r"encoders\[1\]: .* got BatchNorm1d '(image\.)?1' in training mode"):
        cached_backward(info_nce, [nn.Linear(D, 3), encoder(model)], inputs, chunk_size=4)
    assert all(gradient is None for gradient in gradients(model))
    model.eval()
    cached_backward(info_nce, [nn.Linear(D, 3), encoder(model)], inputs, chunk_size=4)
    assert model.image[0].weight.grad is not None


X = torch.ones(N, D)


@pytest.mark.parametrize(
    ("encoders", "inputs", "chunk_size", "error", "message"),
    [
        ([nn.Identity()], [X, X], 4, ValueError, "encoders: expected one for each input, got 1 and 2 inputs"),
        ([], [], 4, ValueError, "encoders: expected one for each input, got 0 and 0"),
        ([3, 3], [X, X], 4, TypeError, r"encoders\[0\]: expected a callable, got int"),
        ([nn.Identity()] * 2, [X, X], 0, ValueError, "chunk_size: expected an integer of at least 1, got 0"),
        ([nn.Identity()] * 2, [X, "x"], 4, TypeError, r"inputs\[1\]: expected a tensor, .* got one that is str"),
        ([nn.Identity()] * 2, [(X, 3), X], 4, TypeError, r"inputs\[0\]: expected a tensor, .* got one that is int"),
        (
            [nn.Identity()] * 2,
            [(X, X[:3]), X],
            4,
            ValueError,
            r"inputs\[0\]: expected tensors of one number of rows",
        ),
        ([nn.Identity()] * 2, [X[:0], X], 4, ValueError, r"inputs\[0\]: .* at least 1, got shapes \[\(0, 5\)\]"),
        ([nn.Identity()] * 2, [X, {}], 4, ValueError, r"inputs\[1\]: .* got shapes \[\]"),
        ([nn.Identity()] * 2, [X, torch.tensor(1.0)], 4, ValueError, r"inputs\[1\]: .* got shapes \[\(\)\]"),
        (
            [lambda x: x.sum(0)] * 2,
            [X, X],
            4,
            ValueError,
            r"encoders: expected an embedding \(4, ...\), .* got \(5,\)",
        ),
        ([lambda x: x.long()] * 2, [X, X], 4, TypeError, "encoders: .* floating-point tensor, got torch.int64"),
        ([lambda x: (x, x)] * 2, [X, X], 4, TypeError, "encoders: .* floating-point tensor, got tuple"),
    ],
)
def test_errors(encoders, inputs, chunk_size, error, message):
    with pytest.raises(error, match=message):
        cached_backward(info_nce, encoders, inputs, chunk_size=chunk_size)


def test_a_loss_that_is_no_scalar():
    with pytest.raises(ValueError, match=r"loss: expected a scalar of all rows, got \(10,\)"):
        cached_backward(lambda q, k: info_nce(q, k, reduction="none"), [nn.Identity()] * 2, [X, X], chunk_size=4)


def test_a_loss_without_a_gradient():
    for constant in (lambda q, k: torch.tensor(1.0), lambda q, k: info_nce(q.detach(), k.detach())):
        with pytest.raises(ValueError, match="loss: expected a value that depends on the embeddings"):
            cached_backward(constant, [nn.Linear(D, 3)] * 2, [X, X], chunk_size=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_repeats_itself_on_a_device():
    encoders, inputs = towers(False), [draw(N, D, seed=1).cuda(), draw(N, D, seed=2).cuda()]
    encoders = [f.cuda() for f in encoders]
    copies = copy.deepcopy(encoders)
    torch.manual_seed(3)
    plain_backward(info_nce, copies, [x.split(4) for x in inputs])
    after = torch.rand(5, device="cuda")
    torch.manual_seed(3)
    cached_backward(info_nce, encoders, inputs, chunk_size=4)
    assert torch.equal(torch.rand(5, device="cuda"), after)
    assert_same(gradients(*encoders), gradients(*copies))


def test_a_loss_that_is_no_function_is_refused_by_name():
    with pytest.raises(TypeError, match="loss: expected a callable, got str"):
        cached_backward("x", [nn.Identity()] * 2, [X, X], chunk_size=4)
