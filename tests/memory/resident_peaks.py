"""What a process takes that does one thing: `python resident_peaks.py SMALLER ROWS [CASE ...]` prints it as JSON.

Blocks are made smaller by so many powers of two, and each case is measured with every number of rows, each time in
a process that is forked for it: its heap has no holes of the others'.
"""

import gc
import json
import os
import sys

import torch

from vastmax import functional, heads, validation
from vastmax.calibration import TemperatureScaling, VectorScaling
from vastmax.heads import running_topk
from vastmax.samplers.top_and_tail import total_probability
from vastmax.scoring import blocks, linear_log_partition, linear_loss, linear_topk, logit_parts
from vastmax.study.memory import resident_peak

V, D = 4096, 4


def make_blocks_smaller(powers):
    for module, name in (
        (blocks, "BLOCK_ELEMENTS"),
        (blocks, "TILE_ELEMENTS"),
        (blocks, "CUT_ELEMENTS"),
        (running_topk, "BLOCK_ELEMENTS"),
        (logit_parts, "PART_ELEMENTS"),
        (validation, "SUMMED_ELEMENTS"),
    ):
        setattr(module, name, getattr(module, name) >> powers)


def drawn(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


def one_class(rows):
    return torch.arange(rows) % V


def several(rows):
    return (one_class(rows)[:, None] + torch.arange(3)) % V


def probabilities(rows):
    return torch.full((rows, V), 1 / V)


def trained(head, target=one_class, **options):
    """The loss and its gradients."""

    def prepare(rows):
        hidden, labels = drawn(rows, D), target(rows)
        given = {name: make(rows) for name, make in options.items()}
        return lambda: head(hidden, labels, **given).sum().backward()

    return prepare


def asked(method, *arguments, target=None):
    """What a head says of rows, and its gradient where it has one."""

    def prepare(rows):
        hidden, labels = drawn(rows, D), () if target is None else (target(rows),)

        def call():
            found = method(hidden, *labels, *arguments)
            if isinstance(found, torch.Tensor):
                found.sum().backward()

        return call

    return prepare


def function(function, dtype=torch.float32, **options):
    """A function of hidden rows, class rows and targets, and its gradients."""

    def prepare(rows):
        hidden, weight, target = drawn(rows, D, dtype=dtype), drawn(V, D, dtype=dtype), one_class(rows)
        return lambda: function(hidden, weight, target, **options).sum().backward()

    return prepare


def fitted(scaling):
    """A fit to the first rows of a linear layer, of which a few evaluations of the loss are made."""

    def prepare(rows):
        hidden, weight = drawn(rows // 8, D).detach(), drawn(V, D).detach()
        target = (hidden @ weight.T).softmax(-1).multinomial(1, generator=torch.Generator().manual_seed(0))
        return lambda: scaling.fit_linear(hidden, weight, target.squeeze(-1))

    return prepare


def paired(loss, **options):
    """A loss of as many pairs as make N V scores."""

    def prepare(rows):
        pairs = int((rows * V) ** 0.5)
        one, other = drawn(pairs, D), drawn(pairs, D)
        return lambda: loss(one, other, **options).backward()

    return prepare


def any_loss(hidden, weight, target):
    def hinge(logits, target):
        return (1 + logits - logits.gather(-1, target[:, None])).clamp(min=0).sum(-1)

    return linear_loss(hinge, hidden, weight, rows=(target,))


def nothing_of_n_by_v(hidden, weight, target):
    return linear_log_partition(hidden, weight, target).log_partition


def best(hidden, weight, target, **options):
    return hidden.sum() + linear_topk(hidden, weight, 5, **options).values.sum()


CASES = {
    "linear_loss": function(any_loss),
    "linear_cross_entropy": function(functional.linear_cross_entropy),
    "linear_cross_entropy, sum": function(functional.linear_cross_entropy, reduction="sum"),
    "linear_cross_entropy, none": function(functional.linear_cross_entropy, reduction="none"),
    "linear_cross_entropy, softcap": function(functional.linear_cross_entropy, softcap=5.0),
    "linear_cross_entropy, softcap, none": function(functional.linear_cross_entropy, softcap=5.0, reduction="none"),
    "linear_cross_entropy, smoothed": function(functional.linear_cross_entropy, label_smoothing=0.1),
    "linear_cross_entropy, filtered": function(functional.linear_cross_entropy, filter_eps=1e-5),
    "linear_cross_entropy, blocks of classes": function(functional.linear_cross_entropy, block_size=300),
    "linear_cross_entropy, bfloat16": function(functional.linear_cross_entropy, torch.bfloat16),
    "linear_cross_entropy, bfloat16 products": function(
        functional.linear_cross_entropy, product_dtype=torch.bfloat16
    ),
    "linear_log_partition": function(nothing_of_n_by_v),
    "linear_topk": function(best),
    "linear_topk, softcap": function(best, softcap=5.0),
    "total_probability": function(
        lambda hidden, weight, _: hidden.sum() + total_probability(hidden, weight, None).sum()
    ),
    "OneVsAll": trained(heads.OneVsAll(D, V), several),
    "OneVsAll, soft": trained(heads.OneVsAll(D, V), several, target_weight=lambda rows: torch.full((rows, 3), 0.5)),
    "OneVsAll, labels": trained(heads.OneVsAll(D, V), probabilities),
    "OneVsAll.nll": asked(heads.OneVsAll(D, V).nll, target=one_class),
    "OneVsAll.topk": asked(heads.OneVsAll(D, V).topk, 5),
    "Softmax, several": trained(heads.Softmax(D, V), several),
    "Softmax, shares": trained(heads.Softmax(D, V), several, target_weight=lambda rows: torch.full((rows, 3), 0.5)),
    "Softmax, several, class weights": trained(heads.Softmax(D, V, class_weight=torch.rand(V)), several),
    "Softmax, probabilities": trained(heads.Softmax(D, V), probabilities),
    "Softmax, probabilities, class weights": trained(
        heads.Softmax(D, V, class_weight=torch.rand(V)), probabilities
    ),
    "Softmax, smoothed and focal": trained(heads.Softmax(D, V, label_smoothing=0.1, focal_gamma=2.0)),
    "Softmax.topk": asked(heads.Softmax(D, V).topk, 5),
    "Softmax.log_partition": asked(heads.Softmax(D, V).log_partition),
    "SigSoftmax": trained(heads.SigSoftmax(D, V)),
    "SigSoftmax, several": trained(heads.SigSoftmax(D, V), several),
    "TopKSoftmax": trained(heads.TopKSoftmax(D, V, 5)),
    "TopKSoftmax.topk": asked(heads.TopKSoftmax(D, V, 5).topk, 5),
    "TopKSoftmax.log_partition": asked(heads.TopKSoftmax(D, V, 5).log_partition),
    "Entmax": trained(heads.Entmax(D, V)),
    "Entmax, probabilities": trained(heads.Entmax(D, V), probabilities),
    "Entmax.topk": asked(heads.Entmax(D, V).topk, 5),
    "Entmax.log_partition": asked(heads.Entmax(D, V).log_partition),
    "MixtureOfSoftmaxes": trained(heads.MixtureOfSoftmaxes(D, V, 3)),
    "MixtureOfSoftmaxes.topk": asked(heads.MixtureOfSoftmaxes(D, V, 3).topk, 5),
    "AdaptiveSoftmax": trained(heads.AdaptiveSoftmax(D, V, [1000, 3000], 1.5)),
    "AdaptiveSoftmax.topk": asked(heads.AdaptiveSoftmax(D, V, [1000, 3000], 1.5).topk, 5),
    "ClassFactoredSoftmax": trained(heads.ClassFactoredSoftmax(D, torch.arange(V) // 512)),
    "ClassFactoredSoftmax.topk": asked(heads.ClassFactoredSoftmax(D, torch.arange(V) // 512).topk, 5),
    "info_nce": paired(functional.info_nce),
    "info_nce, hard": paired(functional.info_nce, hard_negative_weight=1.0),
    "siglip_loss": paired(functional.siglip_loss),
    "TemperatureScaling": fitted(TemperatureScaling()),
    "VectorScaling": fitted(VectorScaling(V)),
}


def start(name, rows):
    """Fork a process that measures a case, and return where it writes its answer to."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            CASES[name](8)()  # after a fork the libraries' code has to be found again: no memory of the call
            answer = resident_peak(CASES[name](rows))
        except BaseException as error:
            answer = repr(error)
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    return os.fdopen(reading)


def measured(name, sizes):
    """The resident peaks of a case in bytes, one for each number of rows."""
    return [json.load(answer) for answer in [start(name, rows) for rows in sizes]]


def main():
    torch.set_num_threads(1)  # and so there is no thread for a fork to lose
    torch.manual_seed(0)
    smaller, sizes, *names = sys.argv[1:]
    make_blocks_smaller(int(smaller))
    names = names or list(CASES)
    for name in names:
        CASES[name](8)()  # compiles and loads what a first call does
    gc.freeze()  # or a collection touches, and so copies, all that a fork shares
    print(json.dumps({name: measured(name, json.loads(sizes)) for name in names}))


if __name__ == "__main__":
    main()
