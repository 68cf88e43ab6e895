"""The sigsoftmax: an exact head whose logits bend."""

from __future__ import annotations

from vastmax.heads.softmax import Softmax
from vastmax.scoring.links import Sig


class SigSoftmax(Softmax):
    r"""The sigsoftmax: the softmax of $z + \log \sigma(z)$.

    $$p_c = \frac{e^{z_c} \sigma(z_c)}{\sum_j e^{z_j} \sigma(z_j)}, \qquad z_c = \frac{h \cdot w_c + b_c}{T}$$

    The log-probabilities of a softmax over many contexts are a matrix of rank at most d + 2, however many classes
    there are. A function that bends each logit has no such bound, for the price of one more operation a logit.

    Takes the arguments of `Softmax`.

    References:
        Kanai, Fujiwara, Yamanaka and Adachi, Sigsoftmax: Reanalysis of the Softmax Bottleneck, 2018.

    Example:
        >>> head = SigSoftmax(16, 1000)
        >>> hidden = torch.randn(4, 16)
        >>> z = torch.nn.functional.linear(hidden, head.weight, head.bias)
        >>> wanted = (z.exp() * z.sigmoid()) / (z.exp() * z.sigmoid()).sum(-1, keepdim=True)
        >>> torch.allclose(head.log_prob(hidden).exp(), wanted)
        True
    """

    link = Sig()
