"""Rows that owe steps make them: where the dense optimizer has them, and nothing else moves."""

import copy
import io

import pytest
import torch
from row_gradients import OPTIMIZERS, assert_same, bits, random_rows, sparse
from test_lazy_adamw import OPTIONS, reference
from test_sgd import EXACT, every_variant
from torch import nn
from torch.testing import assert_close

from vastmax import kernels
from vastmax.heads import SampledSoftmax
from vastmax.optim import SGD, LazyAdamW, RowwiseAdagrad, apply_in_backward, catch_up_before_reading, row_optimizer
from vastmax.scoring import chosen_logits

every_optimizer = pytest.mark.parametrize("optimizer_class", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
every_backend = pytest.mark.parametrize("backend", ["torch", "numba"])
LAZY = [LazyAdamW, OPTIMIZERS["LazyAdamW-by-row"], OPTIMIZERS["SGD"]]
every_lazy = pytest.mark.parametrize("optimizer_class", LAZY, ids=["LazyAdamW", "LazyAdamW-by-row", "SGD"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_grads(g, shape=(6, 3), count=20, dtype=torch.float64):
    """Gradients of some rows, in which the last is of few: most rows are behind after it."""
    return [random_rows(shape, 1 + t % 3, g, dtype) for t in range(count)]


def take_steps(optimizer, param, grads):
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()


def with_every_row(grad):
    """The same sparse gradient, with rows of zeros for the others."""
    return sparse(range(len(grad)), grad.to_dense(), len(grad))


@every_variant
@every_backend
@pytest.mark.parametrize("shape", [(6, 3), (6,), (6, 2, 2)])
def test_every_row_is_where_torch_sgd_has_it(options, backend, shape, monkeypatch):
    """Again and again in one run, some rows at a time."""
    monkeypatch.setattr(row_optimizer, "CAUGHT_UP_ELEMENTS", 8)
    g = generator()
    ours, theirs = (nn.Parameter(torch.randn(shape, generator=generator(1), dtype=torch.float64)) for _ in range(2))
    optimizer, sgd = SGD([ours], **options), torch.optim.SGD([theirs], **options)
    with kernels.use(backend):
        for number, grad in enumerate(some_grads(g, shape, 30)):
            take_steps(optimizer, ours, [grad])
            take_steps(sgd, theirs, [grad.to_dense()])
            if number in (7, 8, 29):
                if number != 8 and (options.get("momentum") or options.get("weight_decay")):
                    assert not torch.allclose(ours, theirs, atol=1e-4), "most rows are behind"
                optimizer.catch_up()
                assert_close(ours, theirs, **EXACT)
                if options.get("momentum"):
                    buffers = (o.state[p]["momentum_buffer"] for o, p in ((optimizer, ours), (sgd, theirs)))
                    assert_close(*buffers, **EXACT)


@every_backend
def test_every_row_is_where_the_formula_of_lazy_adamw_has_it(backend):
    grads = some_grads(generator())
    param = nn.Parameter(torch.randn(6, 3, generator=generator(1), dtype=torch.float64))
    weight = param.detach().clone()
    optimizer = LazyAdamW([param], **OPTIONS)
    with kernels.use(backend):
        take_steps(optimizer, param, grads)
        optimizer.catch_up()
    expected = reference(weight, [*grads[:-1], grads[-1].to_dense()], **OPTIONS)  # a step that touches every row
    state = optimizer.state[param]
    for found, exact in zip((param.detach(), state["exp_avg"], state["exp_avg_sq"]), expected, strict=True):
        assert_close(found, exact, rtol=1e-12, atol=1e-14)


def test_lazy_adamw_that_catches_up_at_every_step_is_adamw():
    """Nothing is left to its approximation."""
    ours, theirs = (nn.Parameter(torch.randn(6, 3, generator=generator(1), dtype=torch.float64)) for _ in range(2))
    optimizer, adamw = LazyAdamW([ours], **OPTIONS), torch.optim.AdamW([theirs], **OPTIONS)
    for grad in some_grads(generator()):
        take_steps(optimizer, ours, [grad])
        optimizer.catch_up()
        take_steps(adamw, theirs, [grad.to_dense()])
        assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@every_lazy
@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_a_last_step_of_gradient_zero_bit_for_bit(optimizer_class, backend, dtype):
    grads = some_grads(generator(), dtype=dtype)
    seen = []
    for touched, ends in ((grads, True), ([*grads[:-1], with_every_row(grads[-1])], False)):
        param = nn.Parameter(torch.randn(6, 3, generator=generator(1)).to(dtype))
        optimizer = optimizer_class([param], lr=0.1)
        with kernels.use(backend):
            take_steps(optimizer, param, touched)
            if ends:
                before = bits(param, optimizer)
                optimizer.catch_up()
                assert not torch.equal(param, before["weight"])
        seen.append(bits(param, optimizer))
    assert_same(*seen)


@every_lazy
def test_rows_that_are_named_and_no_others(optimizer_class):
    param = nn.Parameter(torch.randn(6, 3, generator=generator(1), dtype=torch.float64))
    twin = nn.Parameter(param.detach().clone())
    optimizer, whole = (optimizer_class([p], lr=0.1) for p in (param, twin))
    for one, p in ((optimizer, param), (whole, twin)):
        take_steps(one, p, some_grads(generator()))
    before = bits(param, optimizer)
    whole.catch_up()
    optimizer.catch_up(torch.empty(0, dtype=torch.int64))
    assert_same(bits(param, optimizer), before)
    optimizer.catch_up(torch.tensor([[4, 1], [4, 4]]))
    for name, value in bits(param, optimizer).items():
        if value.ndim > 0:
            others = [0, 2, 3, 5]
            assert torch.equal(value[others], before[name][others]), name
            assert torch.equal(value[[1, 4]], whole.state[twin].get(name, twin.detach())[[1, 4]]), name
    assert optimizer.state[param]["step"] == 20
    optimizer.catch_up()
    assert_same(bits(param, optimizer), bits(twin, whole))


@every_lazy
def test_a_second_time_changes_nothing_and_is_no_change_to_autograd(optimizer_class):
    param = nn.Parameter(torch.randn(6, 3, generator=generator(1)))
    optimizer = optimizer_class([param], lr=0.1)
    take_steps(optimizer, param, some_grads(generator(), dtype=torch.float32))
    version = param._version
    optimizer.catch_up()
    assert param._version > version
    before, version = bits(param, optimizer), param._version
    optimizer.catch_up()
    optimizer.catch_up(torch.tensor([3]))
    assert_same(bits(param, optimizer), before)
    assert param._version == version


def test_autograd_notices_that_a_saved_weight_is_gone():
    param = nn.Parameter(torch.randn(6, 3))
    optimizer = SGD([param], lr=0.1, momentum=0.9)
    take_steps(optimizer, param, [sparse([1], torch.ones(1, 3), 6), sparse([2], torch.ones(1, 3), 6)])
    (logits,) = chosen_logits(torch.randn(2, 3).requires_grad_(), param, torch.tensor([1, 4]))
    optimizer.catch_up()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


@every_optimizer
def test_nothing_is_owed_before_the_first_step_and_under_dense_gradients(optimizer_class):
    params = [nn.Parameter(torch.randn(6, 3, generator=generator(i))) for i in range(2)]
    optimizer = optimizer_class(params, lr=0.1)
    optimizer.catch_up()
    assert not optimizer.state
    take_steps(optimizer, params[0], [torch.randn(6, 3, generator=generator(i)) for i in range(3)])
    before = bits(params[0], optimizer)
    optimizer.catch_up()
    optimizer.catch_up(torch.tensor([5]), params)
    assert_same(bits(params[0], optimizer), before)
    assert params[1] not in optimizer.state


@pytest.mark.parametrize("build", [RowwiseAdagrad, SGD])
def test_optimizers_that_owe_nothing(build):
    param = nn.Parameter(torch.randn(6, 3))
    optimizer = build([param], lr=0.1)
    take_steps(optimizer, param, some_grads(generator(), dtype=torch.float32))
    before = bits(param, optimizer)
    optimizer.catch_up()
    assert_same(bits(param, optimizer), before)


def two_groups(optimizer_class):
    """Embedding rows, class rows and their bias, in groups of their own options; the last added later."""
    shapes = [(9, 2), (6, 3), (6,)]
    start = [torch.randn(shape, generator=generator(i), dtype=torch.float64) for i, shape in enumerate(shapes)]
    params = [nn.Parameter(values) for values in start]
    optimizer = optimizer_class([{"params": params[:1], "lr": 0.3}, {"params": params[1:2]}], lr=0.1)
    optimizer.add_param_group({"params": params[2:], "lr": 0.2, "weight_decay": 0.3})
    return params, optimizer


def train(params, optimizer, g, count=7):
    for t in range(count):
        for param in params:
            param.grad = random_rows(param.shape, 1 + t % 3, g, torch.float64)
        optimizer.step()


@every_lazy
def test_groups_by_their_own_options_and_parameters_that_are_named(optimizer_class):
    params, optimizer = two_groups(optimizer_class)
    train(params, optimizer, generator(5))
    apart = [nn.Parameter(p.detach().clone()) for p in params]
    options = [{"lr": 0.3}, {"lr": 0.1}, {"lr": 0.2, "weight_decay": 0.3}]
    for param, twin, own in zip(params, apart, options, strict=True):
        alone = optimizer_class([twin], **own)
        alone.state[twin] = copy.deepcopy(optimizer.state[param])
        alone.catch_up()
    before = [p.detach().clone() for p in params]
    optimizer.catch_up(parameters=params[1:2])
    assert torch.equal(params[0], before[0])
    assert torch.equal(params[2], before[2])
    assert not torch.equal(params[1], before[1])
    optimizer.catch_up()
    for param, twin in zip(params, apart, strict=True):
        assert_close(param, twin, rtol=0.0, atol=0.0)


@every_lazy
def test_a_saved_optimizer_owes_what_it_owed(optimizer_class):
    (params, optimizer), (others, loaded) = two_groups(optimizer_class), two_groups(optimizer_class)
    g = generator(5)
    for _ in range(2):  # saved with debts, and without
        train(params, optimizer, g)
        file = io.BytesIO()
        torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for param, value in zip(others, saved["params"], strict=True):
            param.data.copy_(value.data)
        loaded.load_state_dict(saved["optimizer"])
        for one in (optimizer, loaded):
            one.catch_up()
        for param, twin in zip(params, others, strict=True):
            assert_same(bits(param, optimizer), bits(twin, loaded))
    one, other = copy.deepcopy(g.get_state()), generator()
    other.set_state(one)
    train(params, optimizer, g)
    train(others, loaded, other)
    for param, twin in zip(params, others, strict=True):
        assert_same(bits(param, optimizer), bits(twin, loaded))


def test_called_before_each_change_of_the_rate_it_is_torch_sgd_on_that_schedule():
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    ours, theirs = (nn.Parameter(torch.randn(6, 3, generator=generator(1), dtype=torch.float64)) for _ in range(2))
    optimizer, sgd = SGD([ours], **options), torch.optim.SGD([theirs], **options)
    schedules = [torch.optim.lr_scheduler.StepLR(one, 1, gamma=0.5) for one in (optimizer, sgd)]
    for grads in [some_grads(generator(i), count=5) for i in range(3)]:
        take_steps(optimizer, ours, grads)
        take_steps(sgd, theirs, [grad.to_dense() for grad in grads])
        optimizer.catch_up()
        for schedule in schedules:
            schedule.step()
    assert_close(ours, theirs, **EXACT)


@every_lazy
def test_the_options_of_now(optimizer_class):
    param = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = optimizer_class([param], lr=torch.tensor(0.1))
    take_steps(optimizer, param, [sparse([r], torch.ones(1, 2, dtype=torch.float64), 3) for r in (0, 1)])
    optimizer.param_groups[0]["lr"].zero_()
    before = bits(param, optimizer)
    optimizer.catch_up()
    assert torch.equal(param, before["weight"])
    assert optimizer.state[param]["last_step"].tolist() == [2, 2, 2]


@every_lazy
def test_steps_within_backward_owe_and_pay_as_deferred_ones_do(optimizer_class):
    seen = []
    for fused in (False, True):
        weight = nn.Parameter(torch.randn(30, 5, generator=generator(1), dtype=torch.float64))
        optimizer, g = optimizer_class([weight], lr=0.1), generator(2)
        if fused:
            apply_in_backward(optimizer, weight)
        for number in range(6):
            optimizer.zero_grad()
            hidden = torch.randn(4, 5, generator=g, dtype=torch.float64)
            ids = torch.randint(30, (6,), generator=g)
            (logits,) = chosen_logits(hidden, weight, ids, sparse=True)
            logits.backward(torch.randn(4, 6, generator=g, dtype=torch.float64))
            optimizer.step()
            if number in (3, 5):
                optimizer.catch_up()
        assert (optimizer.state[weight]["last_step"] == 6).all()
        seen.append(bits(weight, optimizer))
    for name in seen[0]:
        assert_close(seen[1][name], seen[0][name], rtol=1e-12, atol=1e-13)


def test_what_half_precision_owes_is_rounded_stochastically_if_asked():
    """A debt of a quarter of the distance to the next number: rounded to the nearest it is nothing."""
    num_rows, ulp = 20_000, 2.0**-8  # of bfloat16 below 1
    seen = {}
    for stochastic in (False, True):
        param = nn.Parameter(torch.ones(num_rows + 1, dtype=torch.bfloat16))
        options = {"stochastic_rounding": stochastic, "generator": generator(0)}
        optimizer = SGD([param], lr=1.0, momentum=0.5, **options)
        owing = sparse(range(num_rows), torch.full((num_rows,), ulp / 2, dtype=torch.bfloat16), num_rows + 1)
        another = sparse([num_rows], torch.zeros(1, dtype=torch.bfloat16), num_rows + 1)
        take_steps(optimizer, param, [owing, another])
        param.data.fill_(1.0)
        optimizer.catch_up()
        seen[stochastic] = param.detach()[:num_rows]
        assert optimizer.state[param]["momentum_buffer"].dtype == torch.float32
    assert (seen[False] == 1).all()
    assert set(seen[True].unique().tolist()) == {1.0, 1 - ulp}
    share = (seen[True] < 1).double().mean().item()
    assert abs(share - 0.25) < 6 * (0.25 * 0.75 / num_rows) ** 0.5


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.tensor([0, 6]), ValueError, r"rows: expected class ids in \[0, 6\), got 6 at \(1,\)"),
        (torch.tensor([-1]), ValueError, r"rows: expected class ids in \[0, 6\), got -1 at \(0,\)"),
        (torch.tensor([1.0]), TypeError, "rows: expected int64 class ids, got dtype torch.float32"),
        ([1, 2], TypeError, "rows: expected an int64 tensor of class ids, got list"),
    ],
)
def test_bad_rows_change_nothing(rows, error, message):
    params, optimizer = two_groups(OPTIMIZERS["SGD"])
    train(params, optimizer, generator(5))
    before = [bits(param, optimizer) for param in params]
    with pytest.raises(error, match=message):
        optimizer.catch_up(rows)
    for param, was in zip(params, before, strict=True):
        assert_same(bits(param, optimizer), was)
    if isinstance(rows, torch.Tensor) and rows.dtype == torch.int64 and rows.min() >= 0:
        optimizer.catch_up(rows, params[:1])  # which has nine


def test_parameters_of_another_optimizer_change_nothing():
    params, optimizer = two_groups(OPTIMIZERS["SGD"])
    train(params, optimizer, generator(5))
    before = bits(params[0], optimizer)
    with pytest.raises(ValueError, match=r"parameter of shape \(2,\): expected one of the optimizer's"):
        optimizer.catch_up(None, [params[0], nn.Parameter(torch.zeros(2))])
    assert_same(bits(params[0], optimizer), before)


class LoopAdamW:
    """The formula of LazyAdamW in loops: a row that is behind makes the steps it missed, the last as AdamW does."""

    def __init__(self, weight, lr, betas, eps, weight_decay):
        self.weight, self.m, self.v = weight, torch.zeros_like(weight), torch.zeros_like(weight)
        self.lr, (self.beta1, self.beta2), self.eps, self.decay = lr, betas, eps, 1 - lr * weight_decay
        self.last, self.steps = [0] * len(weight), 0

    def pay(self, rows):
        for r in rows:
            missed, first = self.steps - self.last[r] - 1, self.last[r] + 1
            if missed < 0:
                continue
            root = (self.v[r] / (1 - self.beta2**first)).sqrt() + self.eps
            start = self.m[r] / (1 - self.beta1**first) / root
            self.weight[r] *= self.decay**missed
            for j in range(1, missed + 1):
                self.weight[r] -= self.lr * start * (self.beta1 / self.beta2**0.5) ** j
            self.m[r] *= self.beta1**missed
            self.v[r] *= self.beta2**missed
            self.move(r, torch.zeros_like(self.weight[r]), self.steps)

    def move(self, r, grad, t):
        self.m[r] = self.beta1 * self.m[r] + (1 - self.beta1) * grad
        self.v[r] = self.beta2 * self.v[r] + (1 - self.beta2) * grad**2
        root = (self.v[r] / (1 - self.beta2**t)).sqrt() + self.eps
        self.weight[r] = self.decay * self.weight[r] - self.lr * (self.m[r] / (1 - self.beta1**t)) / root
        self.last[r] = t

    def step(self, rows, grad):
        self.steps += 1
        for r in rows:
            self.move(r, grad[r], self.steps)


@every_backend
def test_lazy_adamw_in_training_is_its_formula(backend):
    """Rows pay before a loss reads them, and all of them at the end."""
    start, g = torch.randn(30, 5, generator=generator(1), dtype=torch.float64), generator(2)
    head = SampledSoftmax(5, 30, bias=False, num_samples=6, sparse=True, dtype=torch.float64)
    dense = SampledSoftmax(5, 30, bias=False, num_samples=6, dtype=torch.float64)
    head.weight.data.copy_(start)
    optimizer, loops = LazyAdamW(head.parameters(), **OPTIONS), LoopAdamW(start.clone(), **OPTIONS)
    with kernels.use(backend), catch_up_before_reading(optimizer, *head.parameters()):
        for number in range(20):
            hidden = torch.randn(4, 5, generator=g, dtype=torch.float64)
            target = torch.randint(30, (4,), generator=g)
            optimizer.zero_grad()
            loss = head(hidden, target, generator=generator(number))
            loss.backward()
            optimizer.step()

            read = {*target.tolist(), *dense.sampler.sample(6, generator=generator(number)).ids.tolist()}
            loops.pay(read)
            dense.weight.data.copy_(loops.weight)
            expected = dense(hidden, target, generator=generator(number))
            assert_close(loss, expected, rtol=1e-10, atol=1e-11)
            loops.step(read, torch.autograd.grad(expected, dense.weight)[0])
        loops.pay(range(30))
        assert not torch.allclose(head.weight, loops.weight, atol=1e-3), "most rows are behind"
        optimizer.catch_up()
    assert_close(head.weight.detach(), loops.weight, rtol=1e-10, atol=1e-11)
