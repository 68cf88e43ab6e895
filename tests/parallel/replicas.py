"""What replicas do together: each function runs on all of them at once, and asserts."""

import copy
import datetime
import pickle
import traceback

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vastmax import heads, optim, parallel, samplers

D, V = 4, 9
CHECKS = {}


def check(function):
    """Have the replicas run this."""
    CHECKS[function.__name__] = function
    return function


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)  # every replica its own
        self.body = nn.Linear(D, D, dtype=torch.float64)
        options = {"num_samples": 5, "sparse": True, "dtype": torch.float64, **options}
        self.head = heads.SampledSoftmax(D, V, reduction="sum", **options)
        nn.init.normal_(self.head.weight)

    def forward(self, x, target):
        return self.head(self.body(x), target, generator=torch.Generator().manual_seed(1))


class WordVectors(nn.Module):
    """All of whose parameters are sparse; or tied; or a dense embedding tied to a sparse head."""

    def __init__(self, *, tied=False, sparse=True):
        super().__init__()
        torch.manual_seed(dist.get_rank())
        self.embedding = nn.Embedding(V, D, sparse=sparse, dtype=torch.float64)
        self.head = heads.NegativeSampling(D, V, num_samples=3, sparse=True, reduction="sum", dtype=torch.float64)
        nn.init.normal_(self.head.weight)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x, target):
        return self.head(self.embedding(x), target, generator=torch.Generator().manual_seed(1))


def rows(seed, number=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(number, D, generator=g, dtype=torch.float64), torch.randint(V, (number,), generator=g)


def gradients(model):
    return {n: None if x.grad is None else x.grad.to_dense().clone() for n, x in model.named_parameters()}


def mean_gradients(model, batches, loss_of=lambda model, batch: model(*batch)):
    """The mean over the replicas' batches of the gradients, each found by itself on a copy of the model."""
    alone = copy.deepcopy(model)
    alone._forward_hooks.clear()
    alone._forward_pre_hooks.clear()
    for batch in batches:
        (loss_of(alone, batch) / len(batches)).backward()
    return gradients(alone)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def own(batches):
    return batches[dist.get_rank()]


@check
def test_the_first_process_gives_the_parameters():
    model = Model()
    before = [x.detach().clone() for x in model.head.parameters()]
    parallel.reduce_rows(model)
    for parameter, was in zip(model.head.parameters(), before, strict=True):
        everywhere = [torch.empty_like(was) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, parameter.detach())
        assert torch.equal(everywhere[0], everywhere[1])
        dist.broadcast(was, 0)
        assert torch.equal(everywhere[1], was)


@check
def test_gradients_are_sparse_coalesced_and_equal():
    ddp = DistributedDataParallel(parallel.reduce_rows(Model()))
    ddp(*rows(dist.get_rank())).backward()
    for parameter in ddp.module.head.parameters():
        assert parameter.grad.is_sparse
        assert parameter.grad.is_coalesced()
        dense = parameter.grad.to_dense()
        everywhere = [torch.empty_like(dense) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, dense)
        assert torch.equal(everywhere[0], everywhere[1])
    assert not ddp.module.body.weight.grad.is_sparse


def trained(batches, wrapper_options=None, make=Model, loss_of=lambda model, batch: model(*batch)):
    """Compare a backward pass, twice over, with the mean of the replicas' own."""
    model = parallel.reduce_rows(make())
    ddp = DistributedDataParallel(model, **(wrapper_options or {}))
    for _ in range(3):  # DDP makes other buckets after the first
        ddp.zero_grad()
        loss_of(ddp, own(batches)).backward()
        assert_same(gradients(model), mean_gradients(model, batches, loss_of))


@check
def test_unequal_rows():
    trained([rows(1, 7), rows(2, 2)])


@check
def test_no_rows_in_one_process():
    trained([rows(1, 3), rows(2, 0)])


@check
def test_every_target_ignored_in_one_process():
    x, target = rows(1)
    trained([(x, torch.full_like(target, -100)), rows(2)])


@check
def test_no_rows_at_all():
    trained([rows(1, 0), rows(2, 0)])


@check
def test_static_graph():
    trained([rows(1), rows(2)], {"static_graph": True})


@check
def test_find_unused_parameters():
    trained([rows(1), rows(2)], {"find_unused_parameters": True})


@check
def test_gradients_as_views_of_buckets():
    trained([rows(1), rows(2)], {"gradient_as_bucket_view": True})


@check
def test_a_group_of_ones_own():
    group = dist.new_group([0, 1])
    model = parallel.reduce_rows(Model(), group)
    ddp = DistributedDataParallel(model, process_group=group)
    ddp(*own([rows(1), rows(2)])).backward()
    assert_same(gradients(model), mean_gradients(model, [rows(1), rows(2)]))


class HeadInOneProcess(Model):
    """The head takes part in the first process alone."""

    def forward(self, x, target):
        hidden = self.body(x)
        return self.head(hidden, target) if dist.get_rank() == 0 else hidden.sum()


@check
def test_a_head_without_a_gradient_in_one_process():
    model = parallel.reduce_rows(HeadInOneProcess())
    ddp = DistributedDataParallel(model)
    for _ in range(2):
        ddp.zero_grad()
        ddp(*rows(1)).backward()
        sums = [torch.zeros(V, D, dtype=torch.float64) for _ in range(2)]
        dist.all_gather(sums, model.head.weight.grad.to_dense())
        assert torch.equal(*sums)
        assert sums[0].any()


class HeadInNone(Model):
    def forward(self, x, target):
        return self.body(x).sum()


@check
def test_a_gradient_that_none_has_stays_none():
    model = parallel.reduce_rows(HeadInNone())
    ddp = DistributedDataParallel(model)
    ddp(*rows(1)).backward()
    assert model.head.weight.grad is None


class Outputs(Model):
    """Returns more than the loss."""

    def forward(self, x, target):
        return {"loss": super().forward(x, target), "extra": [x, (target, None)]}


@check
def test_outputs_in_a_container():
    trained([rows(1), rows(2)], make=Outputs, loss_of=lambda model, batch: model(*batch)["loss"])


class BackwardWithin(Model):
    """As by Lightning's manual optimization: nothing that is returned has a gradient."""

    def forward(self, x, target):
        super().forward(x, target).backward()


@check
def test_backward_within_the_forward_of_a_replica():
    model = parallel.reduce_rows(BackwardWithin())
    for parameter in model.body.parameters():
        dist.broadcast(parameter.detach(), 0)
    model(*own([rows(1), rows(2)]))
    expected = mean_gradients(model, [rows(1), rows(2)], lambda alone, batch: Model.forward(alone, *batch))
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(model.get_parameter(name).grad.to_dense(), expected[name])


@check
def test_accumulation_with_and_without_no_sync():
    batches = [[rows(1), rows(2)], [rows(3), rows(4)], [rows(5, 1), rows(6, 3)]]
    for first in (True, False):
        model = parallel.reduce_rows(Model())
        ddp = DistributedDataParallel(model)
        with ddp.no_sync():
            ddp(*own(batches[0])).backward()
            alone = gradients(model)["head.weight"]
            if first:
                ddp(*own(batches[1])).backward()
        others = [torch.empty_like(alone) for _ in range(2)]
        dist.all_gather(others, alone)
        assert not torch.equal(*others)  # nothing has been exchanged
        if not first:
            ddp(*own(batches[1])).backward()
        ddp(*own(batches[2])).backward()
        each = [mean_gradients(model, batch) for batch in batches]
        assert_same(gradients(model), {name: sum(grads[name] for grads in each) for name in each[0]})


@check
def test_two_forwards_before_one_backward():
    batches = [rows(1), rows(2)]
    trained(batches, loss_of=lambda model, batch: model(*batch) + 0.5 * model(*rows(9)), make=Model)


@check
def test_a_backward_pass_that_failed_is_forgotten():
    model = parallel.reduce_rows(Model())
    ddp = DistributedDataParallel(model)

    def fail(_):
        raise RuntimeError("on purpose")

    with ddp.no_sync():  # DDP itself does not survive it elsewhere
        hidden = model.body(rows(1)[0])
        hidden.register_hook(fail)
    model._row_reduction.wanted = True
    loss = model.head(hidden, rows(1)[1])
    with pytest.raises(RuntimeError, match="on purpose"):
        loss.backward()
    model.zero_grad()
    ddp(*own([rows(1), rows(2)])).backward()
    assert_same(gradients(model), mean_gradients(model, [rows(1), rows(2)]))


@check
def test_a_model_of_sparse_parameters_needs_no_wrapper():
    for tied in (False, True):
        model = parallel.reduce_rows(WordVectors(tied=tied))
        batches = [(torch.tensor([1, 1, 3]), torch.tensor([2, 0, 1])), (torch.tensor([3]), torch.tensor([8]))]
        for _ in range(2):
            model.zero_grad()
            model(*own(batches)).backward()
            assert model.embedding.weight.grad.is_sparse
            assert_same(gradients(model), mean_gradients(model, batches))


@check
def test_a_dense_embedding_tied_to_a_sparse_head():
    class Tied(WordVectors):
        def __init__(self):
            super().__init__(tied=True, sparse=False)
            self.body = nn.Linear(D, D, dtype=torch.float64)

        def forward(self, x, target):
            hidden = self.body(self.embedding(x))
            return self.head(hidden, target, generator=torch.Generator().manual_seed(1))

    batches = [(torch.tensor([1, 1, 3]), torch.tensor([2, 0, 1])), (torch.tensor([3]), torch.tensor([8]))]
    trained(batches, make=Tied)


@check
def test_nothing_is_sent_at_a_forward():
    counts = torch.arange(V, 0, -1)
    for sampler in (samplers.Unigram(counts), samplers.InBatch(V)):
        for sparse in (False, True):
            model = Model(sampler=sampler, sparse=sparse, class_weight=torch.ones(V))
            ddp = DistributedDataParallel(parallel.reduce_rows(model) if sparse else model)
            ddp(*rows(1)).backward()
            assert not ddp.will_sync_module_buffers()


@check
def test_clipping_sees_the_mean():
    model = parallel.reduce_rows(Model())
    ddp = DistributedDataParallel(model)
    ddp(*own([rows(1), rows(2)])).backward()
    expected = mean_gradients(model, [rows(1), rows(2)])
    norm = optim.clip_grad_norm_(model.parameters(), 0.1)
    torch.testing.assert_close(norm, torch.cat([grad.flatten() for grad in expected.values()]).norm())


@check
def test_half_precision_is_summed_in_single():
    model = parallel.reduce_rows(Model(dtype=torch.bfloat16))
    first = dist.get_rank() == 0
    model.head.weight.grad = torch.sparse_coo_tensor(
        [[2]], torch.full((1, D), 1.0 if first else 2.0**-7, dtype=torch.bfloat16), (V, D)
    )
    model._row_reduction._reduce()
    mean = torch.tensor((1 + 2.0**-7) / 2).bfloat16()
    assert (model.head.weight.grad.to_dense()[2] == mean).all()


@check
def test_a_copy_reduces_for_itself():
    for copied in (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))):
        model = parallel.reduce_rows(Model())
        other = copied(model)
        ddp = DistributedDataParallel(other)
        ddp(*own([rows(1), rows(2)])).backward()
        assert model.head.weight.grad is None
        assert_same(gradients(other), mean_gradients(other, [rows(1), rows(2)]))


@check
def test_once_more_is_as_once():
    model = Model()
    ddp = DistributedDataParallel(parallel.reduce_rows(parallel.reduce_rows(model)))
    ddp(*own([rows(1), rows(2)])).backward()
    assert_same(gradients(model), mean_gradients(model, [rows(1), rows(2)]))


@check
def test_wrapped_too_early():
    model = Model(sparse=False)
    ddp = DistributedDataParallel(model)
    with pytest.raises(TypeError, match="model: expected the module that is to be wrapped"):
        parallel.reduce_rows(ddp)
    model.head.sparse = True
    parallel.reduce_rows(model)
    with pytest.raises(RuntimeError, match=r"before it does, got one that holds 'head.weight' itself"):
        ddp(*rows(1))


@check
def test_another_group():
    ddp = DistributedDataParallel(parallel.reduce_rows(Model(), dist.new_group([0, 1])))
    with pytest.raises(RuntimeError, match="the process_group of DistributedDataParallel"):
        ddp(*rows(1))


@check
def test_join():
    ddp = DistributedDataParallel(parallel.reduce_rows(Model()))
    many = pytest.raises(RuntimeError, match=r"DistributedDataParallel\.join: expected as many batches")
    with ddp.join(), many:
        ddp(*rows(1))


@check
def test_steps_within_backward_are_refused():
    model = Model()
    optimizer = optim.SGD(model.parameters())
    with (
        optim.apply_in_backward(optimizer, model.head.weight),
        pytest.raises(ValueError, match="apply_in_backward"),
    ):
        parallel.reduce_rows(model)
    ddp = DistributedDataParallel(parallel.reduce_rows(model))
    with (
        optim.apply_in_backward(optimizer, model.head.weight),
        pytest.raises(ValueError, match="apply_in_backward"),
    ):
        ddp(*rows(1))
    ddp(*rows(1)).backward()


@check
def test_steps_within_backward_are_refused_of_dense_gradients_too():
    for options in ({"sparse": False}, {"sparse": False, "shared": False, "softcap": 5.0}):
        model = Model(**options)
        ddp, optimizer = DistributedDataParallel(model), optim.SGD(model.parameters())
        of_one = pytest.raises(RuntimeError, match="apply_in_backward: expected a model of one process")
        with optim.apply_in_backward(optimizer, model.head.bias), of_one:
            ddp(*rows(1))
        ddp(*rows(1)).backward()


def worker(rank, folder):
    """Run the checks; leave what went wrong in a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    errors = {}
    for name, function in CHECKS.items():
        try:
            function()
        except Exception:
            errors[name] = traceback.format_exc()
    torch.save(errors, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
