"""Bodies: token ids to hidden rows. Each gives its embedding a sparse gradient, so that a step stays sublinear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vastmax.tasks.lm.config import LMConfig

State = tuple[Tensor, ...]


class LSTMBody(nn.Module):
    """An LSTM whose state is carried from batch to batch."""

    def __init__(self, num_tokens: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width, sparse=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(width, width, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return hidden rows (B, T, d) of tokens (B, T), and the state after them."""
        embedded = self.dropout(self.embedding(tokens.t()))
        hidden, state = self.lstm(embedded, state)
        return self.dropout(hidden).transpose(0, 1), tuple(part.detach() for part in state)


class TransformerBody(nn.Module):
    """A causal Transformer that sees the tokens of its own batch."""

    def __init__(self, num_tokens: int, width: int, layers: int, dropout: float, seq_len: int) -> None:
        super().__init__()
        heads = max(1, width // 64)
        if width % heads:
            raise ValueError(f"width: expected a multiple of 64 for a transformer, or less than 128, got {width}")
        self.embedding = nn.Embedding(num_tokens, width, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position = nn.Parameter(0.02 * torch.randn(seq_len, width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return hidden rows (B, T, d) of tokens (B, T); there is no state to carry."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        embedded = self.dropout(self.embedding(tokens) + self.position[:length])
        return self.layers(embedded, mask=mask, is_causal=True), ()


def build_body(config: LMConfig, num_tokens: int) -> LSTMBody | TransformerBody:
    """Build the body a run asks for."""
    if config.body == "lstm":
        return LSTMBody(num_tokens, config.width, config.layers, config.dropout)
    return TransformerBody(num_tokens, config.width, config.layers, config.dropout, config.seq_len)
