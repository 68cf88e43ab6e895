"""Ctrl-C in the commands: one line and exit status 130, at any moment from the first import on.

Python's own answer is an exception wherever the program happens to be. Imports turn it into another one, callbacks
and finalisers swallow it, a second one breaks what cleans up after the first, and what gets through is a traceback.
Every file of results is written whole or not at all, so a command may end anywhere: the handler ends the process
where it is. To be there early, this file imports next to nothing.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STATUS = 130
"""What a shell expects of a program that was interrupted."""

CLEAR = "\r\x1b[K\x1b[?25h"
"""Takes a progress bar off a terminal's line, and gives the cursor back that it hid."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """Work was interrupted; the message says what became of it."""


def nothing_kept() -> str:
    """What is said while there is nothing to go on with."""
    return "interrupted"


_message: Callable[[], str] = nothing_kept


def end_on_ctrl_c() -> None:
    """Let Ctrl-C end the process by one line, unless it is ignored, as in the background of a script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def ignore_ctrl_c() -> None:
    """Let nothing come after the last word of a process that ends by itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class saying:  # noqa: N801 - used as a statement
    """Have `message` asked for what is said of an interruption."""

    def __init__(self, message: Callable[[], str]) -> None:
        self.message = message

    def __enter__(self) -> None:
        global _message
        self.before, _message = _message, self.message

    def __exit__(self, *error: object) -> None:
        global _message
        _message = self.before


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = f"vastmax: {_message()}\n"
    # Past Python's buffers, which may be in the middle of a write.
    os.write(2, (CLEAR + line if os.isatty(2) else line).encode(errors="replace"))
    os._exit(STATUS)
