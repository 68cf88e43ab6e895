"""Vectors of tokens from the company they keep in a text."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.validation import check_ids, check_positive_int


@torch.no_grad()
def context_vectors(tokens: Tensor, num_tokens: int, width: int = 64, num_contexts: int = 2000) -> Tensor:
    r"""Return a vector per token, near to those of tokens that are followed and preceded by the same ones.

    The principal components of

    $$x_{wc} = \sqrt{\hat p(c \mid w)},$$

    with c the tokens just before w and, apart from them, those just after: the distance of two rows is the
    Hellinger distance of their contexts. Counting is one pass over the text.

    Args:
        tokens: (T,) int64, a text.
        num_tokens: V, the size of the vocabulary.
        width: components kept; fewer where V or the contexts are fewer.
        num_contexts: the most frequent tokens serve as contexts.

    Returns:
        (V, width) float32; zeros for a token that the text lacks.

    Raises:
        TypeError, ValueError: tokens that are not such ids.

    References:
        Lebret and Collobert, Word Embeddings through Hellinger PCA, 2014.

    Example:
        >>> text = torch.tensor([0, 1, 4, 0, 2, 4, 0, 1, 4, 0, 2, 4])  # 1 and 2 stand between 0 and 4
        >>> x = context_vectors(text, 5, width=3)
        >>> (x[1] - x[2]).norm() < (x[1] - x[0]).norm()
        tensor(True)
    """
    check_ids("tokens", tokens, num_tokens)
    check_positive_int("width", width)
    counts = tokens.bincount(minlength=num_tokens)
    num_contexts = min(check_positive_int("num_contexts", num_contexts), num_tokens)
    frequent = counts.topk(num_contexts).indices
    context = torch.full((num_tokens,), -1).scatter(0, frequent, torch.arange(num_contexts))

    word = torch.cat([tokens[1:], tokens[:-1]])
    column = torch.cat([context[tokens[:-1]], context[tokens[1:]]])
    column[len(tokens) - 1 :] += num_contexts * (column[len(tokens) - 1 :] >= 0)
    word, column = word[column >= 0], column[column >= 0]
    size = (num_tokens, 2 * num_contexts)
    pairs = torch.sparse_coo_tensor(
        torch.stack([word, column]), torch.ones(len(word)), size, check_invariants=False
    )
    pairs = pairs.coalesce()
    share = pairs.values() / counts.clamp(min=1)[pairs.indices()[0]]
    rows = torch.sparse_coo_tensor(pairs.indices(), share.sqrt(), size, is_coalesced=True, check_invariants=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the random projection that finds the components
        u, s, _ = torch.svd_lowrank(rows, q=min(width, *size), niter=4)
    return u * s
