"""More classes or fewer: the first keep their rows and what an optimizer knows of them."""

import copy

import pytest
import torch
from conformance import CASES, D, V, batch, call, class_weight, counts, gradients
from torch import nn

from vastmax import functional, heads, optim, samplers

FLAT = {name: case for name, case in CASES.items() if isinstance(case.make(), heads.FlatHead)}


def given(head, num_classes):
    """What this head is given anew for another number of classes."""
    found = {}
    if head.class_weight is not None:
        found["class_weight"] = class_weight(num_classes)
    if getattr(head, "logit_adjustment", None) is not None:
        found["logit_adjustment"] = 0.5 * functional.log_prior(counts(num_classes))
    return found


@pytest.mark.parametrize("num_classes", [3, V, 11])
@pytest.mark.parametrize("case", FLAT.values(), ids=FLAT)
def test_a_resized_head_is_one_built_so_with_the_same_rows(case, num_classes):
    head, other = case.make(), case.make(num_classes)
    if case.sampled:
        other.sampler = case.make(num_classes).sampler
    before, same = copy.deepcopy(head), {name: id(p) for name, p in head.named_parameters()}
    anew = given(head, num_classes) | ({"sampler": other.sampler} if case.sampled else {})
    if hasattr(head, "num_samples") and head.num_samples > num_classes:
        anew.pop("sampler")
    head.resize(num_classes, **anew)
    assert {name: id(p) for name, p in head.named_parameters()} == same
    assert head.num_classes == num_classes
    kept = min(V, num_classes)
    for name, parameter in head.named_parameters():
        mine, theirs = parameter.detach(), before.get_parameter(name).detach()
        if name in ("weight", "bias"):
            assert len(mine) == num_classes
            assert mine.isfinite().all()
            mine, theirs = mine[:kept], theirs[:kept]
        assert torch.equal(mine, theirs)
    other.load_state_dict(head.state_dict())
    if isinstance(head, heads.NCE):  # the log-partition that it is given stays what it was
        other.normaliser = head.normaliser
    hidden, target, _ = batch(num_classes=num_classes)
    torch.testing.assert_close(head.log_prob(hidden), other.log_prob(hidden))
    loss, expected = (call(case, h, hidden, target) for h in (head, other))
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(
        gradients(loss, [hidden, *head.parameters()]),
        gradients(expected, [hidden, *other.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_other_heads_say_that_they_cannot(case):
    head = case.make()
    if isinstance(head, heads.FlatHead):
        pytest.skip("can")
    with pytest.raises(TypeError, match=f"resize: expected a flat head.*got {type(head).__name__}"):
        head.resize(9)


def test_new_rows_are_drawn_as_at_the_start():
    head = heads.OneVsAll(16, 4)
    nn.init.constant_(head.bias, 7.0)
    nn.init.constant_(head.weight, 7.0)
    head.resize(2000)
    assert head.bias[:4].tolist() == [7.0] * 4
    torch.testing.assert_close(head.bias[4:].detach(), torch.full((1996,), -torch.tensor(1999.0).log().item()))
    bound = 1 / 16**0.5
    assert head.weight[4:].abs().max() <= bound
    torch.testing.assert_close(head.weight[4:].std().item(), bound / 3**0.5, rtol=0.02, atol=0)
    nce = heads.NCE(4, 5, sampler=samplers.Unigram([5, 4, 3, 2, 1], power=1.0))
    noise = samplers.Unigram([6, 4, 3, 2, 1, 4], power=1.0)
    nce.resize(6, sampler=noise)
    torch.testing.assert_close(nce.bias.exp()[5].item(), 0.2)


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.3),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "LazyAdamW": lambda p: optim.LazyAdamW(p),
    "LazyAdamW, second moment by row": lambda p: optim.LazyAdamW(p, rowwise_second_moment=True),
    "RowwiseAdagrad": lambda p: optim.RowwiseAdagrad(p, initial_accumulator_value=0.2),
    "optim.SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
}


def step(head, optimizer, *, sparse, seed):
    """A step by the same gradients of the first six classes, whatever others there are."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(6, generator=g)[:4].sort().values
    for parameter in (head.weight, head.bias):
        table = torch.randn(4, *parameter.shape[1:], generator=g)
        parameter.grad = torch.sparse_coo_tensor(
            rows[None], table, parameter.shape, check_invariants=True
        ).coalesce()
        if not sparse:
            parameter.grad = parameter.grad.to_dense()
    optimizer.step()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer_goes_on(make, sparse):
    """The state of the classes that stay is theirs, and that of new ones as of rows that were never updated."""
    if sparse and make in (OPTIMIZERS["AdamW"], OPTIMIZERS["Adagrad"], OPTIMIZERS["SGD"]):
        pytest.skip("torch's, of dense gradients")

    def build():
        torch.manual_seed(0)
        head = heads.Softmax(D, 6)
        return head, make(head.parameters())

    (plain, of_plain), (changed, of_changed) = build(), build()
    for seed, num_classes in enumerate([6, 8, 9, 7, 6]):
        if seed > 0:
            changed.resize(num_classes, of_changed)
        for name, value in of_changed.state[changed.weight].items():
            if value.ndim > 0:
                group = of_changed.param_groups[0]
                start = {"sum": group.get("initial_accumulator_value", 0.0), "last_step": seed}.get(name, 0.0)
                assert len(value) == num_classes
                if num_classes == 8:
                    assert torch.equal(value[6:], torch.full_like(value[6:], start))
        for head, optimizer in ((plain, of_plain), (changed, of_changed)):
            step(head, optimizer, sparse=sparse, seed=seed)
        for name in ("weight", "bias"):
            mine, theirs = changed.get_parameter(name).detach()[:6], plain.get_parameter(name)
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)  # kernels round a row by where it lies


def test_an_optimizer_that_was_not_told_is_an_error():
    head = heads.SampledSoftmax(D, 6, num_samples=4, sparse=True)
    optimizer = optim.LazyAdamW(head.parameters())
    step(head, optimizer, sparse=True, seed=0)
    head.resize(600)
    for sparse in (True, False):
        with pytest.raises(
            ValueError, match=r"state 'exp_avg.*': expected 600 rows.*got 6: a head that is resized"
        ):
            step(head, optimizer, sparse=sparse, seed=1)


def test_a_tied_table_is_resized_with_it():
    embedding = nn.Embedding(6, D)
    head = heads.Softmax(D, 6, bias=False)
    head.weight = embedding.weight
    head.resize(9)
    assert embedding.weight is head.weight
    assert embedding(torch.tensor([8])).shape == (1, D)


def test_a_loss_that_is_kept_is_an_error_and_changes_nothing():
    head = heads.Softmax(D, 6)
    loss = head(torch.randn(2, D), torch.tensor([1, 2]))
    loss.backward()
    before, gradient = head.weight.detach().clone(), head.weight.grad
    with pytest.raises(
        RuntimeError, match=r"resize: expected no graph that ends in the head's parameters.*del loss"
    ):
        head.resize(9)
    assert torch.equal(head.weight, before)
    assert head.weight.grad is gradient
    assert head.num_classes == 6
    head(torch.randn(2, D), torch.tensor([1, 2])).backward()
    del loss
    head.resize(9)
    head(torch.randn(2, D), torch.tensor([1, 8])).backward()
    assert head.weight.grad.shape == (9, D)


def test_temperature_of_the_square_root_of_classes():
    head = heads.Softmax(D, 4, temperature="sqrt_classes")
    head.resize(9)
    assert head.temperature == 3.0


def sampled(**options):
    return heads.SampledSoftmax(D, V, sampler=samplers.Unigram(counts(V)), num_samples=2, **options)


BAD = [
    (lambda: heads.Softmax(D, V), (0,), {}, ValueError, "num_classes: expected an integer of at least 1, got 0"),
    (
        lambda: heads.Softmax(D, V),
        (9, "adam"),
        {},
        TypeError,
        "optimizer: expected a torch.optim.Optimizer, got str",
    ),
    (
        lambda: heads.Softmax(D, V),
        (9, torch.optim.SGD([nn.Parameter(torch.zeros(2))])),
        {},
        ValueError,
        "optimizer: expected one that has the head's weight and bias, got another",
    ),
    (
        lambda: heads.Softmax(D, V, class_weight=class_weight(V)),
        (9,),
        {},
        ValueError,
        "class_weight: expected one number for each of 9 classes, as there is one for each of 7, got None",
    ),
    (
        lambda: heads.Softmax(D, V),
        (9,),
        {"class_weight": torch.ones(8)},
        ValueError,
        r"class_weight: expected shape \(9,\)",
    ),
    (lambda: heads.Softmax(D, V), (9,), {"sampler": None}, TypeError, "sampler"),
    (sampled, (9,), {}, ValueError, "sampler: expected one of num_classes=9 classes, got Unigram"),
    (sampled, (9,), {"sampler": samplers.Uniform(8)}, ValueError, "sampler: expected one of num_classes=9 classes"),
    (
        lambda: heads.TopKSoftmax(D, V, 5),
        (4,),
        {},
        ValueError,
        "k: expected at most num_classes = 4, got 5",
    ),
    (
        lambda: heads.NegativeSampling(D, V, num_samples=2),
        (9,),
        {"sampler": samplers.InBatch(9)},
        ValueError,
        "sampler: expected one whose q does not depend on the batch, got InBatch",
    ),
    (
        lambda: heads.NCE(D, V, proposal=samplers.Unigram(counts(V)), num_samples=2),
        (9,),
        {},
        ValueError,
        "proposal: expected one of num_classes=9 classes, got Unigram",
    ),
]


@pytest.mark.parametrize(("make", "positional", "keywords", "error", "message"), BAD, ids=[m for *_, m in BAD])
def test_what_is_refused_changes_nothing(make, positional, keywords, error, message):
    head = make()
    before = copy.deepcopy(head)
    with pytest.raises(error, match=message):
        head.resize(*positional, **keywords)
    assert repr(head) == repr(before)
    for name, parameter in head.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))
