"""Where there is no CUDA device, the other tests of this folder run in a process whose Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled and tested on the device")
def test_the_kernels_under_the_interpreter():
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "--maxfail=5"]
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_*_kernels.py"))
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled and tested on the device")
def test_the_kernels_compile_for_a_device_that_is_absent():
    script = Path(__file__).parent / "compile_for_a_device.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "error", str(script), "90"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-8000:]
    assert len(result.stdout.splitlines()) == 15
