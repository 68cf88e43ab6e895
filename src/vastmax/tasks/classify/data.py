"""Labelled rows, split into parts, made features of, and cut to a long tail."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vastmax.data.files import PARTS, stem_of
from vastmax.data.scripts import UNSPACED
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.labelled_text import read_labelled_text
from vastmax.tasks.files import check_unread
from vastmax.validation import shown

Ids = NDArray[np.int64]
MIN_ROWS = 3  # of a class that is to be split: one for each part
DIGITS_SHARE, TEXT_SHARE = 0.2, 0.1
WORDS = rf"[{UNSPACED}]|[^\W{UNSPACED}]+"  # and characters, in scripts without spaces
MAX_FEATURES = 20_000


@dataclass(frozen=True)
class LabelledData:
    """Rows with one label each.

    Attributes:
        name: short name, for tables.
        source: where the rows came from.
        notes: how the rows were read and what was left out, one sentence each.
        inputs: N texts, or pixels (N, F).
        label: (N,) class ids.
        classes: names of the V classes.
        part: (N,) 0, 1, 2 for train, valid, test; None if each seed is to split anew.
        share: of the rows that valid and test get each where a seed splits.
    """

    name: str
    source: str
    notes: tuple[str, ...]
    inputs: list[str] | NDArray[np.float32]
    label: Ids
    classes: tuple[str, ...]
    part: Ids | None
    share: float

    def summary(self) -> dict[str, object]:
        """What a reader of results needs to know of the data."""
        return {
            "name": self.name,
            "source": self.source,
            "notes": list(self.notes),
            "num_classes": len(self.classes),
            "rows": len(self.label),
        }

    def fingerprint(self) -> str:
        """Return a hash of rows and labels, to tell whether a comparison goes on with the data it began with."""
        digest = hashlib.sha256(repr(self.share).encode())
        inputs = [self.inputs] if isinstance(self.inputs, np.ndarray) else self.inputs
        for pieces in (self.classes, inputs, [self.label], [] if self.part is None else [self.part]):
            digest.update(f"{len(pieces)} pieces".encode())
            for piece in pieces:
                # The length goes first: what is hashed is then the pieces, and not their text run together.
                content = piece.encode(errors="surrogatepass") if isinstance(piece, str) else piece.tobytes()
                digest.update(f"{len(content)}:".encode())
                digest.update(content)
        return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """Features and labels of the rows of one part, and which rows of the data they are.

    Attributes:
        features: (N, F) a tensor, or a scipy.sparse matrix for texts.
        label: (N,) int64.
        rows: (N,) places in the data.
    """

    features: Any
    label: Tensor
    rows: Ids


@dataclass(frozen=True)
class Problem:
    """What one seed trains and is scored on; `counts` (V,) are the rows of each class in `train`."""

    seed: int
    train: Part
    valid: Part
    test: Part
    counts: Tensor


def read_data(config: ClassifyConfig) -> LabelledData:
    """Read scikit-learn's digits, or the labelled text that `config` names.

    Raises:
        FileNotFoundError, ValueError: data that is missing, empty, malformed, or of fewer than two classes.
    """
    if config.data is not None:
        return labelled_text(Path(config.data), config)
    options = ("encoding", "text_column", "label_column")
    check_unread(ClassifyConfig, **{name: getattr(config, name) for name in options})
    return digits()


def digits() -> LabelledData:
    """Return scikit-learn's digits: 1,797 images of 8 x 8 pixels, ten classes."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    return LabelledData(
        "digits",
        "scikit-learn's digits, 8 x 8 pixels",
        ("each seed splits 60 / 20 / 20, class by class",),
        (bunch.data / 16).astype(np.float32),
        bunch.target.astype(np.int64),
        tuple(str(digit) for digit in bunch.target_names),
        None,
        DIGITS_SHARE,
    )


def labelled_text(path: Path, config: ClassifyConfig | None = None) -> LabelledData:
    """Read labelled text; rows that cannot be learned and tested are left out and noted.

    Raises:
        FileNotFoundError, ValueError: text that is missing, malformed, or of fewer than two classes.
    """
    read = read_labelled_text(path, config or ClassifyConfig())
    order = [name for name in (*PARTS, "all") if name in read.parts]
    rows = [row for name in order for row in read.parts[name]]
    names = sorted({label for _, label in rows})
    place = {name: index for index, name in enumerate(names)}  # an array of names is as wide as the longest one
    labels = np.array([place[label] for _, label in rows], dtype=np.int64)
    part, notes = None, list(read.notes)
    if "all" in read.parts:
        classes, left_out = classes_to_split(labels)
    else:
        part = np.repeat([PARTS.index(name) for name in order], [len(read.parts[name]) for name in order])
        if "valid" not in read.parts:
            draw_valid(labels, part)
            notes.append(f"valid: no file says so; {TEXT_SHARE:.0%} of train, class by class")
        classes, left_out = classes_of_train(path, labels, part)
    if len(classes) < 2:
        swapped = f"; {read.swapped}" if read.swapped else ""
        raise ValueError(
            f"{shown(path)}: expected rows of at least 2 classes to train on, got {len(classes)}{swapped}"
        )
    kept = np.isin(labels, classes)
    return LabelledData(
        path.resolve().name if path.is_dir() else stem_of(path),
        str(path),
        (*notes, *left_out),
        [text for (text, _), keep in zip(rows, kept, strict=True) if keep],
        np.searchsorted(classes, labels[kept]).astype(np.int64),
        tuple(names[index] for index in classes),
        None if part is None else part[kept],
        TEXT_SHARE,
    )


def draw_valid(labels: Ids, part: Ids) -> None:
    """Move rows of train to valid: of each class its share, one at least, and the same ones every time."""
    train = np.flatnonzero(part == 0)
    draw = np.random.default_rng(0)
    for name in np.unique(labels[train]):
        rows = draw.permutation(train[labels[train] == name])
        part[rows[: max(1, round(TEXT_SHARE * len(rows))) if len(rows) > 1 else 0]] = 1


def classes_to_split(labels: Ids) -> tuple[Ids, list[str]]:
    """Return the classes with a row for each part, and notes on how the split is made and what it leaves out."""
    classes, counts = np.unique(labels, return_counts=True)
    notes = ["each seed splits 80 / 10 / 10, class by class"]
    rare = counts < MIN_ROWS
    if rare.any():
        notes.append(
            f"left out: {counts[rare].sum():,} rows of {rare.sum():,} classes with fewer than {MIN_ROWS} rows, too "
            "few to split"
        )
    return classes[~rare], notes


def classes_of_train(path: Path, labels: Ids, part: Ids) -> tuple[Ids, list[str]]:
    """Return the classes of the training part, and notes on what the others have that it lacks."""
    classes = np.unique(labels[part == 0])
    notes = []
    for index in (1, 2):
        there = labels[part == index]
        lost = there[~np.isin(there, classes)]
        if len(lost) == len(there):
            raise ValueError(f"{shown(path)}: expected labels of train in {PARTS[index]}, got none of them")
        if len(lost):
            unseen = f"{len(np.unique(lost)):,} labels that train lacks"
            notes.append(f"left out: {len(lost):,} rows of {PARTS[index]} with {unseen}")
    return classes, notes


def pose(data: LabelledData, config: ClassifyConfig, seed: int) -> Problem:
    """Split data as `seed` says, cut its training part to a long tail, and make features.

    Raises:
        ValueError: a tail longer than the largest class, or texts without a word.
    """
    draw = np.random.default_rng(seed)
    part = split(data.label, data.share, draw) if data.part is None else data.part
    train, valid, test = (np.flatnonzero(part == index) for index in range(3))
    if config.long_tail > 1:
        train = train[long_tail(data.label[train], config.long_tail, draw)]
    places = (train, valid, test)
    if isinstance(data.inputs, list):
        features = texts_to_features(data.inputs, places)
    else:
        features = pixels_to_features(data.inputs, places)
    parts = [
        Part(made, torch.from_numpy(data.label[rows]), rows) for made, rows in zip(features, places, strict=True)
    ]
    counts = torch.bincount(parts[0].label, minlength=len(data.classes))
    return Problem(seed, parts[0], parts[1], parts[2], counts)


def split(label: Ids, share: float, draw: np.random.Generator) -> Ids:
    """Return the part of each row: of every class, in random order, `share` to test, `share` to valid."""
    part = np.zeros_like(label)
    for name in np.unique(label):
        rows = draw.permutation(np.flatnonzero(label == name))
        held = max(1, round(share * len(rows)))
        part[rows[:held]] = 2
        part[rows[held : 2 * held]] = 1
    return part


def long_tail(label: Ids, ratio: float, draw: np.random.Generator) -> Ids:
    r"""Return rows whose classes, in random order, fall off exponentially in size.

    $$n_i = \lfloor n_{\max} R^{-i / (V - 1)} \rfloor, \qquad i = 0, \dots, V - 1$$

    A class with fewer rows keeps all of them.

    Args:
        label: (N,) class ids.
        ratio: R, of the largest class to the smallest, 1 or greater.
        draw: orders the classes and chooses their rows.

    Returns:
        The places of the rows kept, rising.

    Raises:
        ValueError: a ratio that would leave the smallest class without a row.

    Source: Cui, Jia, Lin, Song and Belongie, *Class-Balanced Loss Based on Effective Number of Samples*, 2019.
    """
    classes, counts = np.unique(label, return_counts=True)
    largest = int(counts.max())
    if ratio > largest:
        raise ValueError(f"long_tail: expected at most {largest}, the rows of the largest class, got {ratio:g}")
    rank = np.arange(len(classes)) / max(1, len(classes) - 1)
    sizes = np.floor(largest * ratio**-rank * (1 + 1e-12)).astype(int)  # 49 * 49**-1.0 is a hair below 1
    kept = [
        draw.permutation(np.flatnonzero(label == name))[:size]
        for name, size in zip(draw.permutation(classes), sizes, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def pixels_to_features(inputs: NDArray[np.float32], parts: tuple[Ids, ...]) -> list[Tensor]:
    """Return the pixels of each part: (N, F)."""
    return [torch.from_numpy(inputs[rows]) for rows in parts]


def texts_to_features(inputs: list[str], parts: tuple[Ids, ...]) -> list[Any]:
    """Return TF-IDF of the words and pairs of words that the first part has: (N, F) sparse rows of norm 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=WORDS, max_features=MAX_FEATURES, sublinear_tf=True, dtype=np.float32
    )
    try:
        vectorizer.fit([inputs[row] for row in parts[0]])
    except ValueError as error:
        raise ValueError("data: expected texts with words, got a training part without one") from error
    return [vectorizer.transform([inputs[row] for row in rows]) for rows in parts]
