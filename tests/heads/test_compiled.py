"""Heads in compiled and exported graphs: one graph, or two around the head, and the same losses and gradients."""

import pytest
import torch
from conformance import CASES, D, V, batch, call, gradients
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from vastmax import functional, heads, samplers

COMPILED = {name: case for name, case in CASES.items() if "," not in name or case.follows} | {
    name: CASES[name]
    for name in (
        "Softmax, capped",
        "Softmax, learned temperature",
        "Softmax, all of it",
        "SampledSoftmax, sparse",
        "SampledSoftmax, per row",
        "SampledSoftmax, smoothed",
        "NCE, learned log-partition",
        "AdaptiveSoftmax, sampled tails",
    )
}
"""Each head without options, each that follows the batch, and those whose options are traced otherwise."""

WHOLE = ("Softmax", "SampledSoftmax", "NCE", "NegativeSampling", "OneVsEach", "ImportanceSampled", "SigSoftmax")
"""Heads that are always within the graph, unless their gradients are sparse or their q depends on the batch."""

quiet = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks at it


class Model(nn.Module):
    """A head between something before it and something behind it."""

    def __init__(self, head):
        super().__init__()
        self.body, self.head = nn.Linear(D, D, dtype=torch.float64), head

    def forward(self, hidden, target):
        return self.head(self.body(hidden), target) * 2


@quiet
@pytest.mark.parametrize("name", COMPILED)
def test_a_head_is_in_the_graph_of_its_model_or_breaks_it_once(name):
    case = COMPILED[name]
    model = Model(case.make(reduction="none"))
    hidden, target, g = batch()
    if not case.follows:
        target[-1] = -100  # the last, so that the others draw the same
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    whole = name.startswith(WHOLE) and not (case.follows or "sparse" in name)
    assert whole == (model.head.compiles and name.startswith(WHOLE))
    compiled = torch.compile(model, backend=counter, fullgraph=whole)
    inputs = [hidden, *model.parameters()]
    found = []
    for function in (compiled, model):
        torch.manual_seed(1)  # the global generator: a graph holds no other
        loss = function(hidden, target)
        found.append([loss, *gradients(loss, inputs, upstream)])
    assert counter.frame_count <= 2
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@quiet
@pytest.mark.parametrize("options", [{}, {"learn_temperature": True}, {"symmetric": True}, {"decoupled": True}])
def test_contrastive_losses_are_in_the_graph(options):
    loss_of = heads.InfoNCE(0.3, reduction="none", **options).double()
    query, key = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 0, 2, 1])
    upstream = torch.randn(5, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    for more in ({}, {"labels": labels}):
        ours, theirs = (
            [loss, *gradients(loss, [query, key, *loss_of.parameters()], upstream)]
            for loss in (compiled(query, key, **more), loss_of(query, key, **more))
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@quiet
@pytest.mark.parametrize("dynamic", [None, True])
def test_linear_cross_entropy_is_in_the_graph_whatever_the_number_of_rows(dynamic):
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True)

    def loss_of(hidden, target):
        return functional.linear_cross_entropy(
            hidden * 2, weight, target, linear_bias=bias, softcap=5.0, label_smoothing=0.1, z_loss=0.01
        )

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss_of, backend=counter, fullgraph=True, dynamic=dynamic)
    for rows in (6, 9, 12):
        hidden, target, _ = batch((rows,), seed=rows)
        target[0] = -100
        ours, theirs = compiled(hidden, target), loss_of(hidden, target)
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(*(gradients(x, [hidden, weight, bias]) for x in (ours, theirs)), strict=True):
            torch.testing.assert_close(one, other)
    assert counter.frame_count <= 2


def test_a_wrong_value_is_told_by_the_graph():
    head = heads.SampledSoftmax(D, V, sampler=samplers.Uniform(V), num_samples=3)
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    hidden, target, _ = batch(dtype=torch.float32)
    compiled(hidden, target)
    with pytest.raises(RuntimeError, match=r"target: expected class ids in \[0, 7\)"):
        compiled(hidden, target.where(target != target[0], V))


class Method(nn.Module):
    """A method of a head, as something that is exported."""

    def __init__(self, head, name):
        super().__init__()
        self.head, self.name = head, name

    def forward(self, hidden, target):
        if self.name == "nll":
            return (self.head.nll(hidden, target),)
        return tuple(self.head.topk(hidden, 3)) if self.name == "topk" else (self.head.log_prob(hidden),)


EXPORTED = {
    name: ("nll", "log_prob")
    if name in ("HierarchicalSoftmax", "ClassFactoredSoftmax", "AdaptiveSoftmax")
    else ("nll", "log_prob", "topk")
    for name in CASES
    if "," not in name and name not in ("Entmax", "MixtureOfSoftmaxes")
}
"""What of each head can be exported for any number of rows: the search of a tree looks at what it finds."""


@pytest.mark.parametrize("name", EXPORTED)
def test_what_a_head_tells_can_be_exported_for_any_number_of_rows(name):
    head = CASES[name].make()
    hidden, target, _ = batch()
    any_number = torch.export.Dim("n")
    for method in EXPORTED[name]:
        module = Method(head, method)
        exported = torch.export.export(
            module, (hidden.detach(), target), dynamic_shapes={"hidden": {0: any_number}, "target": {0: any_number}}
        )
        hidden, target, _ = batch((9,), seed=3)
        for ours, theirs in zip(exported.module()(hidden, target), module(hidden, target), strict=True):
            torch.testing.assert_close(ours, theirs)


@quiet
def test_a_draw_of_a_graph_is_the_draw_outside():
    for sampler in (samplers.Unigram(range(1, 8)), samplers.LogUniform(V), samplers.Uniform(V)):
        torch._dynamo.reset()
        compiled = torch.compile(lambda: sampler.sample((4, 3)), fullgraph=True, backend="aot_eager")  # noqa: B023
        torch.manual_seed(5)
        ours = compiled()
        torch.manual_seed(5)
        theirs = sampler.sample((4, 3))
        assert torch.equal(ours.ids, theirs.ids)
        torch.testing.assert_close(ours.log_expected_count, theirs.log_expected_count)
        assert not torch.equal(compiled().ids, ours.ids)


def test_call_is_the_training_loss_with_its_hooks():
    head = heads.Softmax(D, V, dtype=torch.float64)
    seen = []
    head.register_forward_hook(lambda *_: seen.append(True))
    hidden, target, _ = batch()
    assert call(CASES["Softmax"], head, hidden, target).item() == head.forward(hidden, target).item()
    assert seen == [True]


@quiet
def test_a_checkpoint_within_a_graph_draws_as_its_forward_did():
    head = heads.SampledSoftmax(D, V, sampler=samplers.Unigram(range(1, 8)), num_samples=3, dtype=torch.float64)
    hidden, target, _ = batch()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *row: checkpoint(head, *row, use_reentrant=False), backend="aot_eager", fullgraph=True
    )
    found = []
    for loss_of in (compiled, head):
        torch.manual_seed(3)
        loss = loss_of(hidden, target)
        found.append([loss, *gradients(loss, [hidden, *head.parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@quiet
@pytest.mark.parametrize("kind", [heads.Softmax, heads.SampledSoftmax, heads.NCE])
def test_half_precision_is_summed_in_float32_in_a_graph_too(kind):
    head = kind(D, V, dtype=torch.bfloat16)
    hidden, target, _ = batch(dtype=torch.float32)
    projection = torch.randn(D, D)

    def loss_of(hidden, target):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return head(hidden @ projection, target)

    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    found = []
    for function in (compiled, loss_of):
        torch.manual_seed(3)
        loss = function(hidden, target)
        assert loss.dtype == torch.float32
        found.append([loss, *gradients(loss, [hidden, *head.parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
