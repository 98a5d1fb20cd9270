r"""The command `mach-ext`. `main` runs it, and `mach_ext.runs` does the work.

Nothing here imports PyTorch before a command runs, so that --help and completion answer at once.

Example:
    >>> from pathlib import Path
    >>> from mach_ext.cli import TRACEBACK, app, main
    >>> [command.name for command in app.registered_commands]  # besides the group `data`
    ['train', 'evaluate', 'predict', 'explain', 'attack', 'compress', 'info', 'bench']
    >>> Path("pets").mkdir()
    >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
    >>> _ = Path("pets/train.jsonl").write_text(20 * lines)
    >>> main(["data", "convert", "--dataset", "pets", "--output", "pets-npz"])
    0
    >>> TRACEBACK  # set this environment variable to see the traceback of an error
    'MACH_EXT_TRACEBACK'
"""

from mach_ext.cli.main import TRACEBACK, app, main

__all__ = ["TRACEBACK", "app", "main"]
