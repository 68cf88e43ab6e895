"""Cross-entropy is entropy plus divergence, each from its own formula."""

import math

import pytest
import torch

from vastmax.metrics.cross_entropy_split import CrossEntropySplit


def rows(shape=(30, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(*shape, dtype=torch.float64, generator=generator).softmax(-1)
    p[..., 0, 1:] = 0.0  # a certain row
    p[..., 0, 0] = 1.0
    q = (3 * torch.randn(*shape, dtype=torch.float64, generator=generator)).softmax(-1)
    return p.to(dtype), q.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_the_parts_are_the_formulas_and_add_up(dtype, tolerance):
    p, q = rows(dtype=dtype)
    split = CrossEntropySplit()
    split.update(p, q.log())
    found = split.compute()
    p, q = (x.double() for x in rows())
    assert found.cross_entropy == pytest.approx(-(p * q.log()).sum(-1).mean().item(), rel=tolerance)
    assert found.entropy == pytest.approx(-torch.xlogy(p, p).sum(-1).mean().item(), rel=tolerance)
    assert found.cross_entropy == pytest.approx(found.entropy + found.kl_divergence, rel=tolerance)
    assert found.kl_divergence > 0


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_weighted_batches_merge_to_the_whole(batch):
    p, q = rows()
    weight = torch.arange(30.0)
    split = CrossEntropySplit()
    for part in torch.arange(30).split(batch):
        split.update(p[part], q[part].log(), sample_weight=weight[part])
    repeated = CrossEntropySplit()
    each = torch.arange(30).repeat_interleave(weight.long()).view(29, 15)
    repeated.update(p[each], q[each].log())
    assert split.compute() == pytest.approx(repeated.compute(), rel=1e-12)


def test_a_class_that_the_model_gives_no_probability():
    p, log_q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.5, 0.0, 0.5]]).log()
    split = CrossEntropySplit()
    split.update(p[:, [0, 2, 1]], log_q)
    assert split.compute() == pytest.approx((math.log(2), math.log(2), 0.0), abs=1e-7)
    split.update(p, log_q)
    assert split.compute() == pytest.approx((math.inf, math.log(2), math.inf))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_probabilities_that_were_rounded_are_made_to_sum_to_one(dtype):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 1000, generator=generator).softmax(-1).to(dtype)
    assert (p.double().sum(-1) != 1).all()
    log_q = torch.randn(4, 1000, generator=generator, dtype=torch.float64).log_softmax(-1)
    found, exact = CrossEntropySplit(), CrossEntropySplit()
    found.update(p, log_q)
    exact.update(p.double() / p.double().sum(-1, keepdim=True), log_q)
    assert found.compute() == pytest.approx(exact.compute(), rel=1e-12)


def test_rows_of_weight_zero_count_for_nothing():
    p, log_q = torch.tensor([[0.5, 0.5, 0.0]] * 2), torch.tensor([[0.5, 0.0, 0.5], [0.25, 0.25, 0.5]]).log()
    split = CrossEntropySplit()
    split.update(p, log_q, sample_weight=torch.tensor([0.0, 3.0]))
    split.update(p[0], log_q[0], sample_weight=torch.tensor(0.0))
    assert split.weight == 3
    assert split.compute() == pytest.approx((math.log(4), math.log(2), math.log(2)), rel=1e-6)


def test_known_answer_of_a_certain_target():
    split = CrossEntropySplit()
    split.update(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.3, 0.4, 0.3]).log())
    assert split.compute() == pytest.approx((-math.log(0.4), 0.0, -math.log(0.4)), rel=1e-6)


def test_wrong_input():
    p, q = rows()
    split = CrossEntropySplit()
    with pytest.raises(ValueError, match="CrossEntropySplit: expected at least one row"):
        split.compute()
    for wrong, message in (
        ((p[:3], q.log()), "target_probability: expected shape"),
        ((p * 1.1, q.log()), "target_probability: expected probabilities"),
        ((p, q.log() * torch.nan), "log_prob: expected log-probabilities, got nan"),
        ((p, q.log() * -torch.inf), "log_prob: expected log-probabilities, got inf"),
        ((p, q.log() * torch.inf), "log_prob: expected a finite log-probability in every row, got one of -inf"),
    ):
        with pytest.raises(ValueError, match=message):
            split.update(*wrong)
    with pytest.raises(TypeError, match="target_probability: expected a floating-point tensor"):
        split.update(p.long(), q.log())
    with pytest.raises(ValueError, match="sample_weight: expected weights of at least 0"):
        split.update(p, q.log(), sample_weight=-torch.ones(30))
    assert split.weight == 0
