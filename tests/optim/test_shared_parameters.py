"""Parameters that several processes share, as `fully_shard` has them: here in a group of one process."""

import copy

import pytest
import torch
import torch.distributed as dist
from row_gradients import OPTIMIZERS, sparse
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing import assert_close

from vastmax import optim

VARIANTS = {
    **OPTIMIZERS,
    "SGD without momentum": optim.SGD,
    "SGD after Nesterov": lambda params, lr: optim.SGD(params, lr, 0.9, 0.1, nesterov=True),
}
every_optimizer = pytest.mark.parametrize("build", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def layers(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7, dtype=dtype), nn.Linear(7, 2, dtype=dtype))


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(model, optimizer, steps=3):
    for seed in range(steps):
        optimizer.zero_grad()
        hidden = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        model(hidden.to(next(model.parameters()).dtype)).double().square().sum().backward()
        optimizer.step()


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_are_those_of_parameters_that_one_process_has(mesh, build, dtype):
    models = [layers(dtype) for _ in range(2)]
    fully_shard(models[0], mesh=mesh)
    optimizers = [build(model.parameters(), lr=0.01) for model in models]
    version = models[0][0].weight._version
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, optimizer)
        optimizer.catch_up()
    assert models[0][0].weight._version > version
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert type(ours) is not type(theirs)
        assert_close(whole(ours.detach()), theirs.detach(), rtol=0.0, atol=0.0)
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (ours, theirs), strict=True)]
        assert states[0].keys() == states[1].keys()
        for name in states[0]:
            assert_close(whole(states[0][name]), states[1][name], rtol=0.0, atol=0.0)
            if name != "step":
                assert states[0][name].placements == ours.placements, "what a distributed checkpoint saves"


def test_stochastic_rounding(mesh):
    shared = layers(torch.bfloat16)
    plain = copy.deepcopy(shared)
    fully_shard(shared, mesh=mesh)
    for model in (shared, plain):
        generator = torch.Generator().manual_seed(1)
        train(model, optim.SGD(model.parameters(), 1e-3, stochastic_rounding=True, generator=generator))
    for ours, theirs in zip(shared.parameters(), plain.parameters(), strict=True):
        assert torch.equal(whole(ours.detach()), theirs.detach())


@pytest.mark.parametrize("placement", [Replicate(), Partial(), Shard(1)], ids=str)
def test_a_gradient_that_is_shared_in_another_way(mesh, placement):
    values, grad = torch.randn(4, 3), torch.randn(4, 3)
    param = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
    param.grad = DTensor.from_local(grad, mesh, [placement])
    optim.SGD([param], lr=0.5).step()
    assert_close(whole(param.detach()), values - 0.5 * grad)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clipping_beside_sparse_gradients(mesh, norm_type, max_norm):
    """A sharded body under a sparse head that each process has whole."""
    found = []
    for shared in (True, False):
        body, rows = layers(), nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
        if shared:
            fully_shard(body, mesh=mesh)
        body(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
        rows.grad = sparse([1, 3, 1], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).double(), 5)
        params = [*body.parameters(), rows]
        norm = optim.clip_grad_norm_(params, max_norm, norm_type)
        found.append([whole(norm), *(whole(p.grad).to_dense() for p in params)])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-13)
