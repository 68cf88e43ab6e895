"""Interrupt the commands at random moments and count their answers: `python tests/tasks/interruptions.py 100`."""

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

COMMANDS = {
    "compare lm": ["--heads=exact,sampled", "--budget=4s", "--points=2", "--point-tokens=500", "--eval-tokens=500"],
    "compare classify": ["--heads=exact,sampled", "--seeds=2", "--epochs=10"],
    "train lm": ["--epochs=1", "--width=16", "--points=40", "--point-tokens=500", "--save-every=0.5"],
}
EARLY, LATE = 1.0, 15.0
"""Half of the moments are in the first second, half after it, in seconds from the start; more on a slow machine."""


class Answer(NamedTuple):
    """What a command did when it was interrupted."""

    status: int
    said: list[str]
    waited: float


def begin(command, *options, cwd=None):
    """Start a command in a process that Ctrl-C reaches, even where the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "vastmax", *command.split(), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(seen, process):
    """Wait for something that a process does; it must not end before."""
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interrupt(process, times=1):
    """Send Ctrl-C to a process, and return what it did."""
    sent = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01 * (times > 1))
    _, error = process.communicate(timeout=120)
    # Kernels say what they compile on a machine's first run.
    said = [line for line in error.splitlines() if not line.startswith("compiled ")]
    return Answer(process.returncode, said, time.monotonic() - sent)


def interrupted_after(command, seconds, folder, times=1):
    """Run a command of `COMMANDS` and interrupt it after so many seconds."""
    with begin(command, *COMMANDS[command], f"--out={folder}") as process:
        time.sleep(seconds)
        return interrupt(process, times)


def judged(answer):
    """Say whether an answer is the one that is promised, or what is wrong with it."""
    if answer.status == 130 and len(answer.said) == 1 and answer.said[0].startswith("vastmax: "):
        return "130 and one line" + (", with --resume" if "--resume" in answer.said[0] else "")
    if answer.status == 0 and not answer.said:
        return "done before"
    if not any("vastmax" in line and ".py" in line for line in answer.said):
        return "before a line of vastmax was run"
    return f"wrong: {answer}"


def main(count, late=LATE):
    moments = random.Random(0)
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, command in zip(range(count), itertools.cycle(COMMANDS), strict=False):
            early = index % (2 * len(COMMANDS)) < len(COMMANDS)
            seconds = moments.uniform(0, EARLY) if early else moments.uniform(EARLY, late)
            answer = interrupted_after(command, seconds, Path(folder, str(index)))
            print(
                f"{command:>16} after {seconds:6.3f} s: {judged(answer)}, {answer.waited:.2f} s later", flush=True
            )
            answers.setdefault(f"{command}, {'early' if early else 'late'}", Counter())[judged(answer)] += 1
    for name, counted in answers.items():
        print(name, dict(counted))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]), *map(float, sys.argv[2:]))
