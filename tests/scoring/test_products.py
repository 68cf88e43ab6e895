"""Products of factors rounded to bfloat16, and exact ones by the faster of two ways."""

import threading
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vastmax.functional import linear_cross_entropy
from vastmax.kernels import has_kernel, use
from vastmax.scoring import products as products_module
from vastmax.scoring.products import BETWEEN, LARGE, multiply, products, rounds_products

CPU = torch.device("cpu")


BY_SWITCH = rounds_products()
BY_KERNEL = has_kernel("rounded_product", torch.empty(0))


def precision():
    switch = products_module._of_mkldnn
    return torch.get_float32_matmul_precision() if switch is None else switch.fp32_precision


@pytest.fixture
def tried(monkeypatch):
    """Say what this process is to find out, in place of trying."""

    def found(made_of_between, faster=False):
        monkeypatch.setattr(products_module, "_tried", lambda: made_of_between)
        monkeypatch.setattr(products_module, "_takes_less_time", lambda: faster)

    products_module._is_faster.cache_clear()
    products_module._say.cache_clear()
    yield found
    products_module._is_faster.cache_clear()
    products_module._say.cache_clear()


@pytest.fixture(params=["switch", "kernel"])
def rounded(request, tried):
    """Each of the ways by which factors are rounded, where this processor has it."""
    if request.param == "switch":
        if not BY_SWITCH:
            pytest.skip("torch's switch rounds nothing on this processor")
    else:
        if not BY_KERNEL:
            pytest.skip("no kernel of ours rounds on this processor")
        tried(BETWEEN)


def assert_rounded(a, b, found, before=0.0):
    """The sum of products of rounded factors, to float32's own rounding, and not that of the factors themselves."""
    expected = before + a.bfloat16().double() @ b.bfloat16().double()
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (found - before - a.double() @ b.double()).norm() > 1e-4 * expected.norm()


@pytest.mark.usefixtures("rounded")
def test_factors_are_rounded_and_sums_are_not():
    hidden, class_rows, slope = torch.randn(64, 128), torch.randn(1000, 128), torch.randn(64, 1000)
    with products(torch.bfloat16, CPU):
        for a, b in [(hidden, class_rows.t()), (slope, class_rows), (slope.t(), hidden)]:
            out = torch.empty(len(a), b.shape[1])
            assert_rounded(a, b, multiply(a, b, out))
            before = out.double()
            assert_rounded(a, b, multiply(a, b, out, add=True), before)
    exact = multiply(hidden, class_rows.t(), torch.empty(64, 1000))
    assert torch.equal(exact, hidden @ class_rows.t())


def test_on_this_processor_factors_are_rounded_or_it_is_said(tried, caplog):
    a, b, out = torch.randn(64, 128), torch.randn(128, 1000), torch.empty(64, 1000)
    with products(torch.bfloat16, CPU):
        multiply(a, b, out)
    if BY_SWITCH or BY_KERNEL:
        assert_rounded(a, b, out)
        assert not caplog.messages
    else:
        torch.testing.assert_close(out, a @ b)
        assert "computed in float32" in caplog.text


def test_products_of_another_thread_and_within_are_left_alone(tried):
    if not BY_KERNEL:
        pytest.skip("no kernel of ours rounds on this processor")
    tried(BETWEEN)
    a, b = torch.randn(64, 128), torch.randn(128, 1000)
    found = []

    def exact():
        found.append(multiply(a, b, torch.empty(64, 1000)))

    with products(torch.bfloat16, CPU):
        thread = threading.Thread(target=exact)
        thread.start()
        thread.join()
        with products(None, CPU):
            exact()
        assert_rounded(a, b, multiply(a, b, torch.empty(64, 1000)))
    with pytest.raises(RuntimeError, match="stop"), products(torch.bfloat16, CPU):
        raise RuntimeError("stop")
    exact()
    assert all(torch.equal(one, a @ b) for one in found)


def test_large_products_are_exact_by_the_way_that_is_taken():
    hidden, class_rows = torch.randn(256, 128), torch.randn(4096, 128)
    slope = torch.randn(256, 4096)

    with products(None, CPU, count=LARGE):
        for a, b in [(hidden, class_rows.t()), (slope, class_rows), (slope.t(), hidden)]:
            expected = a.double() @ b.double()
            error = torch.zeros(expected.shape).addmm_(a, b) - expected
            assert error.norm() < 1e-6 * expected.norm()  # TF32 and bfloat16 would make it 3e-4 and more


@pytest.mark.parametrize(
    ("made_of_between", "faster", "count", "deterministic", "taken"),
    [
        (BETWEEN, True, LARGE, False, True),
        (BETWEEN, False, LARGE, False, False),
        (BETWEEN, True, LARGE - 1, False, False),
        (BETWEEN, True, LARGE, True, False),
        (1.0, True, LARGE, False, False),
        (None, True, LARGE, False, False),
    ],
)
def test_the_other_way_is_taken_where_it_is_exact_and_faster(
    tried, made_of_between, faster, count, deterministic, taken
):
    tried(made_of_between, faster)
    before = precision()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with products(None, CPU, count=count):
            assert (precision() != before) == (taken and products_module._of_mkldnn is not None)
        assert precision() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_ways_are_timed_once_whoever_asks(tried, monkeypatch):
    tried(BETWEEN)
    timed = []
    monkeypatch.setattr(products_module, "_of_mkldnn", products_module._of_mkldnn or torch.backends.mkldnn)
    monkeypatch.setattr(products_module, "_takes_less_time", lambda: timed.append(1) or False)
    together = threading.Barrier(4)

    def ask():
        together.wait()
        with products(None, CPU, count=LARGE):
            pass

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(timed) == 1


@pytest.mark.parametrize(
    ("usual", "switched", "faster"), [(3.0, 2.0, True), (2.0, 1.9, False), (2.0, 3.0, False), (0.0, 0.0, False)]
)
def test_faster_is_by_a_tenth_of_the_shortest_times(monkeypatch, usual, switched, faster):
    """Of times taken in turn, of which some are long by chance."""
    clock = [0.0]
    chance = iter([9.0, 9.0, 0.0, 7.0, 5.0, 0.0, 1.0, 1.0, 0.0, 2.0, 3.0, 3.0])
    before = precision()

    def multiply(a, b, out):
        clock[0] += (usual if precision() == before else switched) + next(chance)
        return out

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(products_module.time, "thread_time", lambda: clock[0])
    assert products_module._takes_less_time() == faster


@pytest.mark.parametrize("made_of_between", [BETWEEN, None])
@pytest.mark.parametrize("faster", [False, True])
def test_what_is_not_rounded_is_computed_the_faster_way(tried, made_of_between, faster):
    tried(made_of_between, faster)
    with products(None, CPU, count=LARGE):
        expected = precision()
    with use("torch"), products(torch.bfloat16, CPU, count=LARGE):
        assert precision() == expected


def test_products_of_float64_are_not_rounded_and_it_is_said_once(tried, caplog):
    hidden, weight = torch.randn(8, 16).double(), torch.randn(50, 16).double()
    target = torch.randint(50, (8,))
    found = [linear_cross_entropy(hidden, weight, target, product_dtype=torch.bfloat16) for _ in range(2)]
    assert torch.equal(found[0], linear_cross_entropy(hidden, weight, target))
    assert caplog.messages.count("products of torch.float64 are not rounded to bfloat16") == 1


def test_the_switch_for_all_devices_is_thrown_for_who_asks_alone(tried, monkeypatch):
    found = []
    monkeypatch.setattr(products_module, "_of_mkldnn", None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
    before = torch.get_float32_matmul_precision()
    tried(1.0, True)
    with products(torch.bfloat16, CPU, count=LARGE):
        assert found == ["medium"]
    assert found == ["medium", before]
    tried(BETWEEN, True)
    with products(None, CPU, count=LARGE):
        pass
    assert found == ["medium", before]


def test_the_switch_is_set_back_by_the_last_to_leave(tried):
    tried(1.0)
    before = precision()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with products(torch.bfloat16, CPU):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with pytest.raises(RuntimeError, match="stop"), products(torch.bfloat16, CPU):
        raise RuntimeError("stop")
    within = precision()
    leave.set()
    thread.join()
    assert within != before
    assert precision() == before
    with products(None, CPU):
        assert precision() == before


@pytest.mark.skipif(products_module._of_mkldnn is None, reason="torch has no switch for CPUs alone")
def test_a_switch_that_follows_another_goes_on_to_follow_it(tried):
    tried(1.0)
    try:
        torch.backends.mkldnn.fp32_precision = "tf32"
        with products(torch.bfloat16, CPU):
            assert precision() == "bf16"
        assert precision() == "tf32"
        torch.backends.mkldnn.fp32_precision = "ieee"
        assert precision() == "ieee"
    finally:
        torch.backends.mkldnn.fp32_precision = "none"


def test_a_child_process_is_not_within(tried):
    tried(1.0)
    before, switch = precision(), products_module._Switch()
    switch.__enter__()
    switch._lock.acquire()
    switch.after_fork()
    assert precision() == before
    with switch:
        assert precision() != before
    assert precision() == before


@pytest.mark.parametrize("rounds", [True, False])
def test_where_nothing_is_rounded_it_is_said_once(tried, caplog, rounds):
    tried(1.0 if rounds else BETWEEN)
    for _ in range(2):
        with use("torch"), products(torch.bfloat16, CPU):
            pass
    assert ["computed in float32" in message for message in caplog.messages] == ([] if rounds else [True])


def test_the_switch_stays_where_the_processor_cannot_be_asked(monkeypatch):
    def fail(*_):
        raise RuntimeError("a build without mkldnn")

    before = precision()
    monkeypatch.setattr(products_module, "_means", fail)
    products_module._tried.cache_clear()
    with pytest.raises(RuntimeError, match="without mkldnn"), products(torch.bfloat16, CPU):
        pass
    assert precision() == before


@pytest.mark.parametrize(
    "around",
    [
        nullcontext,
        lambda: torch.device("meta"),
        FakeTensorMode,
        lambda: torch.autocast("cpu"),
        torch.inference_mode,
    ],
)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_trying_leaves_no_trace_and_takes_nothing_from_around(default, around):
    before, expected, state = precision(), products_module._tried(), torch.get_rng_state()
    products_module._tried.cache_clear()
    torch.set_default_dtype(default)
    try:
        with around():
            assert products_module._tried() == expected
            assert products_module._takes_less_time() in (True, False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert precision() == before
    assert torch.equal(torch.get_rng_state(), state)
    a = torch.full((64, 64), BETWEEN)
    assert (a @ a)[0, 0] != 64


@pytest.mark.usefixtures("rounded")
def test_gradients_are_off_by_no_more_than_the_rounding():
    hidden = torch.randn(256, 64, requires_grad=True)
    weight = (0.3 * torch.randn(4096, 64)).requires_grad_()
    target = torch.randint(4096, (256,))
    exact, rounded = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, target, product_dtype=dtype), (hidden, weight))
        for dtype in (None, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert 0 < (one - other).norm() / one.norm() < 2**-8


@pytest.mark.usefixtures("rounded")
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_negligible_classes_are_rounded_rather_than_left_out(reduction, softcap):
    """The error of rounding them is a small share of the error of leaving them out; nothing else is rounded."""
    hidden = torch.randn(128, 64, requires_grad=True)
    weight = (0.3 * torch.randn(2048, 64)).requires_grad_()
    target = torch.randint(2048, (128,))
    upstream = torch.randn(()) if reduction == "mean" else torch.randn(128)

    def gradients(**options):
        loss = linear_cross_entropy(hidden, weight, target, reduction=reduction, softcap=softcap, **options)
        return loss, *torch.autograd.grad(loss, (hidden, weight), upstream)

    exact = gradients()
    left_out = gradients(filter_eps=0.05)
    rounded = gradients(filter_eps=0.05, product_dtype=torch.bfloat16)
    assert torch.equal(exact[0], rounded[0])
    for value, without, near in zip(exact[1:], left_out[1:], rounded[1:], strict=True):
        assert 0 < (value - near).norm() < (value - without).norm() / 128


def test_bad_values():
    hidden, weight, target = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"product_dtype: expected torch.bfloat16 or None, got torch.float16"):
        linear_cross_entropy(hidden, weight, target, product_dtype=torch.float16)
