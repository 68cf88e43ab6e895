"""The rank of log-probabilities: the softmax bottleneck, and what has none."""

import pytest
import torch

from vastmax import heads
from vastmax.metrics.log_prob_rank import log_prob_rank, log_prob_spectrum

N, V, D = 40, 30, 5


def hidden(seed=0, dtype=torch.float64):
    return torch.randn(N, D, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("bias", "rank"), [(False, D + 1), (True, D + 2)])
def test_a_softmax_has_the_rank_of_its_features_plus_log_partition_and_bias(bias, rank, dtype):
    torch.manual_seed(0)
    head = heads.Softmax(D, V, bias=bias, dtype=dtype)
    assert log_prob_rank(head.log_prob(3 * hidden(dtype=dtype))) == rank


def test_the_bottleneck_holds_for_any_body():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.Tanh(), torch.nn.Linear(50, D)).double()
    head = heads.Softmax(D, V, dtype=torch.float64)
    assert log_prob_rank(head.log_prob(body(hidden()[:, :3]))) == D + 2


def test_a_mixture_of_softmaxes_has_full_rank():
    parts = torch.stack([(3 * hidden(seed) @ hidden(seed + 2)[:V].T).log_softmax(-1) for seed in (0, 1)])
    assert log_prob_rank(parts.logsumexp(0) - torch.tensor(2.0).log()) == min(N, V)


@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (1, 4)])
def test_random_distributions_have_full_rank(shape):
    log_prob = torch.randn(shape, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert log_prob_rank(log_prob) == min(shape)
    spectrum = log_prob_spectrum(log_prob)
    assert spectrum.shape == (min(shape),)
    assert spectrum.square().sum().item() == pytest.approx(log_prob.double().square().sum().item())


def test_the_tolerance_is_a_share_of_the_largest_singular_value():
    diagonal = -torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    torch.testing.assert_close(log_prob_spectrum(diagonal), torch.tensor([8.0, 4.0, 2.0, 1.0]).double())
    ranks = [log_prob_rank(diagonal, tolerance=t) for t in (0.0, 0.2, 0.3, 0.6)]
    assert ranks == [4, 3, 2, 1]


def test_certain_predictions_have_rank_zero():
    assert log_prob_rank(torch.zeros(5, 1)) == 0


def test_wrong_input():
    for wrong, message in (
        (torch.zeros(3), "log_prob: expected shape"),
        (torch.zeros(0, 3), "log_prob: expected shape"),
        (torch.tensor([[0.0, -torch.inf]]), "log_prob: expected finite"),
        (torch.zeros(3, 400, dtype=torch.bfloat16), "log_prob: expected a finer dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            log_prob_rank(wrong)
    with pytest.raises(TypeError, match="log_prob: expected a floating-point"):
        log_prob_spectrum(torch.zeros(3, 4, dtype=torch.int64))
    for tolerance in (-0.1, 1.0):
        with pytest.raises(ValueError, match="tolerance: expected"):
            log_prob_rank(torch.zeros(3, 4), tolerance=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_default_tolerance_is_in_roundings_of_the_dtype(dtype):
    eps = torch.finfo(dtype).eps
    for smallest, rank in ((2.5 * eps, 2), (1.5 * eps, 1)):
        assert log_prob_rank(-torch.diag(torch.tensor([1.0, smallest], dtype=dtype))) == rank
