"""A run's folder: what was asked, on which text, how far it got."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vastmax.tasks.files import check_folder, write_json
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import TokenStreams
from vastmax.validation import shown

RESULT_KEYS = {"head", "steps", "tokens", "seconds", "tokens_per_second", "ms_per_step", "curve", "valid", "test"}


class RunFolder:
    """The files of one run. A run is its options, its head and its text; a folder holds one.

    Args:
        path: the folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.options = path / "config.json"
        self.vocabulary = path / "vocabulary.json"
        self.checkpoint = path / "last.ckpt"
        self.losses = path / "losses.csv"
        self.results = path / "result.json"

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, done or not."""
        return self.options.exists()

    def begin(self, config: LMConfig, head: str, streams: TokenStreams, *, resume: bool) -> None:
        """Make the folder for a run, or find that run in it; nothing that is there is changed.

        Raises:
            ValueError: the folder holds another run, or this one and `resume` was not asked for.
        """
        check_folder(self.path)
        text = fingerprint(streams)
        if not self.begun:
            self.path.mkdir(parents=True, exist_ok=True)
            streams.vocabulary.save(self.vocabulary)
            config.save(self.options, head=head, text=text)
            return
        if not resume:
            raise ValueError(
                f"out: {shown(self.path)} holds a run already; add --resume to go on, or name another folder"
            )
        saved, more = LMConfig.load(self.options)
        different = saved.differences(config)
        different += [name for name, value in (("head", head), ("text", text)) if more.get(name) != value]
        if different:
            raise ValueError(f"resume: {shown(self.path)} was begun with another {', '.join(different)}")

    def result(self) -> dict[str, Any] | None:
        """Return the result of a run that is done, None of one that is not.

        Raises:
            ValueError: a file that is damaged.
        """
        if not self.results.exists():
            return None
        try:
            result = json.loads(self.results.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{shown(self.results)}: expected a result in JSON, got a file that is not: {error}"
            ) from error
        if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
            raise ValueError(f"{shown(self.results)}: expected the result of a run, got JSON of something else")
        return result

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result of a run, whole or not at all."""
        write_json(self.results, result)


def fingerprint(streams: TokenStreams) -> str:
    """Return a hash of a text's tokens, to tell whether a run goes on with the text it was begun with."""
    digest = hashlib.sha256()
    for stream in (streams.train, streams.valid, streams.test):
        digest.update(len(stream).to_bytes(8, "little"))
        digest.update(stream.numpy().tobytes())
    return digest.hexdigest()
