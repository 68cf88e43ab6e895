"""Ctrl-C: exit status 130 and one line, whatever a command is doing."""

import shlex
import signal
import subprocess
import sys

import pytest
from interruptions import COMMANDS, Answer, begin, interrupt, interrupted_after, judged, wait_until

from vastmax.commands.app import resumable
from vastmax.interruption import Interrupted

WHILE = """
import os, signal, sys
class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            {what}
def again():
    os.kill(os.getpid(), signal.SIGINT)
class Finaliser:  # what is raised in it is printed and forgotten
    def __del__(self):
        again()
def nested(depth):
    again() if depth == 0 else nested(depth - 1)
sys.meta_path.insert(0, AtImport())
sys.argv[1:] = {arguments}
from vastmax.cli import main
main()
"""


def answer_of(code):
    """What a process does that runs some code and interrupts itself."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return Answer(done.returncode, done.stderr.splitlines(), 0.0)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("typer", "again()"),
        ("torch", "again()"),
        ("torch.nn.functional", "again()"),
        ("vastmax.commands.tasks", "again(); again()"),
        ("vastmax.study.classify", "Finaliser()"),
        ("torch", "nested(900)"),
    ],
)
def test_during_imports(name, what, tmp_path):
    code = WHILE.format(name=name, what=what, arguments=["compare", "classify", f"--out={tmp_path}"])
    assert answer_of(code) == Answer(130, ["vastmax: interrupted"], 0.0)


def test_while_the_process_ends():
    code = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT); "
    answer = answer_of(f"{code}import sys; sys.argv[1:] = ['--help']; from vastmax.cli import main; main()")
    assert (answer.status, answer.said) == (0, [])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_at_some_moment(command, seconds, tmp_path):
    answer = interrupted_after(command, seconds, tmp_path / "out")
    assert judged(answer).startswith("130 and one line"), answer


def test_where_it_is_ignored_it_stays_ignored():
    """As in the background of a script, which is not what Ctrl-C is meant for."""
    code = WHILE.format(name="typer", what="again()", arguments=["--help"])
    answer = answer_of(f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}")
    assert (answer.status, answer.said) == (0, [])


def going_on(line):
    """The options that an answer says to add to the same command."""
    return shlex.split(line.split("the same command with ")[1].removesuffix(" goes on"))


LONG = {
    "train lm": ["--data={text}", "--width=4", "--epochs=1e5"],
    "compare lm": ["--data={text}", "--width=4", "--epochs=1e5", "--heads=exact"],
    "compare classify": ["--heads=exact", "--epochs=100000", "--hidden=4", "--seeds=1"],
}


@pytest.mark.parametrize("command", LONG)
@pytest.mark.parametrize(("times", "out"), [(1, []), (3, ["--out=my out"])])
def test_the_command_that_it_names_goes_on(command, times, out, text, tmp_path):
    """Whether the user named a folder or not; a second Ctrl-C ends training without the end of its step."""
    options = [option.format(text=text) for option in LONG[command]] + out
    with begin(command, *options, cwd=tmp_path) as process:
        wait_until(lambda: [*tmp_path.rglob("config.json"), *tmp_path.rglob("exact")], process)
        answer = interrupt(process, times)
    assert judged(answer) == "130 and one line, with --resume", answer
    folder = "my out" if out else str(next((tmp_path / "runs").iterdir()).relative_to(tmp_path))
    assert going_on(answer.said[0]) == ["--resume", "--out", folder]
    with begin(command, *options, *going_on(answer.said[0]), cwd=tmp_path) as process:
        wait_until(process.stdout.readline, process)  # it says what it trains on: nothing was refused
        again = interrupt(process)
    assert judged(again) == "130 and one line, with --resume", again
    assert going_on(again.said[0]) == going_on(answer.said[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted("stopped at step 3")], ids=repr)
def test_a_folder_with_nothing_in_it_is_not_named(error, tmp_path):
    for begun, message in ((False, "interrupted"), (True, f"--resume --out {tmp_path} goes on")):
        with (
            pytest.raises(Interrupted, match=f"{message}$"),
            resumable(tmp_path, lambda folder, begun=begun: begun),
        ):
            raise error
