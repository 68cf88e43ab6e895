"""Graphs that are made and differentiated within a forward."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vastmax import heads, samplers

HEADS = {
    "softmax": lambda: heads.Softmax(2, 9),
    "softmax, focal": lambda: heads.Softmax(2, 9, focal_gamma=1.0),
    "top and tail": lambda: heads.SampledSoftmax(
        2, 9, sampler=samplers.TopAndTail(samplers.Uniform(9, unique=True), 2), num_samples=3
    ),
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_a_checkpoint_runs_a_forward_again_in_the_backward_pass_alone(make):
    """Not for a graph that the forward differentiates on its way, the saved tensors of which would be packed."""
    head, within_backward = make(), []

    def forward(hidden):
        within_backward.append(torch._C._current_graph_task_id() != -1)
        return head(hidden, torch.tensor([1, 2, 3]))

    checkpoint(forward, torch.randn(3, 2, requires_grad=True), use_reentrant=False).backward()
    assert within_backward == [False, True]
