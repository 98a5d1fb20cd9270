"""The command `mach-ext`. `main` runs it. The work is done by `mach_ext.runs`.

Nothing here imports PyTorch before a command runs, so that --help and completion answer at once.
"""

from mach_ext.cli.main import TRACEBACK, app, main

__all__ = ["TRACEBACK", "app", "main"]
