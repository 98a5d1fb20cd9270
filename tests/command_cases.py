"""What tests of the command share: commands as processes of their own, and names that are hard to show."""

import json
import os
import subprocess
import sys

import typer
from helpers import TESTS

from mach_ext import cli

SERVER = TESTS / "command_server.py"
# The labels of "word0", "word1", ...: letters that encodings lack, and what must not reach a terminal.
NAMES = ["tøpic", "日本", "red\x1b[31m", "turn\u202eed", "line\u2028end", "csi\x9b1m", "plain"]
SHOWN = ["tøpic", "日本", r"red\x1b[31m", r"turn\u202eed", "line end", r"csi\x9b1m", "plain"]
UNSAFE = ("\x1b", "\u202e", "\u2028", "\x9b")


class Commands:
    """Commands as processes of their own, with streams that are files, pipes with a name, or closed."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def _ask(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def here(self, folder, *argv):
        assert self._ask(here=True, cwd=str(folder), argv=[str(a) for a in argv]) == 0

    def start(self, folder, *argv, stdin=os.devnull, stdout="out", stderr="err", env=None, user=None):
        argv, streams = [str(a) for a in argv], [stdin, stdout, stderr]
        return self._ask(cwd=str(folder), argv=argv, streams=streams, env=env or {}, user=user)

    def wait(self):
        return int(self.server.stdout.readline())

    def __call__(self, folder, *argv, text=None, **options):
        """Exit code, what stands in `out`, lines of remarks."""
        if text is not None:
            (folder / "in").write_bytes(text if isinstance(text, bytes) else text.encode())
            options["stdin"] = "in"
        for name in ("out", "err"):
            (folder / name).unlink(missing_ok=True)
        self.start(folder, *argv, **options)
        code = self.wait()
        out, err = (
            (folder / name).read_bytes() if (folder / name).exists() else b"" for name in ("out", "err")
        )
        return code, out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape").splitlines()

    def close(self):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def write_texts(folder):
    folder.mkdir()
    for split, count in (("train", 70), ("dev", 14), ("test", 14)):
        lines = [{"text": f"word{i % 7}", "labels": [NAMES[i % 7]]} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def commands():
    """Each command and group of the program with the name that calls it, as Typer makes them."""

    def walk(name, command):
        yield name, command
        for each, sub in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {each}", sub)

    return list(walk("mach-ext", typer.main.get_command(cli.app)))


def help_texts():
    """(place, text) of the help of every command and of every option, with those that are hidden."""
    for name, command in commands():
        yield name, " ".join(command.help.split())
        for option in command.params:
            if option.name not in ("install_completion", "show_completion"):
                yield f"{name} {option.opts[0]}", option.help
