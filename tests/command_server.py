"""Runs commands of mach-ext in processes of their own, forked from one that has the imports behind it.

A request is a line of JSON on standard input. "here": the command runs in this process. Otherwise "streams"
are the paths that descriptors 0, 1 and 2 are opened from, null for one that is closed; the answers are the
number of the process and, once it has ended, its exit code.
"""

import contextlib
import io
import json
import os
import sys

from mach_ext import cli

FLAGS = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def open_streams(paths):
    """As the interpreter finds them when it starts."""
    for number, (path, flags) in enumerate(zip(paths, FLAGS, strict=True)):
        os.close(number)
        if path is not None:
            opened = os.open(path, flags, 0o666)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    streams = [
        None
        if path is None
        else open(number, "w" if number else "r", encoding=encoding, errors=errors or None)  # noqa: SIM115
        for number, path in enumerate(paths)
    ]
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams


def command(request):
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    open_streams(request["streams"])
    if request.get("user") is not None:
        os.setuid(request["user"])
    os._exit(cli.main(request["argv"]))


def main():
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("here"):
            os.chdir(request["cwd"])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                answer = cli.main(request["argv"])
            print(answer, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            command(request)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
