"""What a comparison of classifiers is made of: every option of the command, with its default and its bounds."""

from __future__ import annotations

from dataclasses import dataclass

from vastmax.tasks.lm.config import LIMIT, option
from vastmax.validation import check_finite_number, check_int, check_positive_int, make_plain, shown

MOST = 1_000_000
"""No whole number of these small models goes further: a layer of a million units is past any use."""


def check_number(name: str, value: object) -> int:
    """Return `value` if it is an integer in [1, 1,000,000]; raise TypeError or ValueError otherwise."""
    if (number := check_int(name, value)) > MOST:
        raise ValueError(f"{name}: expected an integer of at most {MOST:,}, got {shown(number)}")
    return check_positive_int(name, number)


@dataclass(frozen=True)
class ClassifyConfig:
    """Options of a comparison of classifiers.

    Raises:
        TypeError, ValueError: an option out of its bounds; the message names it, its value and what was expected.
    """

    data: str | None = option(
        None,
        "Labelled text: CSV, TSV, JSON, JSON lines, Parquet or fastText's lines, or a folder with such files named "
        "train, valid and test; scikit-learn's digits if omitted.",
    )
    encoding: str = option("utf-8", "Encoding of the text, such as utf-16, latin-1 or gb18030.")
    text_column: str | None = option(None, "Column with the texts, by name or number from 1.")
    label_column: str | None = option(None, "Column with the labels, by name or number from 1.")
    long_tail: float = option(1.0, "Rows of the largest class over those of the smallest that training is cut to.")
    seeds: int = option(3, "Repeats: every head is trained anew under each of so many seeds.")
    epochs: int = option(20, "Passes over the training part.")
    lr: float = option(0.02, "Learning rate at the start; it falls to 0 in a straight line.")
    weight_decay: float = option(0.01, "Decoupled weight decay.")
    batch_size: int = option(64, "Rows of a batch.")
    hidden: int = option(128, "Size d of a hidden row.")
    dropout: float = option(0.3, "Dropout on hidden rows.")
    num_samples: int = option(16, "Candidates of a sampled head.")
    smoothing: float = option(0.1, "Share of the target that the smoothing head spreads over all classes.")
    beta: float = option(0.999, "Beta of the effective number of rows.")
    gamma: float = option(0.5, "Focusing parameter of the focal loss.")
    tau: float = option(1.0, "Strength of both logit adjustments.")
    seed: int = option(0, "The first seed: of splits, initial weights, batches, dropout and draws.")

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("seeds", "epochs", "batch_size", "hidden", "num_samples"):
            check_number(name, getattr(self, name))
        check_finite_number("long_tail", self.long_tail, at_least=1.0, below=LIMIT)
        check_finite_number("lr", self.lr, above=0.0, below=LIMIT)
        for name in ("weight_decay", "gamma", "tau"):
            check_finite_number(name, getattr(self, name), at_least=0.0, below=LIMIT)
        for name in ("dropout", "smoothing", "beta"):
            check_finite_number(name, getattr(self, name), at_least=0.0, below=1.0)
        check_finite_number("seed", self.seed, at_least=0, below=2**32)
