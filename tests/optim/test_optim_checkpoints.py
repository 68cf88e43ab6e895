import copy
import io

import pytest
import torch
from row_gradients import OPTIMIZERS, assert_same, bits, random_rows, sparse
from torch import nn
from torch.testing import assert_close

from vastmax.optim import SGD, LazyAdamW, RowwiseAdagrad

every_optimizer = pytest.mark.parametrize("optimizer_class", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_optimizer
def test_a_checkpoint_in_the_middle_goes_on_number_for_number(optimizer_class, dtype):
    g = generator()
    shapes = [(7, 3), (7,), (4, 2)]
    params = [nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in shapes]

    def optimize(params):
        return optimizer_class([{"params": params[:2], "lr": 0.3}, {"params": params[2:]}], lr=0.1)

    def give_gradients(*models):
        grads = [random_rows(shape, 3, g, dtype) for shape in shapes[:2]]
        grads.append(torch.randn(shapes[2], generator=g).to(dtype))
        for model in models:
            for param, grad in zip(model, grads, strict=True):
                param.grad = grad.clone()

    optimizer = optimize(params)
    for _ in range(3):
        give_gradients(params)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = saved["params"]
    resumed_optimizer = optimize(resumed)
    resumed_optimizer.load_state_dict(saved["optimizer"])
    for _ in range(3):
        for param, twin in zip(params, resumed, strict=True):
            assert_same(bits(param, optimizer), bits(twin, resumed_optimizer))
        give_gradients(params, resumed)
        optimizer.step()
        resumed_optimizer.step()
    for param, twin in zip(params, resumed, strict=True):
        assert_same(bits(param, optimizer), bits(twin, resumed_optimizer))


@every_optimizer
def test_a_checkpoint_of_other_strides_goes_on(optimizer_class):
    g = generator()
    weight = torch.randn(4, 6, generator=g, dtype=torch.float64).t()
    strided = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    contiguous = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    optimizer, resumed = optimizer_class([strided], lr=0.1), optimizer_class([contiguous], lr=0.1)
    strided.grad = torch.randn(6, 4, generator=g, dtype=torch.float64)
    optimizer.step()
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    contiguous.data.copy_(strided.data)
    strided.grad = torch.randn(6, 4, generator=g, dtype=torch.float64)
    contiguous.grad = strided.grad.clone()
    optimizer.step()
    resumed.step()
    assert_close(contiguous, strided, rtol=1e-13, atol=1e-14)


@every_optimizer
def test_a_checkpoint_of_another_shape_is_refused(optimizer_class):
    params = [nn.Parameter(torch.ones(5, 2)), nn.Parameter(torch.ones(4, 2))]
    optimizer, other = (optimizer_class([param]) for param in params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    with pytest.raises(ValueError, match=r"state_dict: expected '\w+' of shape \(4, 2\), .* got \(5, 2\)"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    with pytest.raises(ValueError, match="size of optimizer's group"):
        optimizer_class(params).load_state_dict(optimizer.state_dict())


@every_optimizer
def test_loading_heeds_the_hooks_of_the_user(optimizer_class):
    param, other = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(4, 2))
    optimizer, loaded = optimizer_class([param]), optimizer_class([other])
    param.grad = sparse([1], torch.randn(1, 2), 4)
    optimizer.step()
    loaded.register_load_state_dict_pre_hook(lambda _, state_dict: {**state_dict, "state": {}})
    loaded.load_state_dict(optimizer.state_dict())
    assert not loaded.state[other]


@every_optimizer
def test_a_checkpoint_of_before_an_option_takes_the_options_of_the_optimizer(optimizer_class):
    param = nn.Parameter(torch.ones(4, 2))
    optimizer, loaded = optimizer_class([param]), optimizer_class([param], stochastic_rounding=True)
    param.grad = sparse([1], torch.ones(1, 2), 4)
    optimizer.step()
    saved = optimizer.state_dict()
    for name in ("stochastic_rounding", "rowwise_second_moment"):
        saved["param_groups"][0].pop(name, None)
    loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["stochastic_rounding"] is True
    loaded.step()
    assert loaded.state[param]["step"] == 2


@pytest.mark.parametrize(
    ("optimizer_class", "name", "shape"),
    [
        (LazyAdamW, "last_step", (3,)),
        (LazyAdamW, "last_step", (4, 1)),
        (LazyAdamW, "exp_avg", (4, 1)),
        (LazyAdamW, "exp_avg_sq", (4,)),
        (RowwiseAdagrad, "sum", (1, 2)),
        (SGD, "momentum_buffer", (4, 1)),
    ],
)
def test_state_of_a_shape_that_the_kernels_do_not_take_is_refused(optimizer_class, name, shape):
    param = nn.Parameter(torch.ones(4, 2))
    options = {"momentum": 0.9} if optimizer_class is SGD else {}
    optimizer, other = (optimizer_class([param], **options) for _ in range(2))
    param.grad = sparse([1], torch.ones(1, 2), 4)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0][name] = torch.ones(shape)
    with pytest.raises(ValueError, match=rf"state_dict: expected '{name}' of shape \(4,.* got \({shape[0]},"):
        other.load_state_dict(saved)
    assert not other.state


@pytest.mark.parametrize(
    ("theirs", "optimizer_class"),
    [
        (lambda p: torch.optim.AdamW(p, amsgrad=True), LazyAdamW),
        (lambda p: torch.optim.AdamW(p, maximize=True), LazyAdamW),
        (lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.5), SGD),
        (lambda p: torch.optim.Adagrad(p, lr_decay=0.1), RowwiseAdagrad),
        (lambda p: torch.optim.Adagrad(p, weight_decay=0.1), RowwiseAdagrad),
    ],
    ids=["amsgrad", "maximize", "dampening", "lr_decay", "weight_decay"],
)
def test_a_checkpoint_of_a_variant_that_is_not_here_is_refused(theirs, optimizer_class, request):
    params = [nn.Parameter(torch.ones(4, 2))]
    name = request.node.callspec.id
    optimizer = optimizer_class(params)
    with pytest.raises(ValueError, match=f"state_dict: expected no '{name}', which this optimizer has not, got "):
        optimizer.load_state_dict(theirs(params).state_dict())
    assert not optimizer.state
