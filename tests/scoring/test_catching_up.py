"""Where no rows are to catch up, asking costs no graph break."""

import gc

import pytest
import torch
from torch import nn

from vastmax.scoring import catching_up


@pytest.mark.parametrize("end", ["removed", "freed"])
def test_it_is_compiled_away_when_the_last_has_gone(end):
    weight, called = torch.randn(5, 3), []

    def scores(hidden, table):
        catching_up.catch_up([table, None], lambda: torch.tensor([1]))
        return hidden @ weight.t()

    gc.collect()
    hidden, table = torch.randn(2, 3), nn.Parameter(torch.zeros(3))
    catching_up.register(table, called.append)
    expected = scores(hidden, table)
    assert [ids.tolist() for ids in called] == [[1]]
    if end == "removed":
        catching_up.remove(table)
    else:
        table = None
        gc.collect()
    compiled = torch.compile(scores, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(hidden, table), expected)
    assert len(called) == 1
