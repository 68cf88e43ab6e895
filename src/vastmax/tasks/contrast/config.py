"""What a comparison of contrastive losses is made of: every option of the command, with its default and bounds."""

from __future__ import annotations

from dataclasses import dataclass

from vastmax.tasks.classify.config import check_number
from vastmax.tasks.lm.config import LIMIT, option
from vastmax.validation import check_finite_number, make_plain


@dataclass(frozen=True)
class ContrastConfig:
    """Options of a comparison of contrastive losses.

    Raises:
        TypeError, ValueError: an option out of its bounds; the message names it, its value and what was expected.
    """

    seeds: int = option(3, "Repeats: every loss is trained anew under each of so many seeds.")
    epochs: int = option(60, "Passes over the training images.")
    lr: float = option(0.003, "Learning rate at the start; it falls to 0 in a straight line.")
    weight_decay: float = option(0.01, "Decoupled weight decay of the encoder.")
    batch_size: int = option(128, "Pairs of a batch: each view has the others' as negatives.")
    hidden: int = option(128, "Size of the encoder's two hidden layers.")
    width: int = option(32, "Size d of an embedding.")
    temperature: float = option(0.1, "Temperature of the cosines; where it starts, if the loss learns it.")
    hardness: float = option(1.0, "How much more the hard loss counts negatives with high scores.")
    queue: int = option(512, "Past keys that the queue holds.")
    momentum: float = option(0.99, "How slowly the queue's key encoder follows.")
    noise: float = option(0.1, "Standard deviation of a view's noise; pixels are in [0, 1].")
    brightness: float = option(0.2, "A view's pixels are multiplied by up to so much more or less.")
    seed: int = option(0, "The first seed: of splits, initial weights, batches and views.")

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("seeds", "epochs", "hidden", "width", "queue"):
            check_number(name, getattr(self, name))
        if check_number("batch_size", self.batch_size) < 2:
            raise ValueError(f"batch_size: expected at least 2, a pair and its negative, got {self.batch_size}")
        for name in ("lr", "temperature"):
            check_finite_number(name, getattr(self, name), above=0.0, below=LIMIT)
        for name in ("weight_decay", "hardness", "noise", "seed"):
            check_finite_number(name, getattr(self, name), at_least=0.0, below=LIMIT)
        for name in ("momentum", "brightness"):
            check_finite_number(name, getattr(self, name), at_least=0.0, below=1.0)
