"""Train one body under several heads and set what each costs beside what it reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vastmax.data import TokenBatches
from vastmax.study.memory import peak_memory
from vastmax.study.surroundings import surroundings
from vastmax.tasks.files import RESULTS, check_folder, write_json
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import TokenStreams, describe, read_streams
from vastmax.tasks.lm.heads import HEADS, check_head
from vastmax.tasks.lm.model import LanguageModel
from vastmax.tasks.lm.run import RunFolder
from vastmax.tasks.lm.train import check_device, train
from vastmax.validation import check_names, shown


def compare_language_models(
    config: LMConfig,
    heads: Sequence[str],
    folder: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a language model under each head, from the same initial weights on the same batches.

    Every head gets the same seconds of training or the same tokens, as `config` says. The folder receives one
    folder per head and `results.json`. With `resume`, heads that are done are not trained again and one that was
    interrupted goes on from its last checkpoint.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: an unknown or repeated head, a folder with another comparison in it, unusable data.
    """
    check_names("heads", heads, HEADS)
    check_folder(folder)
    begun = has_begun(folder)
    if begun and not resume:
        raise ValueError(
            f"out: {shown(folder)} holds a comparison already; add --resume to go on with it, or name another"
        )
    if resume and not begun:
        raise ValueError(f"resume: expected a comparison to go on with in {shown(folder)}, found none")
    check_device(config.device)

    streams = read_streams(config)
    say(describe(streams))
    for head in heads:
        check_head(head, config, streams.vocabulary.counts)
    results = []
    for head in heads:
        if RunFolder(folder / head).result() is not None:
            say(f"{head}: done before")
        result = train(
            config,
            head,
            folder / head,
            streams,
            resume=resume,
            announce=lambda point, head=head: say(describe_point(head, point)),  # type: ignore[misc]
        )
        results.append({**result, "peak_bytes": step_memory(config, head, streams)})
    content = {
        **surroundings(),
        "text": streams.summary(),
        "options": vars(config),
        "heads": results,
    }
    write_json(folder / RESULTS, content)
    return content


def has_begun(folder: Path) -> bool:
    """Whether a folder holds a comparison, done or not."""
    return any(RunFolder(folder / head).begun for head in HEADS)


def step_memory(config: LMConfig, head: str, streams: TokenStreams) -> int:
    """Return the peak memory of one training step, forward, backward and optimizer, beyond model and state."""
    model = LanguageModel(config, head, streams.vocabulary.counts)
    if config.device != "cpu" and torch.cuda.is_available():
        model = model.to("cuda")
    optimizer = model.configure_optimizers()
    tokens, target = next(iter(TokenBatches(streams.train, config.batch_size, config.seq_len)))
    batch = tokens.to(model.device), target.to(model.device)

    def step() -> None:
        optimizer.zero_grad()
        model.training_step(batch).backward()
        model.configure_gradient_clipping(optimizer)
        optimizer.step()

    step()  # allocates the optimizer's state, which is not the step's
    optimizer.zero_grad()
    model.state = None
    return peak_memory(step, model.device)


def describe_point(head: str, point: dict[str, float]) -> str:
    """Return one line about a point of a curve."""
    cost = f"{point['seconds']:6.1f} s  {point['tokens']:>12,} tokens"
    return f"{head:>9}  {cost}  perplexity {point['perplexity']:10.2f}"
