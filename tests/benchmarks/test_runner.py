"""The runner: a measure that fails is a row, results are kept and gone on with, and the report says it all."""

import dataclasses
import json

import pytest
import rich.console

from benchmarks import __main__ as runner
from benchmarks.measures import MEASURES
from benchmarks.report import write_report
from benchmarks.results import Results, rows_in
from benchmarks.rows import Floor, Row, Seconds, Target
from benchmarks.settings import Settings
from benchmarks.worker import MACHINE, failed, in_own_process

SETTINGS = Settings(threads=1, rounds=3, seconds=4.0)
MACHINE_CONTENT = {
    "processor": "A Processor",
    "cores": 2,
    "threads": 1,
    "memory_bytes": 8 << 30,
    "gpu": None,
    "python": "3.11",
    "packages": {"torch": "2.13", "tensorflow-cpu": None},
    "gflops": {"8 x 8 x 8": 90.0},
    "bfloat16_gflops": {"8 x 8 x 8": 199.0},
    "row_gigabytes": {"embedding_bag": 17.0},
    "copy_gigabytes": 10.0,
}
ROWS = [
    Row(
        "sampled step",
        "vastmax",
        classes=classes,
        seconds=Seconds.of([0.01, 0.012, 0.011]),
        floor=Floor(0.01, "3 matrix products"),
        peak_bytes=3_000_000,
        resident_bytes=5_000_000,
        ratios={"over torch": 0.5},
        targets=(Target("over torch", 0.5, 1.0), Target("draws", 15.0, 20.0, at_most=False, unit="M/s")),
    )
    for classes in (10, 100)
] + [Row("sampled step", "TensorFlow", classes=10, note="not installed: tensorflow")]
FOUND = {"rows": [row.as_json() for row in ROWS], "seconds": 1.5}


@pytest.fixture
def processes(monkeypatch):
    """Stand in for the processes; the measures that were asked for."""
    asked = []

    def run(measure, settings):
        if measure == MACHINE:
            return dict(MACHINE_CONTENT, seconds=1.0)
        asked.append(measure)
        return FOUND

    monkeypatch.setattr(runner, "in_own_process", run)
    monkeypatch.setattr(runner, "console", rich.console.Console(width=200, force_terminal=False))
    return asked


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks", *map(str, arguments)])
    runner.main()


def test_a_process_that_fails_is_a_row():
    [row] = rows_in(in_own_process("no_such_measure", SETTINGS))
    assert row.note.startswith("the process ended with 1: ModuleNotFoundError")


def test_a_process_that_is_killed_is_a_row_without_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failed("step", -9, "").note == "the process ended with -9"
    assert failed("step", 1, f"File {tmp_path}/x.py\n\nOSError: {tmp_path}/y\n").note.endswith("OSError: ./y")


def test_resuming_measures_what_is_not_there_with_the_same_settings(tmp_path, processes, monkeypatch, capsys):
    monkeypatch.setattr(runner, "write_report", lambda results: None)
    options = ("--only", "entmax", "sampler", "--threads", 1, "--out", tmp_path)
    run_main(monkeypatch, *options)
    assert processes == ["entmax", "sampler"]
    assert "MISSED: draws 15 M/s, to be >= 20 M/s" in capsys.readouterr().out
    Results(tmp_path).path("sampler").unlink()
    run_main(monkeypatch, *options, "--resume")
    assert processes == ["entmax", "sampler", "sampler"]
    run_main(monkeypatch, *options, "--resume", "--rounds", 5)
    assert processes[3:] == ["entmax", "sampler"]
    run_main(monkeypatch, *options)
    assert processes[5:] == ["entmax", "sampler"]


def test_what_was_measured_elsewhere_is_measured_again_and_reported_apart(tmp_path):
    results = Results(tmp_path)
    results.keep("entmax", SETTINGS, MACHINE_CONTENT, FOUND)
    assert results.done("entmax", SETTINGS, MACHINE_CONTENT)
    assert results.done("entmax", SETTINGS, MACHINE_CONTENT | {"copy_gigabytes": 9.0})
    assert not results.done("entmax", SETTINGS, MACHINE_CONTENT | {"processor": "Another"})
    assert not results.done("sampler", SETTINGS, MACHINE_CONTENT)
    results.keep("sampler", SETTINGS, MACHINE_CONTENT | {"processor": "Another"}, FOUND)
    results.keep("huffman", SETTINGS, MACHINE_CONTENT | {"copy_gigabytes": 9.0}, FOUND)
    write_report(results)
    page = (tmp_path / "bench.md").read_text()
    assert (page.count("## A Processor, 1 of 2 cores"), page.count("## Another, 1 of 2 cores")) == (1, 1)


def test_results_name_a_run_without_its_folder(tmp_path):
    results = Results(tmp_path)
    settings = dataclasses.replace(SETTINGS, language_model="/home/someone/runs/mine")
    results.keep("filtered_loss", settings, MACHINE_CONTENT, FOUND)
    assert "someone" not in results.path("filtered_loss").read_text()
    assert results.done("filtered_loss", settings, MACHINE_CONTENT)
    assert not results.done("filtered_loss", SETTINGS, MACHINE_CONTENT)


def test_ctrl_c_keeps_what_is_done(tmp_path, processes, monkeypatch, capsys):
    pretend = runner.in_own_process

    def stopped_at_the_second(measure, settings):
        if measure == "sampler":
            raise KeyboardInterrupt
        return pretend(measure, settings)

    monkeypatch.setattr(runner, "in_own_process", stopped_at_the_second)
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, "--only", "entmax", "sampler", "--out", tmp_path)
    assert stop.value.code == 130
    assert "--resume" in capsys.readouterr().out
    assert (tmp_path / "bench.md").exists()
    assert [path.name for path in (tmp_path / "measures").iterdir()] == ["entmax.json"]


def test_a_damaged_file_is_named(tmp_path):
    results = Results(tmp_path)
    results.path("entmax").write_text("{")
    with pytest.raises(ValueError, match=r"entmax\.json.*delete it"):
        results.all()


def test_the_report_has_every_figure(tmp_path):
    results = Results(tmp_path)
    results.keep("classes", SETTINGS, MACHINE_CONTENT, FOUND)
    write_report(results)
    page = (tmp_path / "bench.md").read_text()
    met = "| sampled step | vastmax, V = 10 | 11 ms | 10 ms | over torch <= 1 | 0.5 | yes |"
    missed = "| sampled step | vastmax, V = 10 | 11 ms | 10 ms | draws >= 20 M/s | 15 M/s | **no** |"
    row = "| vastmax, V = 100 | 11 ms | 10 ms to 12 ms (3) | 10 ms | 1.1 | 3.0 MB | 5.0 MB | over torch: 0.5 |"
    absent = "| TensorFlow, V = 10 | not installed |  |  |  |  |  | not installed: tensorflow |"
    for line in (met, missed, row, absent):
        assert line in page.splitlines()
    assert "Floor: 3 matrix products." in page
    assert "trial" not in page
    assert "`python -m benchmarks --threads 1 --rounds 3 --seconds 4 --only classes`" in page
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["measures"]["classes"]["machine"] == MACHINE_CONTENT
    assert [Row.from_json(found) for found in content["measures"]["classes"]["rows"]] == ROWS
    for plot in ("step_time.png", "over_floor.png", "memory.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_a_trial_says_so_and_does_not_touch_the_results(tmp_path):
    settings, names, folder, resume = runner.parse(["--scale", "0.1"])
    assert folder.parts[0] == "runs"
    assert (names, resume) == (list(MEASURES), False)
    assert settings.scaled(1000) == 100
    assert settings.scaled(100) == 16
    assert settings.scaled(8) == 8
    results = Results(tmp_path)
    results.keep("classes", settings, MACHINE_CONTENT, FOUND)
    write_report(results)
    assert "A trial run: sizes times 0.1." in (tmp_path / "bench.md").read_text()
    assert runner.parse([])[2].parts[-2:] == ("benchmarks", "results")


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--only", "nothing"], ["--scale", "-1"]])
def test_an_option_out_of_range_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit):
        runner.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_a_full_run_has_more_rounds_unless_told_otherwise():
    assert runner.parse(["--full"])[0].rounds > runner.parse([])[0].rounds
    assert runner.parse(["--full", "--rounds", "2"])[0].rounds == 2
