"""What is kept on disk is used again, and not after a change of what a kernel inlines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import vastmax

CALL = """
import torch
from vastmax.kernels.numba import row_sums
print(row_sums(torch.zeros(2, 3)).maximum.tolist())
"""


def run(folder):
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), "compiled _row_sums" in done.stderr


def test_a_change_of_an_inlined_function_is_seen(tmp_path):
    package = tmp_path / "vastmax"
    shutil.copytree(Path(vastmax.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    compiling = package / "kernels" / "numba" / "compiling.py"
    compiling.write_text(compiling.read_text().replace("SHOWN_SECONDS = 0.5", "SHOWN_SECONDS = 0.0"))
    assert run(tmp_path) == ("[0.0, 0.0]", True)
    assert run(tmp_path) == ("[0.0, 0.0]", False)
    elementary = package / "kernels" / "numba" / "elementary.py"
    changed = elementary.read_text().replace("    return found\n", "    return found + x.dtype.type(7)\n")
    elementary.write_text(changed)
    assert run(tmp_path) == ("[7.0, 7.0]", True)


WITHOUT_A_FOLDER = """
from numba.core import caching

def refuse(self):
    raise OSError("read-only")

for name in ("InTreeCacheLocator", "UserWideCacheLocator", "IPythonCacheLocator"):
    getattr(caching, name).ensure_cache_path = refuse
"""


def test_kernels_run_where_no_folder_can_be_written_to():
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_FOLDER + CALL], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[0.0, 0.0]"), done.stderr
