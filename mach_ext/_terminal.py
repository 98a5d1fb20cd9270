"""The standard streams of the command line, and text that is safe on them.

The name of a label can hold anything, even escape sequences that steer a terminal. A stream can be closed, be
on a full device, or have an encoding that lacks most letters. The signals that end a program can come at any
moment.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import reprlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from mach_ext._launch import is_launched

# Controls, line and paragraph separators, overrides of the writing direction, halves of surrogate pairs.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_LENGTH = 60  # characters of a file's contents in a message

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict = 2, 4, 4, 4
_repr.maxother, _repr.maxlong = _LENGTH, _LENGTH

# Replacements for our own signs, if the encoding lacks them. Other letters are written as \xe9.
_PLAIN = {"…": "...", "±": "+-", **dict.fromkeys("█▌▐", "#"), **dict(zip("▁▂▃▄▅▆▇", "1234567", strict=True))}


def escaped(text: str, keep: str = "") -> str:
    r"""Write characters that could steer a terminal as Python writes them: `\x1b`, `\n`, `\u202e`.

    Args:
        text: Any text.
        keep: Characters to leave as they are.

    Example:
        >>> from mach_ext._terminal import escaped
        >>> escaped("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    return UNSAFE.sub(
        lambda match: match[0] if match[0] in keep else match[0].encode("unicode_escape").decode(), text
    )


def one_line(text: str) -> str:
    """Make a text fit on a line or in a cell: white space becomes single spaces, the rest is `escaped`."""
    return escaped(" ".join(text.split()))


def quote(value: Any) -> str:
    r"""Quote a value from a file for a message.

    The result is short and stands on one line. It contains nothing that controls a terminal.

    Example:
        >>> from mach_ext._terminal import quote
        >>> print(quote("red\n" + "a" * 1000)[:12], len(quote("a" * 1000)))
        'red\naaaaaa 63
    """
    is_text = isinstance(value, (str, bytes, bytearray))
    text = repr(value[:_LENGTH]) if is_text else _repr.repr(value)
    cut = len(text) > _LENGTH + 2 or (is_text and len(value) > _LENGTH)
    return f"{text[:_LENGTH]}..." if cut else text


def show(text: str = "") -> None:
    """Print lines of results, `escaped` except for tabs and line ends."""
    print(escaped(text, keep="\t\n"))


def say(text: str, is_error: bool = False) -> None:
    """Print a line of remarks to standard error, because standard output is for results.

    Args:
        text: The remark. It is `escaped`.
        is_error: Whether the line begins in red on a terminal.
    """
    name = "mach-ext:"
    if is_error and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        name = f"\x1b[1;31m{name}\x1b[0m"
    print(f"{name} {escaped(text)}", file=sys.stderr)


def _encode_plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error("mach_ext.plain", _encode_plainly)


class _Descriptor(io.FileIO):
    """The target of a standard stream. After its first failure it accepts everything and writes nothing.

    A training should not end because a remark cannot be written. Therefore only results raise an error, and
    only once.
    """

    def __init__(self, descriptor: int, failure: str | None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._failure, self._failed = failure, False

    def write(self, data: Any) -> int:
        if not self._failed:
            try:
                return super().write(data)
            except BlockingIOError:
                raise
            except OSError as error:
                self._failed = True
                if self._failure is not None:
                    problem = "it is closed" if error.errno == errno.EBADF else error.strerror
                    raise OSError(error.errno, problem, self._failure) from None
        return memoryview(data).nbytes


def _stream(former: TextIO | None, descriptor: int, failure: str | None) -> TextIO:
    encoding, at_once = "utf-8", failure is None
    if isinstance(former, io.TextIOWrapper):
        encoding, at_once = former.encoding, at_once or former.line_buffering or former.write_through
    binary = io.BufferedWriter(_Descriptor(descriptor, failure))
    return io.TextIOWrapper(binary, encoding, "mach_ext.plain", newline="\n", line_buffering=at_once)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` accept every text, and report every failure in words.

    If the caller has replaced a stream, as in a test or a notebook, it stays.
    """
    former = sys.stdout, sys.stderr
    # The next file that is opened would get the number of a closed descriptor, and then receive the output.
    taken = [os.open(os.devnull, os.O_RDONLY) if s is None else -1 for s in (sys.stdin, *former)]
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _stream(former[0], 1 if taken[1] < 0 else taken[1], "standard output")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="mach_ext.plain")
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _stream(former[1], 2 if taken[2] < 0 else taken[2], None)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = former


def is_command() -> bool:
    """Return whether this process is the command `mach-ext`, and not a program that imports the package."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name == "mach-ext" or (name == "-m" and "mach_ext" in sys.orig_argv)


# The imports take a second or two. Ctrl-C during the imports ends the command without a traceback.
if is_command() and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP do what Ctrl-C does. Signals that `nohup` ignores stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # A shell ignores SIGINT for jobs in the background.
            raise KeyboardInterrupt
        handler(number, frame)

    handlers = {
        signal.SIGINT: signal.default_int_handler, signal.SIGTERM: interrupt, signal.SIGHUP: interrupt
    }  # fmt: skip
    if is_launched():
        # torchrun sends SIGTERM where another process has died. A handler of Python's could not run while an
        # exchange with that process waits, so the signal ends this process by itself.
        del handlers[signal.SIGTERM]
    ours = [each for each in handlers if signal.getsignal(each) == signal.SIG_DFL]
    for each in ours:
        signal.signal(each, handlers[each])
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
