"""What sampled heads promise beyond the conformance suite."""

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


def test_importance_of_the_correction_is_in_the_head_too():
    """Over all pairs of draws, the head's loss is the loss of log counts log(k q), hits kept."""
    hidden, target, _ = batch(1)
    noise = samplers.Unigram([5, 1, 1, 3, 2, 2, 1, 4, 6])
    head = heads.SampledSoftmax(D, V, sampler=noise, num_samples=2, dtype=torch.float64)
    q = torch.tensor([5, 1, 1, 3, 2, 2, 1, 4, 6], dtype=torch.float64) ** 0.75
    q = q / q.sum()
    s = (torch.nn.functional.linear(hidden, head.weight, head.bias)[0] - (2 * q).log()).detach()
    y = target.item()
    for seed in range(20):
        ids = noise.sample(2, generator=torch.Generator().manual_seed(seed)).ids
        expected = torch.cat([s[y : y + 1], s[ids]]).logsumexp(0) - s[y]
        ours = head(hidden, target, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours, expected)


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
