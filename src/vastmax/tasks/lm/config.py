"""What a language-model run is made of: every option of the command, with its default and its bounds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vastmax.validation import check_choice, check_finite_number, check_positive_int, make_plain, shown

SAMPLERS = (
    "unigram",
    "uniform",
    "log-uniform",
    "in-batch",
    "tree-guided",
    "random-features",
    "hard-negatives",
    "top-and-tail",
)
BODIES = ("lstm", "transformer")
OPTIMIZERS = ("adamw", "adagrad")
TOKENS = ("word", "bpe")
SPLITS = ("auto", "whitespace", "words")
ADDED = {"encoding", "text_column"}
"""Options that older runs lack; their defaults are what there was before."""

LIMIT = 1e8
"""No option counts further: a hundred million seconds are three years."""


UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Read `90`, `90s`, `1.5m` or `1h` as seconds.

    Raises:
        ValueError: text that is no such duration.
    """
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError as error:
        raise ValueError(f"expected a duration such as 90s, 5m or 1h, got {shown(text)}") from error


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A field with the line of help that the command prints for it."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class LMConfig:
    """Options of a language-model run.

    Raises:
        TypeError, ValueError: an option out of its bounds; the message names it, its value and what was expected.
    """

    data: str | None = option(
        None, "Text, JSON lines or Parquet, a file or a folder; the interpreter's standard library if omitted."
    )
    encoding: str = option("utf-8", "Encoding of the text, such as utf-16, latin-1 or gb18030.")
    text_column: str | None = option(None, "Column with the texts of a table, by name or number from 1.")
    tokens: str = option("word", f"Kind of tokens: {' or '.join(TOKENS)}.")
    split: str = option("auto", f"How raw text becomes words: {', '.join(SPLITS)}.")
    vocab_size: int | None = option(None, "Entries of the vocabulary; every token of the training text if omitted.")
    min_count: int = option(1, "Tokens seen less often become <unk>.")
    body: str = option("lstm", f"What makes hidden rows: {' or '.join(BODIES)}.")
    width: int = option(256, "Size d of a hidden row.")
    layers: int = option(1, "Layers of the body.")
    dropout: float = option(0.1, "Dropout on embeddings and hidden rows.")
    num_samples: int = option(1024, "Candidates of a sampled head.")
    shared: bool = option(True, "Draw candidates once per step; with --no-shared, for each token of its own.")
    sampler: str = option("unigram", f"Where candidates come from: {', '.join(SAMPLERS)}.")
    power: float = option(1.0, "Power of the unigram noise.")
    mixtures: int = option(4, "Components of the mixture head.")
    optimizer: str = option("adamw", f"{' or '.join(OPTIMIZERS)}; both update only the rows a step touched.")
    lr: float = option(0.01, "Peak learning rate; warmed up over a twentieth of the run, then falling to 0.")
    weight_decay: float = option(0.0, "Decoupled weight decay (adamw).")
    clip: float = option(1.0, "Bound on the norm of the body's gradient.")
    batch_size: int = option(32, "Strands of text in a batch.")
    seq_len: int = option(32, "Tokens of a strand in a batch.")
    epochs: float | None = option(None, "Passes over the training text; excludes --budget.")
    budget: float | None = option(
        None, "Training time, such as 60s or 5m, evaluation not counted; excludes --epochs.", parser=duration
    )
    points: int = option(10, "Evaluations during training, the points of the curves.")
    point_tokens: int = option(20_000, "Validation tokens of such an evaluation.")
    eval_tokens: int = option(250_000, "Most tokens of the final validation and of the test; 0 for all there are.")
    patience: int = option(0, "Stop after this many evaluations without a better one; 0 to run to the end.")
    save_every: float = option(60.0, "Seconds between checkpoints.")
    seed: int = option(0, "Seed of initial weights, dropout and draws.")
    device: str = option("auto", "cpu, gpu or auto.")

    def __post_init__(self) -> None:
        make_plain(self)
        check_choice("tokens", self.tokens, TOKENS)
        check_choice("split", self.split, SPLITS)
        check_choice("body", self.body, BODIES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("device", self.device, ("auto", "cpu", "gpu"))
        for name in ("min_count", "width", "layers", "num_samples", "mixtures", "batch_size", "seq_len", "points"):
            check_positive_int(name, getattr(self, name))
        if self.vocab_size is not None:
            check_positive_int("vocab_size", self.vocab_size)
        check_positive_int("point_tokens", self.point_tokens)
        for name in ("lr", "clip", "save_every", "epochs", "budget"):
            if getattr(self, name) is not None:
                check_finite_number(name, getattr(self, name), above=0.0, below=LIMIT)
        check_finite_number("power", self.power, above=-LIMIT, below=LIMIT)
        for name in ("weight_decay", "eval_tokens", "patience"):
            check_finite_number(name, getattr(self, name), at_least=0.0, below=LIMIT)
        check_finite_number("dropout", self.dropout, at_least=0.0, below=1.0)
        if self.epochs is not None and self.budget is not None:
            raise ValueError(
                f"budget: expected either epochs or budget, got epochs={self.epochs} and budget={self.budget}"
            )
        if self.epochs is None and self.budget is None:
            object.__setattr__(self, "epochs", 1.0)

    def save(self, path: Path, **more: Any) -> None:
        """Write the options, and `more` entries beside them, as JSON, whole or not at all."""
        draft = path.with_name(f"{path.name}.draft")
        draft.write_text(json.dumps({**asdict(self), **more}, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> tuple[LMConfig, dict[str, Any]]:
        """Read the options that `save` wrote, and the other entries.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is no such JSON.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{shown(path)}: expected the options of a run in JSON, got a file that is not: {error}"
            ) from error
        names = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or not names - ADDED <= content.keys():
            raise ValueError(f"{shown(path)}: expected the options of a run, got JSON of something else")
        options = {name: content.pop(name) for name in names & content.keys()}
        try:
            return cls(**options), content
        except (TypeError, ValueError) as error:
            raise ValueError(f"{shown(path)}: {error}") from error

    def differences(self, other: LMConfig) -> list[str]:
        """Name the options in which two runs differ."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
