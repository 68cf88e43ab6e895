"""One measure in a process of its own: `python -m benchmarks.worker MEASURE FILE`, with the settings on stdin.

Fresh memory, no library of another measure, and nothing lost but this measure if it is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, without_folders
from benchmarks.settings import Settings

MACHINE = "machine"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def in_own_process(measure: str, settings: Settings) -> dict[str, Any]:
    """Run a measure, or the description of the machine, and return what it says.

    Of a measure: `rows`, of which one tells of a process that failed, and the `seconds` it took.

    Raises:
        RuntimeError: the description of the machine failed.
    """
    start = time.perf_counter()
    threads = dict.fromkeys(THREAD_VARIABLES, str(settings.threads))
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", measure, str(answer)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | threads,
            )
            try:
                process.communicate(json.dumps(settings.as_json()))
            finally:
                process.kill()
                process.wait()
        if process.returncode == 0:
            content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        elif measure == MACHINE:
            raise RuntimeError(f"the description of the machine failed:\n{log.read_text(errors='replace')}")
        else:
            content = {"rows": [failed(measure, process.returncode, log.read_text(errors="replace")).as_json()]}
    return content | {"seconds": time.perf_counter() - start}


def failed(measure: str, code: int, log: str) -> Row:
    """The row of a measure whose process failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    note = f"the process ended with {code}"
    return Row(measure, "all", note=f"{note}: {without_folders(lines[-1])}" if lines else note)


def main() -> None:
    """Measure and write the answer."""
    import torch

    measure, answer = sys.argv[1:]
    settings = Settings(**json.load(sys.stdin))
    torch.set_num_threads(settings.threads)
    if measure == MACHINE:
        from benchmarks.machine import measure_machine

        content = measure_machine(settings).as_json()
    else:
        from benchmarks import measures

        content = {"rows": [row.as_json() for row in measures.measure(measure)(settings)]}
    Path(answer).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
