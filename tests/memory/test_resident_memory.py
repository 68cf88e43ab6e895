"""What the process takes of the system is bounded too, and not only what tensors hold at once.

A heap whose holes do not fit the next block grows with every block, as live tensors do not.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import resident_peaks

SCRIPT = Path(resident_peaks.__file__)
SMALLER, FEW, MANY = 6, 256, 1024
BLOCK = 4 * (1 << 25) >> SMALLER
LOGITS = 4 * MANY * resident_peaks.V
BESIDE = {"VectorScaling": 4 * BLOCK}
"""Of the history of a descent over V numbers."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a peak that can be set back is Linux's")


def peaks_of(*arguments):
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def peaks():
    return peaks_of(SMALLER, [FEW, MANY])


@pytest.mark.parametrize("name", resident_peaks.CASES)
def test_a_process_takes_a_few_blocks_however_many_rows_there_are(name, peaks):
    """Four blocks: half of the logits of the larger problem, of which it would hold several copies."""
    bound = 4 * BLOCK + BESIDE.get(name, 0)
    assert 4 * BLOCK == LOGITS // 2
    for peak in peaks[name]:
        assert isinstance(peak, int), peak
        assert peak <= bound


def test_blocks_as_large_as_they_are():
    """400 MB of logits: just below what the C library asks the system for, freed blocks of 32 MB stayed its own."""
    [peak] = peaks_of(0, [25_000], "OneVsAll")["OneVsAll"]
    assert peak <= 64 << 20
