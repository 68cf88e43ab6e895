"""Ranking metrics against torchmetrics, row by row."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from vastmax.metrics.ranking import Ranking

CUTOFFS = (1, 3, 7)


def scores(rows=40, classes=12, seed=0):
    return torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relevant_classes(rows=40, classes=12, most=5):
    """Up to `most` distinct classes per row, -100 in the places left over."""
    generator = torch.Generator().manual_seed(1)
    target = torch.stack([torch.randperm(classes, generator=generator)[:most] for _ in range(rows)])
    number = torch.randint(1, most + 1, (rows, 1), generator=generator)
    return target.masked_fill(torch.arange(most) >= number, -100)


def test_several_relevant_classes():
    logits, target = scores(), relevant_classes()
    ranking = Ranking(CUTOFFS)
    ranking.update(logits.topk(9).indices, target)
    relevant = torch.stack([torch.isin(torch.arange(12), row) for row in target])
    found = ranking.compute()
    # Of scores, torchmetrics' recall counts those above 0 alone.
    for name, function in (
        ("recall", retrieval_recall),
        ("ndcg", retrieval_normalized_dcg),
        ("mrr", retrieval_reciprocal_rank),
    ):
        for k in CUTOFFS:
            rows = [function(s, r, top_k=k) for s, r in zip(logits.exp(), relevant, strict=True)]
            expected = torch.stack(rows).double().mean().item()
            assert getattr(found, name)[k] == pytest.approx(expected, rel=1e-6), (name, k)


def test_one_relevant_class_is_top_k_accuracy():
    logits, target = scores(), torch.arange(40) % 12
    ranking = Ranking(CUTOFFS)
    ranking.update(logits.topk(7).indices, target)
    for k in CUTOFFS:
        expected = multiclass_accuracy(logits, target, 12, top_k=k, average="micro").item()
        assert ranking.compute().recall[k] == pytest.approx(expected)
        assert ranking.compute().recall[k] >= ranking.compute().ndcg[k] >= ranking.compute().mrr[k]


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batches_merge_to_the_whole(batch):
    indices, target = scores().topk(7).indices, relevant_classes()
    whole, parts = Ranking(CUTOFFS), Ranking(CUTOFFS)
    whole.update(indices.view(4, 10, 7), target.view(4, 10, 5))
    for rows in torch.arange(40).split(batch):
        parts.update(indices[rows], target[rows])
    parts.update(indices[:3], torch.full((3, 5), -100))
    assert parts.count == whole.count == 40
    for found, expected in zip(parts.compute(), whole.compute(), strict=True):
        assert found == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    ranking = Ranking((1, 2, 4))
    ranking.update(torch.tensor([[3, 8, 5, 1]]), torch.tensor([[8, 1, 9]]))
    found = ranking.compute()
    assert found.recall == pytest.approx({1: 0, 2: 1 / 3, 4: 2 / 3})
    assert found.mrr == {1: 0, 2: 0.5, 4: 0.5}
    gain, ideal = 1 / torch.log2(torch.tensor(3.0)), 1 + 1 / torch.log2(torch.tensor(3.0))
    full = (gain + 1 / torch.log2(torch.tensor(5.0))) / (ideal + 0.5)
    assert found.ndcg == pytest.approx({1: 0, 2: (gain / ideal).item(), 4: full.item()})


def test_wrong_input():
    indices, target = scores().topk(7).indices, torch.zeros(40, dtype=torch.int64)
    with pytest.raises(ValueError, match="Ranking: expected at least one row"):
        Ranking().compute()
    for k in ((), (0,)):
        with pytest.raises(ValueError, match="k: expected"):
            Ranking(k)
    for k in (5, None, {1, 5}):
        with pytest.raises(TypeError, match=r"k: expected a sequence of cutoffs, got .* of type"):
            Ranking(k)
    ranking = Ranking((1, 7))
    for wrong, message in (
        ((indices[:, :6], target), "indices: expected shape .* K >= 7"),
        ((indices, target[:3]), "target: expected shape"),
        ((indices[:, [0, 1, 2, 3, 4, 5, 5]], target), "indices: expected distinct class ids"),
        ((indices, torch.full((40, 2), 4)), "target: expected distinct class ids in each row, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            ranking.update(*wrong)
    with pytest.raises(TypeError, match="target: expected an int64"):
        ranking.update(indices, target.float())
    assert ranking.count == 0


def test_padding_is_no_hit():
    ranking = Ranking((2,))
    ranking.update(torch.tensor([[3, -100]]), torch.tensor([[3, -100]]))
    assert ranking.compute() == ({2: 1.0}, {2: 1.0}, {2: 1.0})
