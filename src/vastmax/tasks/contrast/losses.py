"""The contrastive losses that an encoder can be trained with, by their names in the command."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vastmax.contrastive import KeyQueue
from vastmax.functional.contrastive import siglip_loss
from vastmax.heads.info_nce import InfoNCE
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.validation import check_choice


class SigLIP(nn.Module):
    """The loss of SigLIP of cosines, with a learned temperature and bias.

    Args:
        temperature: where it starts.
        bias: where it starts; negative, since nearly all pairs do not belong together.
    """

    def __init__(self, temperature: float, bias: float = -10.0) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(bias))

    @property
    def temperature(self) -> Tensor:
        """T, a tensor () with a gradient."""
        return self.log_temperature.exp()

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the loss of query (N, d) and key (N, d), paired row by row: a scalar in nats."""
        cosines = (functional.normalize(rows, dim=-1) for rows in (query, key))
        return siglip_loss(*cosines, temperature=self.temperature, bias=self.bias)


Objective = InfoNCE | SigLIP
Builder = Callable[[ContrastConfig], Objective]


@dataclass(frozen=True)
class Kind:
    """A loss by what builds it, what it is in one line, and what beside the two views it takes."""

    build: Builder
    meaning: str
    labels: bool = False
    momentum: bool = False


def _infonce(config: ContrastConfig) -> Objective:
    return InfoNCE(config.temperature)


def _symmetric(config: ContrastConfig) -> Objective:
    return InfoNCE(config.temperature, symmetric=True)


def _clip(config: ContrastConfig) -> Objective:
    return InfoNCE(config.temperature, symmetric=True, learn_temperature=True)


def _siglip(config: ContrastConfig) -> Objective:
    return SigLIP(config.temperature)


def _hard(config: ContrastConfig) -> Objective:
    return InfoNCE(config.temperature, hard_negative_weight=config.hardness)


def _queue(config: ContrastConfig) -> Objective:
    return InfoNCE(config.temperature, queue=KeyQueue(config.queue, config.width))


KINDS: dict[str, Kind] = {
    "infonce": Kind(_infonce, "Which of the batch's keys is the query's own: a softmax over the batch."),
    "symmetric": Kind(_symmetric, "The same from queries to keys and from keys to queries."),
    "clip": Kind(_clip, "The symmetric loss with a learned temperature."),
    "siglip": Kind(_siglip, "A yes-or-no question for every pair, with a learned temperature and bias."),
    "hard": Kind(_hard, "InfoNCE in which negatives count more, the more they look like the query."),
    "queue": Kind(
        _queue, "InfoNCE with the keys of past batches, by an encoder that follows slowly.", momentum=True
    ),
    "supervised": Kind(_infonce, "InfoNCE in which all rows of a label belong together.", labels=True),
}


def build_loss(name: str, config: ContrastConfig) -> Objective:
    """Build a loss by its name."""
    check_choice("loss", name, tuple(KINDS))
    return KINDS[name].build(config)
