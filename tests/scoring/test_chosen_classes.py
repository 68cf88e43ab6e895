"""chosen_logits against indexing the full logit matrix."""

import copy

import pytest
import torch
from torch.nn import functional

from vastmax import kernels
from vastmax.kernels.reference import gather
from vastmax.scoring import chosen_logits

V, D = 9, 4
ID_SETS = {
    "shared": [torch.tensor([3, 0, 3, 8])],
    "own": [torch.tensor([[1, 1], [0, 8], [8, 2], [5, 1], [7, 7]])],
    "target": [torch.tensor([[1], [0], [8], [5], [1]])],
    "target and shared": [torch.tensor([[1], [0], [8], [5], [1]]), torch.tensor([3, 0, 1, 3])],
    "target and own": [torch.tensor([[1], [0], [8], [5], [1]]), torch.arange(35).reshape(5, 7) % V],
    "no candidates": [torch.tensor([[1], [0], [8], [5], [1]]), torch.zeros(0, dtype=torch.int64)],
    "no candidates of a row": [torch.zeros(5, 0, dtype=torch.int64)],
}


def problem(rows=(5,), dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(*rows, D, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=dtype).requires_grad_()
    bias = torch.randn(V, generator=g, dtype=dtype).requires_grad_()
    return hidden, weight, bias, g


def by_indexing(hidden, weight, bias, ids):
    logits = functional.linear(hidden, weight, bias)
    return logits[..., ids] if ids.ndim == 1 else logits.gather(-1, ids)


@pytest.mark.parametrize(("backend", "gathered"), [("torch", 1), ("torch", 1 << 20), ("numba", 0)])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("id_sets", ID_SETS.values(), ids=ID_SETS)
def test_equals_indexing_all_logits(id_sets, with_bias, sparse, backend, gathered, monkeypatch):
    monkeypatch.setattr(gather, "GATHERED_ELEMENTS", gathered)
    hidden, weight, bias, g = problem()
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    with kernels.use(backend):
        ours = chosen_logits(hidden, weight, *id_sets, linear_bias=bias if with_bias else None, sparse=sparse)
    theirs = [by_indexing(hidden, weight, bias if with_bias else None, ids) for ids in id_sets]
    upstream = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    with kernels.use(backend):
        mine = torch.autograd.grad(ours, inputs, upstream)
    other = torch.autograd.grad(theirs, inputs, upstream)
    for index, (m, o) in enumerate(zip(mine, other, strict=True)):
        if index > 0 and sparse:
            touched = torch.cat([ids.reshape(-1) for ids in id_sets]).unique()
            assert m.is_sparse
            assert m.is_coalesced()
            assert torch.equal(m.indices().squeeze(0), touched)
            m = m.to_dense()
        torch.testing.assert_close(m, o)


def test_leading_axes_are_rows():
    hidden, weight, bias, _ = problem((2, 3))
    own = torch.arange(24).reshape(2, 3, 4) % V
    shared = torch.tensor([1, 2])
    ours = chosen_logits(hidden, weight, own, shared, linear_bias=bias)
    for mine, ids in zip(ours, (own, shared), strict=True):
        torch.testing.assert_close(mine, by_indexing(hidden, weight, bias, ids))


@pytest.mark.parametrize("id_sets", ID_SETS.values(), ids=ID_SETS)
def test_gradcheck(id_sets):
    hidden, weight, bias, _ = problem()
    assert torch.autograd.gradcheck(
        lambda h, w, b: chosen_logits(h, w, *id_sets, linear_bias=b), (hidden, weight, bias)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparse", [False, True])
def test_half_precision_is_computed_in_float32(dtype, sparse):
    half = [x.detach().to(dtype).requires_grad_() for x in problem()[:3]]
    full = [x.detach().double().requires_grad_() for x in half]
    id_sets = ID_SETS["target and own"] + ID_SETS["shared"]
    ours = chosen_logits(half[0], half[1], *id_sets, linear_bias=half[2], sparse=sparse)
    theirs = [by_indexing(*full, ids) for ids in id_sets]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)
    upstream = [torch.randn_like(t) for t in theirs]
    mine = torch.autograd.grad(ours, half, [u.float() for u in upstream])
    other = torch.autograd.grad(theirs, full, upstream)
    for m, o in zip(mine, other, strict=True):
        assert m.dtype == dtype
        m = m.to_dense() if m.is_sparse else m
        torch.testing.assert_close(m.double(), o, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 10)


def test_gradients_of_shared_use_accumulate():
    """Tied embeddings: an embedding and a head give one parameter two sparse gradients."""
    _, weight, _, _ = problem()
    tokens = torch.tensor([0, 1, 1, 4, 8])
    (logit,) = chosen_logits(functional.embedding(tokens, weight, sparse=True), weight, tokens, sparse=True)
    logit.square().sum().backward()
    dense = copy.deepcopy(weight.detach()).requires_grad_()
    (dense[tokens] @ dense[tokens].t()).square().sum().backward()
    torch.testing.assert_close(weight.grad.to_dense(), dense.grad)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.tensor([V]), ValueError, r"ids: expected class ids in \[0, 9\), got 9"),
        (torch.tensor([-1]), ValueError, "got -1"),
        (torch.tensor([1.0]), TypeError, "ids: expected int64"),
        (torch.zeros(4, 2, dtype=torch.int64), ValueError, "ids: expected shape"),
    ],
)
def test_errors(ids, error, message):
    hidden, weight, _, _ = problem()
    with pytest.raises(error, match=message):
        chosen_logits(hidden, weight, ids)
