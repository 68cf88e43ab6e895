"""What sampled heads promise beyond the conformance suite."""

import math

import pytest
import torch

from tables import tables_of
from vastmax import heads, kernels, samplers

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


def importance_row(s, y, candidates, m):
    return math.log(sum(math.exp(s[j]) / m[j] for j in candidates.ids.tolist())) - s[y]


def one_vs_each_row(s, y, candidates, m):
    return sum(math.log1p(math.exp(s[j] - s[y])) / m[j] for j in candidates.ids.tolist() if j != y)


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (heads.SampledSoftmax, softmax_row),
        (heads.NCE, nce_row),
        (heads.NegativeSampling, negative_row),
        (heads.ImportanceSampledSoftmax, importance_row),
        (heads.OneVsEach, one_vs_each_row),
    ],
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
    known |= {buffer.data_ptr() for buffer in tables_of(head).values()}
    made: set[int] = set()
    with Sizes():
        step()
    assert made <= known


NORMALISERS = {
    "fixed": (1.25, lambda h: 1.25),
    "learned": ("learned", lambda h: 0.75),
    "conditional": ("conditional", lambda h: (h * torch.arange(D)).sum().item() - 0.5),
    "module": (torch.nn.Sequential(torch.nn.Linear(D, 1, dtype=torch.float64)), None),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", NORMALISERS)
def test_nce_less_a_given_log_partition(kind, shared):
    """The loss is that of logits less c(h), plus the penalty on the log of the estimated Z; nll knows neither."""
    option, given = NORMALISERS[kind]
    k, counts = 6, [9, 1, 1, 3, 2, 2, 1, 4, 6]
    noise = samplers.Unigram(counts, power=1.0)
    head = heads.NCE(
        D, V, sampler=noise, num_samples=k, shared=shared, log_partition=option, z_loss=0.3,
        reduction="none", dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        if kind == "learned":
            head.normaliser.value.fill_(0.75)
        if kind == "conditional":
            head.normaliser.weight.copy_(torch.arange(D)[None])
            head.normaliser.bias.fill_(-0.5)
    hidden, target, _ = batch(7)
    given = given or (lambda h: option(h).detach().item())
    draws = noise.sample(k if shared else [7, k], generator=torch.Generator().manual_seed(1))
    m = [k * count / sum(counts) for count in counts]
    expected = []
    for r, y in enumerate(target.tolist()):
        ids = draws.ids if shared else draws.ids[r]
        s = torch.nn.functional.linear(hidden[r], head.weight, head.bias).detach()
        u = s - given(hidden[r].detach())
        log_z = math.log(sum(math.exp(u[j]) / m[j] for j in ids.tolist()))
        expected.append(nce_row(u.tolist(), y, samplers.Candidates(ids, ids, False), m) + 0.3 * log_z**2)
    ours = head(hidden, target, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))
    flat = heads.Softmax(D, V, dtype=torch.float64)
    flat.load_state_dict(head.state_dict(), strict=False)
    torch.testing.assert_close(head.nll(hidden, target), flat.nll(hidden, target))
    shift = torch.tensor([given(h) for h in hidden.detach()], dtype=torch.float64)
    torch.testing.assert_close(head.log_partition(hidden), flat.log_partition(hidden) - shift)
    for parameter in head.normaliser.parameters():
        (gradient,) = torch.autograd.grad(ours.sum(), parameter, retain_graph=True)
        assert (gradient != 0).any()


def test_nce_without_bias_is_given_log_v():
    head = heads.NCE(D, 10_000, bias=False, num_samples=100, dtype=torch.float64)
    zero = torch.zeros(1, D, dtype=torch.float64)
    assert head(zero, torch.tensor([3])).item() == pytest.approx(5.6, abs=0.05)
    bare = heads.NCE(D, 10_000, bias=False, num_samples=100, log_partition=0.0, dtype=torch.float64)
    assert bare(zero, torch.tensor([3])).item() == pytest.approx(461.5, abs=0.05)
    for normalised in (head, heads.NCE(D, 50, num_samples=5, log_partition=7.0, dtype=torch.float64)):
        torch.testing.assert_close(normalised.log_partition(zero), torch.zeros(1).double())  # starts at Z = 1


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_nce_by_a_proposal(shared, unique):
    """Candidates from r, each weighted by its expected count under the noise over that under r."""
    k, q_counts, r_counts = 6, [9, 1, 1, 0, 2, 2, 1, 4, 6], [1, 1, 5, 1, 1, 3, 1, 1, 0]
    r_counts[-1] = 1
    proposal = samplers.Unigram(r_counts, power=1.0, unique=unique)
    noise = samplers.Unigram(q_counts, power=1.0)
    head = heads.NCE(
        D, V, sampler=noise, proposal=proposal, num_samples=k, shared=shared, reduction="none", dtype=torch.float64
    )
    hidden, target, _ = batch(12)
    target[target == 3] = 0
    s = torch.nn.functional.linear(hidden, head.weight, head.bias).tolist()
    m = [k * count / sum(q_counts) for count in q_counts]
    rate = [k * count / sum(r_counts) for count in r_counts]
    drawn = [1 - math.exp(-x) if unique else x for x in rate]
    draws = proposal.sample(k if shared else [12, k], generator=torch.Generator().manual_seed(1))
    expected = []
    for r, y in enumerate(target.tolist()):
        ids = draws.ids if shared else draws.ids[r][~draws.padding[r]]
        terms = [m[j] / drawn[j] * math.log1p(math.exp(s[r][j]) / m[j]) for j in ids.tolist() if m[j] > 0]
        expected.append(math.log1p(math.exp(-s[r][y]) * m[y]) + sum(terms))
    ours = head(hidden, target, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_several_true_classes_beside_a_proposal_from_the_batch_are_refused():
    head = heads.NCE(D, V, num_samples=4, proposal=samplers.InBatch(V))
    hidden, target = torch.randn(5, D), torch.randint(V, (5,))
    assert head(hidden, target).isfinite()
    with pytest.raises(ValueError, match="target: expected one true class per row beside InBatch"):
        head(hidden, torch.stack([target, (target + 1) % V], -1))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_calibrated_negative_sampling(t):
    k, num_classes = 4, 41
    head = heads.NegativeSampling(
        D, num_classes, num_samples=k, calibration=t, reduction="none", dtype=torch.float64
    )
    alpha = k / (num_classes - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    assert head.positive_weight == pytest.approx(beta)
    assert head.positive_weight == pytest.approx({0.0: 1.0, 0.3: 0.73, 1.0: 0.1}[t])
    hidden, target, _ = batch(5)
    s = torch.nn.functional.linear(hidden, head.weight, head.bias)
    ids = head.sampler.sample(k, generator=torch.Generator().manual_seed(2)).ids
    softplus = torch.nn.functional.softplus
    expected = beta * softplus(-s[range(5), target]) + softplus(s[:, ids]).sum(-1)
    torch.testing.assert_close(head(hidden, target, generator=torch.Generator().manual_seed(2)), expected)


@pytest.mark.parametrize("log_partition", [None, "learned", "conditional", 2.0])
def test_nce_can_be_reset(log_partition):
    """`reset_parameters` ends where the constructor does: at the noise, with a Z of 1; from the meta device too."""
    options = {"sampler": samplers.Unigram([6, 5, 4, 3, 2, 1, 1, 1, 1], power=1.0), "log_partition": log_partition}
    head = heads.NCE(D, V, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(9.0)
    from_meta = heads.NCE(D, V, dtype=torch.float64, device="meta", **options).to_empty(device="cpu")
    zero = torch.zeros(1, D, dtype=torch.float64)
    for other in (head, from_meta):
        other.reset_parameters()
        torch.testing.assert_close(other.log_partition(zero), torch.zeros(1).double())
        torch.testing.assert_close(
            other.log_prob(zero)[0].exp(), torch.tensor([6, 5, 4, 3, 2, 1, 1, 1, 1]).double() / 24
        )


def test_options_of_nce_and_negative_sampling():
    for option, error, message in [
        ({"log_partition": "free"}, ValueError, "log_partition: expected a number, 'learned', 'conditional' or a"),
        ({"log_partition": math.inf}, ValueError, "log_partition: expected a finite number, got inf"),
        ({"z_loss": -1.0}, ValueError, "z_loss: expected a finite number of at least 0, got -1"),
        ({"proposal": "uniform"}, TypeError, "proposal: expected a vastmax.samplers.Sampler, got str"),
        ({"proposal": samplers.Uniform(3)}, ValueError, "proposal: expected one of num_classes=9 classes"),
        (
            {"proposal": samplers.Unigram([1, 1, 0, 1, 1, 1, 1, 1, 1])},
            ValueError,
            r"proposal: expected one that can draw every class of the noise, got Unigram\(.*which never draws 2",
        ),
        (
            {"proposal": samplers.HardNegatives(samplers.Uniform(V), 1024)},
            ValueError,
            "proposal: expected one whose expected counts are those of its candidates, got HardNegatives",
        ),
        (
            {"proposal": samplers.Uniform(V), "sampler": samplers.Uniform(V, unique=True), "num_samples": 2},
            ValueError,
            "sampler: expected, beside a proposal, independent draws",
        ),
    ]:
        with pytest.raises(error, match=message):
            heads.NCE(D, V, **option)
    with pytest.raises(
        ValueError, match=r"log_partition: expected a module that returns shape \(1, 1\), got \(1, 2\)"
    ):
        heads.NCE(D, V, log_partition=torch.nn.Linear(D, 2))
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match="calibration: expected a"):
            heads.NegativeSampling(D, V, calibration=value)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (heads.SampledSoftmax, {}),
        (heads.NCE, {}),
        (heads.NCE, {"log_partition": 1.5}),
        (heads.NegativeSampling, {"calibration": 0.5}),
    ],
)
def test_one_pass_is_the_loss_of_the_scores(kind, options, shared, unique, bias, temperature, backend, monkeypatch):
    hidden, target, g = batch()
    noise = samplers.Unigram([5, 1, 1, 3, 2, 2, 1, 4, 6], unique=unique)
    options |= {"temperature": temperature, "bias": bias, "reduction": "none", "dtype": torch.float64}
    head = kind(D, V, sampler=noise, num_samples=5, shared=shared, **options)
    torch.nn.init.normal_(head.weight)
    upstream = torch.randn(len(target), generator=g, dtype=torch.float64)

    def result():
        loss = head(hidden, target, generator=torch.Generator().manual_seed(3))
        return loss, *torch.autograd.grad(loss, [hidden, *head.parameters()], upstream)

    with kernels.use(backend):
        one_pass = result()
    monkeypatch.setattr(kind, "loss_in_one_pass", lambda *_: None)
    with kernels.use("torch"):
        for mine, other in zip(one_pass, result(), strict=True):
            torch.testing.assert_close(mine, other)


# exclude: classes that are known to be no negatives of a row.

KINDS = [
    (heads.SampledSoftmax, softmax_row),
    (heads.NCE, nce_row),
    (heads.NegativeSampling, negative_row),
    (heads.ImportanceSampledSoftmax, importance_row),
    (heads.OneVsEach, one_vs_each_row),
]


def excluded_ids(target, num_ids=3, seed=4):
    """Ids of each row's known positives: its target too in some rows, places left over in others."""
    exclude = torch.randint(V, (*target.shape, num_ids), generator=torch.Generator().manual_seed(seed))
    exclude[::2, 0] = target[::2]
    exclude[1::3, 1:] = -100
    return exclude


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, "learned"])  # by a kernel, or by way of the scores
@pytest.mark.parametrize(("kind", "row"), KINDS)
def test_excluded_classes_are_no_candidates(kind, row, temperature, shared, unique):
    """The formula without them, row by row; the target stays, and so do its accidental hits."""
    k, counts, num_rows = 12, [9, 1, 1, 3, 2, 2, 1, 4, 6], 12
    noise = samplers.Unigram(counts, power=1.0, unique=unique)
    k = 6 if unique else k
    q = [count / sum(counts) for count in counts]
    m = [1 - math.exp(-k * p) if unique else k * p for p in q]
    torch.manual_seed(3)
    options = {"temperature": temperature, "reduction": "none", "dtype": torch.float64}
    head = kind(D, V, sampler=noise, num_samples=k, shared=shared, **options)
    hidden, target, _ = batch(num_rows)
    exclude = excluded_ids(target)
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias).tolist()
    left = 0
    for seed in range(5):
        draws = noise.sample(k if shared else [num_rows, k], generator=torch.Generator().manual_seed(seed))
        expected = []
        for r, y in enumerate(target.tolist()):
            ids = draws.ids if shared else draws.ids[r][~draws.padding[r]]
            kept = torch.tensor(
                [j for j in ids.tolist() if j == y or j not in exclude[r].tolist()], dtype=torch.int64
            )
            left += len(ids) - len(kept)
            nothing = kind is heads.ImportanceSampledSoftmax and len(kept) == 0
            expected.append(0.0 if nothing else row(logits[r], y, samplers.Candidates(kept, kept, unique), m))
        ours = head(hidden, target, exclude=exclude, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))
    assert left > 20
    nobody = torch.full((num_rows, 2), -100)
    for none in (nobody, nobody[:, :0]):
        with_none = head(hidden, target, exclude=none, generator=torch.Generator().manual_seed(1))
        assert torch.equal(with_none, head(hidden, target, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("noise", ["in batch", "tree-guided", "top and tail", "proposal"])
@pytest.mark.parametrize("shared", [True, False])
def test_excluded_classes_beside_any_sampler(noise, shared):
    """An excluded class gets no gradient from a row of which it is not the target."""
    options = {"num_samples": 6, "shared": shared, "reduction": "none", "dtype": torch.float64}
    build = heads.NCE if noise == "proposal" else heads.SampledSoftmax
    options |= {
        "in batch": {"sampler": samplers.InBatch(V, counts=range(1, V + 1))},
        "tree-guided": {"sampler": samplers.TreeGuided(V)},
        "top and tail": {"sampler": samplers.TopAndTail(samplers.Uniform(V, unique=True), top=5)},
        "proposal": {"proposal": samplers.Uniform(V)},
    }[noise]
    head = build(D, V, **options)
    hidden, target, _ = batch(12)
    exclude = excluded_ids(target)
    for r, y in enumerate(target.tolist()):
        loss = head(hidden, target, exclude=exclude, generator=torch.Generator().manual_seed(r))
        (gradient,) = torch.autograd.grad(loss[r], head.bias)
        others = [c for c in exclude[r].tolist() if c not in (y, -100)]
        assert (gradient[others] == 0).all()
        assert gradient[y] <= 0


def test_items_of_the_same_user_are_no_negatives_in_the_batch():
    """Candidates from the batch: each row's softmax is over its target and what its user is not known to like."""
    counts, hidden = [9, 1, 1, 3, 2, 2, 1, 4, 6], torch.randn(4, D, dtype=torch.float64)
    noise = samplers.InBatch(V, counts=counts)
    head = heads.SampledSoftmax(D, V, sampler=noise, reduction="none", dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0])
    liked = torch.tensor([[0, 1], [0, 1], [2, 5], [0, -100]])
    s = torch.nn.functional.linear(hidden, head.weight, head.bias) - (3 * torch.tensor(counts) / 29).log()
    compared = [[0, 2, 0], [1, 2], [2, 0, 1, 0], [0, 0, 1, 2]]  # the target first
    expected = torch.stack([-s[r, ids].log_softmax(-1)[0] for r, ids in enumerate(compared)])
    torch.testing.assert_close(head(hidden, target, exclude=liked), expected)


def test_excluded_classes_go_with_their_rows():
    """Leading axes, ignored rows, and several true classes a row."""
    head = heads.SampledSoftmax(D, V, num_samples=8, reduction="none", dtype=torch.float64)
    hidden, target, _ = batch(12)
    exclude = excluded_ids(target)
    seeded = {"generator": torch.Generator().manual_seed(1)}
    flat = head(hidden, target, exclude=exclude, **seeded)

    def again(*arguments, **options):
        return head(*arguments, generator=torch.Generator().manual_seed(1), **options)

    folded = again(hidden.view(3, 4, D), target.view(3, 4), exclude=exclude.view(3, 4, 3))
    torch.testing.assert_close(folded, flat.view(3, 4))
    some = target.clone()
    some[[0, 5]] = -100
    torch.testing.assert_close(
        again(hidden, some, exclude=exclude),
        flat.masked_fill(torch.isin(torch.arange(12), torch.tensor([0, 5])), 0.0),
    )
    other = (target + 1) % V
    both = again(hidden, torch.stack([target, other], -1), exclude=exclude)
    torch.testing.assert_close(both, (flat + again(hidden, other, exclude=exclude)) / 2)


def test_excluded_classes_go_with_their_rows_past_a_masked_target():
    """The row of a masked target is not scored, and neither are its excluded classes."""
    hidden, target, _ = batch(12)
    target[3] = V - 1
    head = heads.SampledSoftmax(D, V, num_samples=6, reduction="none", dtype=torch.float64)
    with torch.no_grad():
        head.bias[V - 1] = -math.inf
    exclude, others = excluded_ids(target), (target != V - 1).nonzero().squeeze(-1)

    def loss(rows):
        generator = torch.Generator().manual_seed(0)
        return head(hidden[rows], target[rows], exclude=exclude[rows], generator=generator)

    found = loss(torch.arange(12))
    assert found[3] == math.inf
    torch.testing.assert_close(found[others], loss(others))


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ([[1]], TypeError, "exclude: expected an int64 tensor of class ids, got list"),
        (torch.zeros(5, 2), TypeError, "exclude: expected int64 class ids, got dtype torch.float32"),
        (torch.zeros(4, 2).long(), ValueError, r"exclude: expected shape \(5, 'E'\), .*, got \(4, 2\)"),
        (torch.zeros(5).long(), ValueError, r"exclude: expected shape \(5, 'E'\), .*, got \(5,\)"),
        (torch.full((5, 2), V), ValueError, r"exclude: expected class ids in \[0, 9\).*, got 9 at \(0, 0\)"),
        (torch.full((5, 2), -1), ValueError, r"exclude: expected class ids in \[0, 9\).*, got -1 at \(0, 0\)"),
    ],
)
def test_what_can_not_be_excluded(exclude, error, message):
    hidden, target, _ = batch()
    with pytest.raises(error, match=message):
        heads.SampledSoftmax(D, V, dtype=torch.float64)(hidden, target, exclude=exclude)


# Label smoothing.


def smoothed_row(s, y, candidates, m, weight, left_out):
    """The formula: the target beside all but one of independent draws, and each candidate beside the others."""
    ids = candidates.ids.tolist()
    rivals = [j for place, j in enumerate(ids) if (j != y if candidates.unique else place != left_out)]
    own = softmax_row(s, y, samplers.Candidates(torch.tensor(rivals, dtype=torch.int64), None, False), m)
    term = [s[j] - math.log(m[j]) for j in ids]
    log_z = math.log(sum(map(math.exp, term))) if ids else 0.0
    mean = sum(weight[j] / m[j] * (log_z - x) for j, x in zip(ids, term, strict=True)) / V
    return 0.8 * weight[y] * own + 0.2 * mean


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6, "learned"])
def test_smoothed_sampled_softmax_by_its_formula(temperature, weighted, shared, unique):
    k, counts, num_rows = 6, [9, 1, 1, 3, 2, 2, 1, 4, 6], 12
    noise = samplers.Unigram(counts, power=1.0, unique=unique)
    q = [count / sum(counts) for count in counts]
    m = [1 - math.exp(-k * p) if unique else k * p for p in q]
    weight = torch.linspace(0.0, 2.0, V, dtype=torch.float64) if weighted else torch.ones(V, dtype=torch.float64)
    options = {"temperature": temperature, "class_weight": weight if weighted else None, "dtype": torch.float64}
    torch.manual_seed(3)
    head = heads.SampledSoftmax(
        D, V, sampler=noise, num_samples=k, shared=shared, label_smoothing=0.2, reduction="none", **options
    )
    hidden, target, _ = batch(num_rows)
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) / (0.6 if temperature == 0.6 else 1.0)
    for seed in range(5):
        draws = noise.sample(k if shared else [num_rows, k], generator=torch.Generator().manual_seed(seed))
        expected = []
        for r, y in enumerate(target.tolist()):
            ids = draws.ids if shared else draws.ids[r][~draws.padding[r]]
            candidates = samplers.Candidates(ids, ids, unique)
            expected.append(smoothed_row(logits[r].tolist(), y, candidates, m, weight.tolist(), k - 1))
        ours = head(hidden, target, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, "learned"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_smoothed_over_all_classes_once_is_the_exact_smoothed_head(several, weighted, reduction, temperature):
    """Class weights too, as torch has them: of the target and of the classes that it is smoothed to, and 0 too."""
    weight = torch.linspace(0.0, 2.0, V, dtype=torch.float64) if weighted else None
    options = {"class_weight": weight, "reduction": reduction, "temperature": temperature, "dtype": torch.float64}
    noise = samplers.Unigram(range(1, V + 1), unique=True)
    sampled = heads.SampledSoftmax(D, V, sampler=noise, num_samples=V, label_smoothing=0.3, **options)
    exact = heads.Softmax(D, V, label_smoothing=0.3, **options)
    exact.load_state_dict(sampled.state_dict())
    hidden, target, g = batch(7)
    target[0], target[1] = 0, -100
    if several:
        target = torch.stack([target, torch.where(target == 5, -100, 5)], -1)
    losses = sampled(hidden, target), exact(hidden, target)
    torch.testing.assert_close(*losses)
    upstream = torch.randn(losses[0].shape, generator=g, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(losses[0], [hidden, *sampled.parameters()], upstream),
        torch.autograd.grad(losses[1], [hidden, *exact.parameters()], upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_smoothing_in_the_batch():
    """Of the other rows' targets each row leaves out one, and never its own place, which is none of them."""
    counts, hidden = [9, 1, 1, 3, 2, 2, 1, 4, 6], torch.randn(4, D, dtype=torch.float64)
    noise = samplers.InBatch(V, counts=counts)
    head = heads.SampledSoftmax(D, V, sampler=noise, label_smoothing=0.2, reduction="none", dtype=torch.float64)
    target = [0, 1, 2, 0]
    m = [3 * count / 29 for count in counts]
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias).tolist()
    expected = []
    for r, y in enumerate(target):
        order = [place for place in range(4) if place != r]
        ids = torch.tensor([target[place] for place in order])
        left_out = order.index((r - 1) % 4)
        candidates = samplers.Candidates(ids, ids, False)
        expected.append(smoothed_row(logits[r], y, candidates, m, [1.0] * V, left_out))
    torch.testing.assert_close(head(hidden, torch.tensor(target)), torch.tensor(expected, dtype=torch.float64))


def test_smoothing_is_refused_where_nothing_is_compared():
    with pytest.raises(ValueError, match=r"num_samples: expected at least 2 independent draws .* got 1"):
        heads.SampledSoftmax(D, V, num_samples=1, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\], got 1.1"):
        heads.SampledSoftmax(D, V, label_smoothing=1.1)
    assert "label_smoothing=0.1" in repr(heads.SampledSoftmax(D, V, label_smoothing=0.1))
