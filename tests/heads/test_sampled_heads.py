"""What sampled heads promise beyond the conformance suite."""

import math

import pytest
import torch

from vastmax import heads, samplers

V, D = 9, 4


def batch(rows=5):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, D, generator=g, dtype=torch.float64).requires_grad_()
    return hidden, torch.randint(V, (rows,), generator=g), g


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "noise", [samplers.Uniform(V, unique=True), samplers.Unigram(range(1, V + 1), unique=True)]
)
def test_all_classes_once_is_the_exact_head_in_value_and_gradients(noise, shared):
    hidden, target, g = batch()
    sampled = heads.SampledSoftmax(
        D, V, sampler=noise, num_samples=V, shared=shared, reduction="none", dtype=torch.float64
    )
    exact = heads.Softmax(D, V, reduction="none", dtype=torch.float64)
    exact.load_state_dict(sampled.state_dict())
    upstream = torch.randn(len(target), generator=g, dtype=torch.float64)
    losses = sampled(hidden, target), exact(hidden, target)
    torch.testing.assert_close(*losses)
    for mine, other in zip(
        torch.autograd.grad(losses[0], [hidden, *sampled.parameters()], upstream),
        torch.autograd.grad(losses[1], [hidden, *exact.parameters()], upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("kind", [heads.SampledSoftmax, heads.NCE, heads.NegativeSampling])
def test_shared_and_own_candidates_have_the_same_expected_gradient(kind, unique):
    """Averaged over many draws, one set for the batch and one set per row lead to the same gradient."""
    hidden, target, _ = batch(3)
    noise = samplers.Unigram([5, 1, 1, 3, 2, 2, 1, 4, 6], unique=unique)
    means = []
    for shared in (True, False):
        torch.manual_seed(1)
        head = kind(D, V, sampler=noise, num_samples=3, shared=shared, dtype=torch.float64)
        gradients = []
        for _ in range(3000):
            (gradient,) = torch.autograd.grad(head(hidden, target), head.weight)
            gradients.append(gradient)
        stack = torch.stack(gradients)
        means.append((stack.mean(0), stack.std(0) / len(stack) ** 0.5))
    (one, error_one), (other, error_other) = means
    z = (one - other) / (error_one**2 + error_other**2).sqrt()
    assert z.abs().max() < 4.5


def softmax_row(s, y, candidates, m):
    kept = [j for j in candidates.ids.tolist() if not (candidates.unique and j == y)]
    return math.log(sum(math.exp(s[c] - math.log(m[c])) for c in [y, *kept])) - (s[y] - math.log(m[y]))


def nce_row(s, y, candidates, m):
    noise = sum(math.log1p(math.exp(s[j] - math.log(m[j]))) for j in candidates.ids.tolist())
    return math.log1p(math.exp(math.log(m[y]) - s[y])) + noise


def negative_row(s, y, candidates, m):
    return math.log1p(math.exp(-s[y])) + sum(math.log1p(math.exp(s[j])) for j in candidates.ids.tolist())


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("kind", "row"),
    [(heads.SampledSoftmax, softmax_row), (heads.NCE, nce_row), (heads.NegativeSampling, negative_row)],
)
def test_the_loss_of_a_head_by_its_formula(kind, row, shared, unique):
    """Row by row in plain Python: expected counts k q or 1 - exp(-k q), hits kept or removed, padding left out."""
    k, counts = 6, [9, 1, 1, 3, 2, 2, 1, 4, 6]
    noise = samplers.Unigram(counts, power=1.0, unique=unique)
    q = [count / sum(counts) for count in counts]
    m = [1 - math.exp(-k * p) if unique else k * p for p in q]
    torch.manual_seed(3)
    head = kind(D, V, sampler=noise, num_samples=k, shared=shared, reduction="none", dtype=torch.float64)
    hidden, target, _ = batch(12)
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias).tolist()
    hits = 0
    for seed in range(10):
        draws = noise.sample(k if shared else [12, k], generator=torch.Generator().manual_seed(seed))
        expected = []
        for r, y in enumerate(target.tolist()):
            ids = draws.ids if shared else draws.ids[r][~draws.padding[r]]
            hits += y in ids.tolist()
            expected.append(row(logits[r], y, samplers.Candidates(ids, ids, unique), m))
        ours = head(hidden, target, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))
    assert hits > 10


def test_start_at_with_classes_that_are_never_drawn():
    head = heads.NegativeSampling(D, 4, sampler=samplers.Unigram([4, 3, 0, 1]), num_samples=2, dtype=torch.float64)
    head.start_at(torch.tensor([0.4, 0.3, 0.1, 0.2]).double().log())
    p = head.log_prob(torch.zeros(D).double()).exp()
    torch.testing.assert_close(p, torch.tensor([0.4, 0.3, 0.0, 0.2]).double() / 0.9)


def test_nce_starts_normalised_at_the_noise():
    """First loss log(1 + k) + k log(1 + 1/k) where hidden is 0: no log V in it."""
    counts = torch.arange(1, 1001)
    head = heads.NCE(D, 1000, sampler=samplers.Unigram(counts, power=1.0), num_samples=50, dtype=torch.float64)
    zero = torch.zeros(3, D, dtype=torch.float64)
    k = torch.tensor(50.0, dtype=torch.float64)
    torch.testing.assert_close(head(zero, torch.tensor([0, 500, 999])), (1 + k).log() + k * (1 + 1 / k).log())
    torch.testing.assert_close(head.log_partition(zero), torch.zeros(3, dtype=torch.float64))


def test_nce_start_with_classes_that_are_never_drawn():
    head = heads.NCE(D, 3, sampler=samplers.Unigram([8, 0, 2], power=1.0))
    torch.testing.assert_close(head.bias.detach().exp(), torch.tensor([0.8, 0.2, 0.2]))


def test_negative_sampling_puts_the_count_back():
    """With scores log(p / (k q)), the optimum of the loss, the exact probabilities are p."""
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    noise = samplers.Unigram([1, 2, 3, 4], power=1.0)
    head = heads.NegativeSampling(D, 4, sampler=noise, num_samples=6, dtype=torch.float64)
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    with torch.no_grad():
        head.bias.copy_((p / (6 * q)).log())
    hidden = torch.zeros(2, D, dtype=torch.float64)
    torch.testing.assert_close(head.log_prob(hidden).exp(), p.expand(2, 4))
    torch.testing.assert_close(head.nll(hidden, torch.tensor([3, 0])), -p[[3, 0]].log())
    torch.testing.assert_close(head.log_partition(hidden), torch.zeros(2, dtype=torch.float64))
    assert head.topk(hidden, 1).indices.tolist() == [[0], [0]]


def test_a_step_makes_nothing_of_the_size_of_the_classes():
    """Forward, backward and optimizer of a sparse head: no tensor of V rows beyond parameters and their state."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from vastmax import optim

    num_classes = 5003
    noise = samplers.Unigram(torch.arange(1, num_classes + 1))
    head = heads.SampledSoftmax(D, num_classes, sampler=noise, num_samples=20, sparse=True)
    optimizer = optim.LazyAdamW(head.parameters())
    known = {p.data_ptr() for p in head.parameters()}

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and not tensor.is_sparse and tensor.numel() >= num_classes:
                    made.add(tensor.data_ptr())
            return out

    def step():
        optimizer.zero_grad()
        head(torch.randn(6, D), torch.randint(num_classes, (6,))).backward()
        optimizer.step()

    step()
    for state in optimizer.state.values():
        known |= {value.data_ptr() for value in state.values()}
    known |= {buffer.data_ptr() for buffer in head.buffers()}
    made: set[int] = set()
    with Sizes():
        step()
    assert made <= known
