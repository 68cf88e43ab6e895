"""What every head promises as a module and of its arguments, for every head of the table."""

import copy
import io
import pickle
import re

import pytest
import torch
from conformance import CASES, D, V, batch, call, class_weight
from torch import nn

from tables import tables_of
from vastmax import heads, samplers


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_casting_a_head_keeps_its_sampler(case):
    if not case.sampled or case.follows:
        pytest.skip("no sampler with tables of its own")
    head = case.make()
    before = head.log_expected_count(torch.arange(V))
    assert torch.equal(head.to(torch.bfloat16).log_expected_count(torch.arange(V)), before)


def test_no_table_is_a_buffer_of_the_model(case):
    """Those DistributedDataParallel sends to every process at every forward: V numbers and more."""
    head = case.make()
    hidden, target, _ = batch()
    call(case, head, hidden, target)
    assert not list(head.buffers())


def test_tables_follow_and_keep_their_dtype(case):
    head = case.make()
    hidden, target, _ = batch()
    call(case, head, hidden, target)
    before = tables_of(head)
    assert before or not (case.sampled or case.weighted)
    for cast in (torch.nn.Module.half, lambda module: module.to("meta")):
        after = tables_of(cast(copy.deepcopy(head)))
        assert after.keys() == before.keys()
        assert {name: table.dtype for name, table in after.items()} == {
            name: table.dtype for name, table in before.items()
        }
    assert {table.device.type for table in after.values()} <= {"meta"}


def test_copies_and_round_trips(case):
    head = case.make()
    hidden, target, _ = batch()
    loss = call(case, head, hidden, target)
    saved = io.BytesIO()
    torch.save(head.state_dict(), saved)
    saved.seek(0)
    loaded = case.make()
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), loaded):
        assert torch.equal(call(case, other, hidden, target), loss)


def test_interchange_with_linear(case):
    if not case.flat:
        pytest.skip("not a flat head")
    head = case.make(dtype=torch.float32)
    linear = nn.Linear(D, V, bias=head.bias is not None)
    assert {n: p.shape for n, p in linear.state_dict().items()} == {
        n: p.shape for n, p in head.state_dict().items()
    }
    linear.load_state_dict(head.state_dict())
    head.load_state_dict(linear.state_dict())
    if case.zeros:
        return  # its distribution is no softmax
    hidden, _, _ = batch(dtype=torch.float32)
    offset = head.log_prob_offset()
    logits = linear(hidden) / head.temperature + (0.0 if offset is None else offset.float())
    if head.link is not None:
        logits = head.link(logits)
    torch.testing.assert_close(head.log_prob(hidden), logits.log_softmax(-1))


def test_start_at(case):
    head = case.make()
    p = torch.rand(V).double()
    log_prob = (p / p.sum()).log()
    if not case.starts:
        pytest.skip("no bias per class")
    if case.options.get("bias") is False:
        with pytest.raises(ValueError, match="bias=True"):
            head.start_at(log_prob)
        return
    head.start_at(log_prob)
    torch.testing.assert_close(head.log_prob(torch.zeros(D).double()), log_prob)
    torch.testing.assert_close(head.log_partition(torch.zeros(D).double()), torch.tensor(0.0).double())


def test_a_head_made_on_the_meta_device_can_be_filled(case):
    head = case.make(device="meta").to_empty(device="cpu")
    source = case.make()
    head.load_state_dict(source.state_dict())
    hidden, target, _ = batch()
    assert torch.equal(call(case, head, hidden, target), call(case, source, hidden, target))


def test_repr_can_be_read(case):
    text = repr(case.make())
    assert f"in_features={D}, num_classes={V}" in text
    if case.sampled:
        assert repr(case.make().sampler) in text.replace("\n  ", "\n")
        assert "num_samples=3" in text


def test_casting_a_head_keeps_its_class_weights(case):
    head = case.make()
    if head.class_weight is None:
        pytest.skip("no class weights")
    assert torch.equal(head.to(torch.bfloat16).class_weight, class_weight(V))
    assert "class_weight" not in head.state_dict()


BAD_CALLS = [
    ({"hidden": torch.zeros(6, D + 1)}, ValueError, r"hidden: expected shape \(\.\.\., 4\), got \(6, 5\)"),
    ({"hidden": torch.zeros(6, D, dtype=torch.int64)}, TypeError, "hidden: expected a floating-point tensor"),
    ({"hidden": torch.full((6, D), torch.nan)}, ValueError, r"hidden: expected finite values, got nan at \(0, 0\)"),
    ({"hidden": torch.full((6, D), -torch.inf)}, ValueError, "hidden: expected finite values, got -inf"),
    ({"target": torch.full((6,), V)}, ValueError, r"target: expected class ids in \[0, 7\), got 7 at \(0,\)"),
    ({"target": torch.full((6,), -1)}, ValueError, "got -1"),
    ({"target": torch.zeros(6)}, TypeError, "target: expected int64 class ids, got dtype torch.float32"),
    ({"target": torch.zeros(5, dtype=torch.int64)}, ValueError, r"target: expected shape \(6,\)"),
    ({"sample_weight": torch.ones(5)}, ValueError, r"sample_weight: expected shape \(6,\)"),
    ({"sample_weight": -torch.ones(6)}, ValueError, "sample_weight: expected weights of at least 0, got -1"),
    ({"target_weight": torch.ones(6)}, ValueError, r"target_weight: expected beside a target of several class ids"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_calls(case, change, error, message):
    head = case.make()
    hidden, target, _ = batch()
    arguments = {"hidden": hidden, "target": target, **change}
    with pytest.raises(error, match=message):
        head(**arguments)
    if "sample_weight" not in change:  # which is of training alone
        with pytest.raises(error, match=message):
            head.nll(**arguments)


def not_ids(g):
    """Integers (6, T) that are no class ids, and what the refusal says of them."""
    matrix = torch.randint(2, (6, V), generator=g)
    padded = torch.tensor([[0, 1, -100], [2, 2, -100]]).repeat(3, 1)
    two = torch.tensor([[2, 0, 1], [0, 1, 0], [3, 2, 1]]).repeat(2, 1)
    advice = r"it looks like a 0/1 matrix: pass \.float\(\)"
    zero_one = f"target: expected class ids, got 0 and 1 alone in 7 columns, one per class: {advice}"
    distinct = "target: expected distinct class ids in each row, got"
    return {
        "a 0/1 matrix": (matrix, zero_one),
        "one-hot rows": (nn.functional.one_hot(torch.arange(6), V), zero_one),
        "no label": (torch.zeros(6, V, dtype=torch.int64), zero_one),
        "every label": (torch.ones(6, V, dtype=torch.int64), zero_one),
        "counts": (3 * matrix, rf"{distinct} [03] twice in row 0$"),
        "a label twice": (padded, f"{distinct} 2 twice in row 1$"),
        "a label twice, apart": (two, f"{distinct} 0 twice in row 1$"),
        "0 and 1 in other columns": (matrix[:, :3], f"{distinct} [01] twice in row 0: {advice}"),
    }


@pytest.mark.parametrize("what", not_ids(torch.Generator()))
def test_integers_that_are_no_ids(case, what):
    target, message = not_ids(torch.Generator().manual_seed(0))[what]
    head = case.make()
    hidden, _, _ = batch()
    for call_head in (head, head.nll):
        with pytest.raises(ValueError, match=message):
            call_head(hidden, target)


def test_where_an_id_is_repeated_is_said_by_the_leading_axes(case):
    head, target = case.make(), torch.tensor([2, 4, 5]).repeat(2, 3, 1)
    target[0, 2, 2] = 4
    with pytest.raises(ValueError, match=r"got 4 twice in row \(0, 2\)$"):
        head(batch((2, 3))[0], target)
    with pytest.raises(ValueError, match=r"got 4 twice$"):
        head(batch(())[0], target[0, 2])


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_labels_of_few_classes_are_no_ids_unless_they_must_be(case, num_classes):
    """Every class named in every row is every class where it can't be a 0/1 matrix, or where shares are given."""
    head = case.make(num_classes)
    hidden, _, _ = batch(num_classes=num_classes)
    if case.sampled and not head.sampler.takes_several:
        pytest.skip("one true class per row")
    every_class = torch.arange(num_classes).expand(6, -1)
    share = torch.full((6, num_classes), 1 / num_classes, dtype=torch.float64)
    by_share = head.nll(hidden, every_class, target_weight=share)
    if num_classes < 3:
        with pytest.raises(ValueError, match=r"a 0/1 matrix: pass \.float\(\), or beside ids a target_weight"):
            head.nll(hidden, every_class)
        padded = torch.cat([every_class, torch.full((6, 1), -100)], -1)
        torch.testing.assert_close(head.nll(hidden, padded), by_share)
    else:
        torch.testing.assert_close(head.nll(hidden, every_class), by_share)


def test_padding_may_be_repeated_and_a_class_with_shares_too(case):
    head = case.make()
    hidden, _, _ = batch()
    if case.sampled and not head.sampler.takes_several:
        pytest.skip("one true class per row")
    once = torch.tensor([[3, -100, -100, -100], [2, 4, -100, -100]]).repeat(3, 1)
    torch.testing.assert_close(head.nll(hidden, once)[::2], head.nll(hidden, torch.full((6,), 3))[::2])
    twice, share = torch.tensor([[5, 2, 5]]).expand(6, -1), torch.full((6, 3), 1 / 3, dtype=torch.float64)
    summed = 2 / 3 * head.nll(hidden, twice[:, 0]) + 1 / 3 * head.nll(hidden, twice[:, 1])
    torch.testing.assert_close(head.nll(hidden, twice, target_weight=share), summed)


def tables(head):
    """The parameters whose shapes are the head's, by name, with the module that holds each."""
    for name, module in head.named_modules():
        if isinstance(head, heads.NCE) and name.startswith("normaliser"):
            continue  # which may be any module, and is asked for a shape when it is called
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 0:
                yield f"{name}.{own}".lstrip("."), module, own, parameter


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_table_of_another_size_is_refused_when_it_is_used(case, change, axis):
    """As a tied one is that was made for another vocabulary."""
    hidden, target, _ = batch()
    names = [name for name, *_ in tables(case.make())]
    assert names
    for place, name in enumerate(names):
        head = case.make()
        _, module, own, parameter = list(tables(head))[place]
        shape = list(parameter.shape)
        shape[axis] += change
        setattr(module, own, nn.Parameter(torch.zeros(shape, dtype=torch.float64)))
        seen, expected = (re.escape(str(tuple(each))) for each in (shape, parameter.shape))
        message = rf"^{re.escape(name)}: expected shape {expected}, .*, got {seen}"
        asked = [head.log_prob, head.log_partition, lambda h, head=head: head.topk(h, 2)]
        for use in (head, head.nll):
            with pytest.raises(ValueError, match=message):
                use(hidden, target)
        for use in asked:
            with pytest.raises(ValueError, match=message):
                use(hidden)


BAD_SIZES = [
    ({"num_classes": -3}, ValueError, "num_classes: expected an integer of at least 1, got -3"),
    ({"num_classes": 3.0}, TypeError, "num_classes"),
]
BAD_OPTIONS = [
    ({"in_features": 0}, ValueError, "in_features: expected an integer of at least 1, got 0"),
    ({"reduction": "avg"}, ValueError, "reduction: expected one of none, mean, sum, got 'avg'"),
    ({"ignore_index": None}, TypeError, "ignore_index: expected an integer, got None"),
]
BAD_SAMPLED_OPTIONS = [
    ({"num_samples": 0}, ValueError, "num_samples: expected an integer of at least 1, got 0"),
    ({"num_samples": 2.5}, TypeError, "num_samples"),
    (
        {"sampler": samplers.Uniform(V + 1)},
        ValueError,
        r"sampler: expected one of num_classes=7 classes, got Uniform",
    ),
    ({"sampler": "uniform"}, TypeError, "sampler: expected a vastmax.samplers.Sampler, got str"),
    (
        {"sampler": samplers.Uniform(V, unique=True), "num_samples": V + 1},
        ValueError,
        "num_samples: expected at most 7",
    ),
]


def test_bad_options(case):
    cases = BAD_OPTIONS + (BAD_SIZES if case.sized else []) + (BAD_SAMPLED_OPTIONS if case.sampled else [])
    for change, error, message in cases:
        arguments = {"in_features": D, "num_classes": V, **case.options, **change}
        with pytest.raises(error, match=message):
            case.build(arguments.pop("in_features"), arguments.pop("num_classes"), **arguments)
