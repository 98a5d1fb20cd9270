"""The command `mach-ext`. `main` runs it; the work is done by `mach_ext.runs`."""

from mach_ext.cli.main import TRACEBACK, build_parser, main

__all__ = ["TRACEBACK", "build_parser", "main"]
