"""Rows: what is met, what is over what, and that JSON keeps all of it."""

import json

import pytest

from benchmarks.contest import inverse, memory_over, over_floor, rows_of
from benchmarks.rows import Floor, Row, Seconds, Target
from benchmarks.timing import Measured


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "met"),
    [
        (1.0, 1.0, True, True),
        (1.01, 1.0, True, False),
        (2.0, 2.0, False, True),
        (1.99, 2.0, False, False),
        (None, 2.0, True, False),
        (None, 2.0, False, False),
    ],
)
def test_a_target_is_met_at_its_bound_and_never_without_a_figure(value, bound, at_most, met):
    assert Target("time", value, bound, at_most).met is met


def test_json_keeps_a_row_and_says_what_follows_from_it():
    row = Row(
        "step",
        "ours",
        classes=10,
        seconds=Seconds.of([3.0, 1.0, 2.0]),
        floor=Floor(0.5, "products"),
        peak_bytes=7,
        resident_bytes=9,
        ratios={"over torch": 0.25},
        targets=(Target("over torch", 0.25, 0.5), Target("draws", None, 20.0, at_most=False, unit="M/s")),
        note="of three rounds",
    )
    content = json.loads(json.dumps(row.as_json()))
    assert Row.from_json(content) == row
    assert content["seconds"] == {"median": 2.0, "least": 1.0, "most": 3.0, "rounds": 3}
    assert content["over_floor"] == 4.0
    assert [target["met"] for target in content["targets"]] == [True, False]


def test_a_row_without_figures_survives_json():
    row = Row("step", "theirs", note="not installed: theirs")
    assert Row.from_json(json.loads(json.dumps(row.as_json()))) == row
    assert row.over_floor is None


def test_ratios_are_medians_of_the_rounds_and_not_ratios_of_medians():
    ours, theirs = Measured([1.0, 2.0, 6.0]), Measured([2.0, 8.0, 3.0])
    assert ours.over(theirs) == 0.5  # of 1/2, 1/4 and 2; of the medians it would be 2/3
    assert inverse(ours.over(theirs)) == 2.0
    assert ours.over(Measured([1.0], problem="failed")) is None
    assert inverse(None) is None


def test_rows_have_the_floor_and_the_ratios_of_their_implementation():
    found = {
        "ours": Measured([1.0, 1.0], peak_bytes=10, resident_bytes=12),
        "theirs": Measured([4.0, 4.0], peak_bytes=40),
        "broken": Measured(problem="TypeError: no such option"),
    }
    floor, other = Floor(0.5, "bytes"), Floor(2.0, "more bytes")
    rows = rows_of(
        "step",
        found,
        floor=floor,
        floors={"theirs": other},
        peers={"over theirs": "theirs", "over broken": "broken", "over absent": "absent"},
        targets=lambda name: [Target("over theirs", found[name].over(found["theirs"]), 0.5)],
    )
    ours, theirs, broken = rows
    assert (ours.peak_bytes, ours.resident_bytes) == (10, 12)
    assert (ours.ratios, theirs.ratios, broken.ratios) == ({"over theirs": 0.25}, {}, {})
    assert (ours.over_floor, theirs.over_floor, broken.over_floor) == (2.0, 2.0, None)
    assert [row.targets[0].met for row in rows] == [True, False, False]
    assert (broken.seconds, broken.note) == (None, "TypeError: no such option")
    assert memory_over(found["ours"], found["theirs"]) == 0.25
    assert memory_over(found["ours"], found["broken"]) is None
    assert over_floor(found["ours"], floor) == 2.0
    assert over_floor(found["ours"], None) is None
    assert over_floor(found["broken"], floor) is None
