"""Vectors of tokens from the company they keep in a text."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.validation import check_finite_number, check_ids, check_positive_int


@torch.no_grad()
def context_vectors(tokens: Tensor, num_tokens: int, width: int = 200, smoothing: float = 10.0) -> Tensor:
    r"""Return a vector per token, near to those of tokens that are followed and preceded by the same ones.

    The principal components of

    $$x_{wc} = \sqrt{\hat p(c \mid w)},$$

    with c the tokens just before w and, apart from them, those just after: the distance of two rows is the
    Hellinger distance of their contexts. A token seen n times is then drawn towards the mean of the text, for of
    a rare one little is known:

    $$y_w = \bar x + \frac{n_w}{n_w + \lambda} (x_w - \bar x).$$

    Args:
        tokens: (T,) int64, a text.
        num_tokens: V, the size of the vocabulary.
        width: components kept; fewer where V is smaller.
        smoothing: lambda, at least 0: the count at which a token is half way between its own contexts and the mean.

    Returns:
        (V, width) float32; with smoothing, the mean for a token that the text lacks.

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
    width = check_positive_int("width", width)
    smoothing = check_finite_number("smoothing", smoothing, at_least=0.0)
    counts = tokens.bincount(minlength=num_tokens)
    word = torch.cat([tokens[1:], tokens[:-1]])
    context = torch.cat([tokens[:-1], tokens[1:] + num_tokens])
    size = (num_tokens, 2 * num_tokens)
    pairs = torch.sparse_coo_tensor(
        torch.stack([word, context]), torch.ones(len(word)), size, check_invariants=False
    ).coalesce()
    share = pairs.values() / counts[pairs.indices()[0]]
    rows = torch.sparse_coo_tensor(pairs.indices(), share.sqrt(), size, is_coalesced=True, check_invariants=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the random projection that finds the components
        u, s, _ = torch.svd_lowrank(rows, q=min(width, num_tokens), niter=4)
    x, n = u * s, counts.unsqueeze(-1)
    mean = (n * x).sum(0) / n.sum().clamp(min=1)
    return mean + (x - mean) * (n / (n + smoothing)).nan_to_num()
