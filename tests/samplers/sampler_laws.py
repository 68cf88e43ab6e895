"""What the tests of draws share."""

import torch
from scipy import stats
from torch import Tensor

from vastmax.samplers import Sampler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(sampler: Sampler) -> Tensor:
    return sampler.log_prob(torch.arange(sampler.num_classes)).exp()


def goodness_of_fit(observed: Tensor, expected: Tensor) -> float:
    """The p-value of a chi-square test; 0 where something impossible was observed."""
    possible = expected > 0
    if observed[~possible].any():
        return 0.0
    expected = expected[possible]
    return float(
        stats.chisquare(observed[possible], expected.double() / expected.double().sum() * observed.sum()).pvalue
    )
