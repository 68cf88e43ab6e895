"""How exact losses are in float32, beside large logits and near 0: `python -m benchmarks.precision` prints it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from vastmax import functional, heads, samplers

OFFSETS = (0.0, 1e2, 1e4, 1e6, 1e8)
LOSSES = (1e-1, 1e-3, 1e-5, 1e-7)
CLASSES = 9

Loss = Callable[[Tensor], Tensor]
"""From logits (V,) to the negative log-likelihood () of the first class."""


def logits_of(offset: float, loss: float) -> Tensor:
    """Float32 logits of which the first has about this loss, and the others share the rest unevenly."""
    others = torch.linspace(-3.0, 0.0, CLASSES - 1, dtype=torch.float64)
    first = others.logsumexp(0) - math.log(math.expm1(loss))
    return (offset + torch.cat([first.unsqueeze(0), others])).float()


def as_weight(logits: Tensor, features: int = 2) -> Tensor:
    """Class rows that have these logits beside a hidden row of 1, 0, ..."""
    return torch.nn.functional.pad(logits.unsqueeze(-1), (0, features - 1))


def hidden(rows: int = 1, features: int = 2) -> Tensor:
    """The hidden row for `as_weight`."""
    return torch.eye(1, features).expand(rows, features)


def flat(build: Callable[..., heads.Head], **options: object) -> Callable[[Tensor], heads.Head]:
    """A flat head of these logits."""

    def head(logits: Tensor) -> heads.Head:
        found = build(2, len(logits), bias=False, **options)
        found.load_state_dict({"weight": as_weight(logits)})
        return found

    return head


def mixture(logits: Tensor) -> heads.Head:
    """Two softmaxes of these logits."""
    found = heads.MixtureOfSoftmaxes(2, len(logits), 2, bias=False)
    state = found.state_dict()
    state["weight"].copy_(as_weight(logits))
    state["projection"].zero_()[::2] = 100.0  # whose hyperbolic tangent is 1
    state["gate"].copy_(torch.eye(2))
    return found


def factored(logits: Tensor) -> heads.Head:
    """One group of all classes, which is certain."""
    found = heads.ClassFactoredSoftmax(2, torch.zeros(len(logits), dtype=torch.int64), bias=False)
    found.state_dict()["weight"].copy_(as_weight(logits))
    return found


def shortlist(logits: Tensor) -> heads.Head:
    """The shortlist of an adaptive softmax, beside a tail that is never chosen; its classes are the first."""
    found = heads.AdaptiveSoftmax(2, len(logits) + 1, [len(logits)], div_value=1.0)
    found.state_dict()["head.weight"].copy_(as_weight(torch.cat([logits, logits[:1] - 1e9])))
    return found


def tail(features: int) -> Callable[[Tensor], heads.Head]:
    """A tail of an adaptive softmax that is chosen for sure; its classes are the last."""

    def head(logits: Tensor) -> heads.Head:
        found = heads.AdaptiveSoftmax(features, len(logits) + 1, [1], div_value=1.0)
        state = found.state_dict()
        state["head.weight"].copy_(as_weight(torch.tensor([0.0, 1e3]), features))
        state["tail.0.0.weight"].copy_(torch.eye(features))
        state["tail.0.1.weight"].copy_(as_weight(logits, features))
        return found

    return head


HEADS: dict[str, Callable[[Tensor], heads.Head]] = {
    "Softmax": flat(heads.Softmax),
    "SampledSoftmax": flat(heads.SampledSoftmax),
    "NCE": flat(heads.NCE),
    "OneVsEach": flat(heads.OneVsEach),
    "ImportanceSampledSoftmax": flat(heads.ImportanceSampledSoftmax),
    "MixtureOfSoftmaxes": mixture,
    "ClassFactoredSoftmax": factored,
    "AdaptiveSoftmax, shortlist": shortlist,
    "AdaptiveSoftmax, tail": tail(20),
    "AdaptiveSoftmax, narrow tail": tail(2),
}


def nll_of(build: Callable[[Tensor], heads.Head]) -> Loss:
    """What a head gives the first of the classes."""

    def loss(logits: Tensor) -> Tensor:
        head = build(logits)
        target = torch.tensor([1 if isinstance(head, heads.AdaptiveSoftmax) and head.cutoffs == [1] else 0])
        return head.nll(hidden(1, head.in_features), target)[0]

    return loss


def best(logits: Tensor) -> Tensor:
    """The loss of the most probable class by `topk`, which the first one is."""
    return -flat(heads.Softmax)(logits).topk(hidden(), 1).values[0, 0]


def sampled_head(logits: Tensor) -> Tensor:
    """All classes as distinct candidates: the exact softmax, by the sampled losses' kernel."""
    every = samplers.Uniform(len(logits), unique=True)
    head = flat(heads.SampledSoftmax, sampler=every, num_samples=len(logits))(logits)
    loss: Tensor = head(hidden(), torch.tensor([0]))
    return loss


def sampled(logits: Tensor) -> Tensor:
    """The function on logits, all other classes as candidates."""
    none = torch.zeros(len(logits))
    return functional.sampled_softmax_loss(logits[:1], logits[None, 1:], none[:1], none[1:])


def importance(logits: Tensor) -> Tensor:
    """The estimate of Z from every class once."""
    return functional.importance_sampled_softmax_loss(logits[:1], logits[None], torch.zeros(len(logits)))


def contrastive(logits: Tensor) -> Tensor:
    """Keys of these logits for every query."""
    query, key = hidden(len(logits)), as_weight(logits)
    return functional.info_nce(query, key, temperature=1.0, reduction="none")[0]


def contrastive_negatives(logits: Tensor) -> Tensor:
    """The same with the other keys as the first query's own negatives."""
    key = as_weight(logits)
    return functional.info_nce(hidden(), key[:1], key[None, 1:], temperature=1.0, in_batch=False)


def both_ways(logits: Tensor) -> Tensor:
    """Pairs of the first logit, each beside the second one in all others' places."""
    first, other = logits[:2]
    query = torch.nn.functional.pad(torch.eye(len(logits)), (1, 0), value=1.0)
    key = torch.cat([other.expand(len(logits), 1), (first - other) * torch.eye(len(logits))], -1)
    return functional.clip_loss(query, key, temperature=1.0)


LOSS_TABLE: dict[str, Loss] = {
    "linear_cross_entropy": lambda x: functional.linear_cross_entropy(hidden(), as_weight(x), torch.tensor([0])),
    **{f"{name}.nll": nll_of(build) for name, build in HEADS.items()},
    "SigSoftmax.nll": nll_of(flat(heads.SigSoftmax)),
    "Softmax.topk": best,
    "SampledSoftmax, loss": sampled_head,
    "sampled_softmax_loss": sampled,
    "importance_sampled_softmax_loss": importance,
    "info_nce": contrastive,
    "info_nce, own negatives": contrastive_negatives,
    "clip_loss": both_ways,
    "torch.log_softmax": lambda x: -x.log_softmax(-1)[0],
}


def softmax_logits(name: str, logits: Tensor) -> Tensor:
    """The logits of the softmax that a loss of the table is of: mostly those that it is given."""
    if name == "SigSoftmax.nll":
        return logits + torch.nn.functional.logsigmoid(logits)
    return logits[[0] + [1] * (len(logits) - 1)] if name == "clip_loss" else logits


def worst(name: str, offset: float) -> float:
    """The largest relative error of a loss beside logits of this size, over all sizes of the loss."""
    errors = []
    for size in LOSSES:
        logits = logits_of(offset, size)
        exact = -softmax_logits(name, logits.double()).log_softmax(-1)[0]
        errors.append(float(((LOSS_TABLE[name](logits).detach().double() - exact) / exact).abs()))
    return max(errors)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| largest relative error, losses of " + ", ".join(f"{x:g}" for x in LOSSES), end=" | ")
    print(" | ".join(f"logits + {offset:g}" for offset in OFFSETS) + " |")
    print("|---|" + "---|" * len(OFFSETS))
    for name in LOSS_TABLE:
        print(f"| `{name}` | " + " | ".join(f"{worst(name, offset):.1e}" for offset in OFFSETS) + " |")


if __name__ == "__main__":
    main()
