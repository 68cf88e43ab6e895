"""What may be a link, and what is refused by name rather than where it is called."""

import pytest
import torch

from vastmax.scoring import (
    linear_cross_entropy,
    linear_log_partition,
    linear_loss,
    linear_soft_cross_entropy,
    linear_topk,
)
from vastmax.scoring.links import SoftCap

HIDDEN, WEIGHT, TARGET = torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 1, 2])
CALLS = {
    "linear_cross_entropy": lambda link: linear_cross_entropy(HIDDEN, WEIGHT, TARGET, link=link),
    "linear_log_partition": lambda link: linear_log_partition(HIDDEN, WEIGHT, TARGET, link=link),
    "linear_topk": lambda link: linear_topk(HIDDEN, WEIGHT, 2, link=link),
    "linear_soft_cross_entropy": lambda link: linear_soft_cross_entropy(
        HIDDEN, WEIGHT, torch.ones(3, 1), TARGET[:, None], link=link
    ),
}


@pytest.mark.parametrize(
    "link", ["x", 3.0, torch.tanh, SoftCap], ids=["a text", "a number", "a function", "a class"]
)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_link_is_refused_by_name(call, link):
    message = (
        r"link: expected None or an increasing function of vastmax.scoring.links, such as SoftCap\(30.0\), got "
    )
    with pytest.raises(TypeError, match=message):
        call(link)
    call(SoftCap(30.0))


def test_a_loss_that_is_no_function_is_refused_by_name():
    with pytest.raises(TypeError, match=r"loss: expected a function of logits \(n, V\), got 'x' of type str"):
        linear_loss("x", HIDDEN, WEIGHT)
