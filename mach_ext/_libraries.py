"""The compiled libraries: loads the operators, and records why there are none for CUDA."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import torch

from mach_ext._fork import end_pools_before_forks

_FOLDER = Path(__file__).parent
_REBUILD = "Run: pip install --no-build-isolation . (in a checkout: make build)"


def _load_cpu() -> None:
    """Load the libraries that mach_ext needs, or raise an error that says how to build them."""
    library = _FOLDER / "_cpu.so"
    if not library.exists():
        advice = _REBUILD
        if installed := _compiled_elsewhere():
            advice = (
                f"A compiled mach_ext is installed in {installed}, but Python found this folder first. "
                f"Start Python in another folder than {_FOLDER.parent}"
            )
        raise ImportError(f"mach_ext: the compiled operators (_cpu.so) are not in {_FOLDER}. {advice}")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"mach_ext: the compiled operators do not load with torch {torch.__version__}: "
            f"{error.__cause__ or error}. {_REBUILD}"
        ) from None
    try:
        importlib.import_module("mach_ext._C")
    except ImportError as error:
        python = platform.python_version()
        raise ImportError(
            f"mach_ext: the compiled parser (_C) does not load with Python {python}: {error}. {_REBUILD}"
        ) from None


def _compiled_elsewhere() -> Path | None:
    """Return the folder of another mach_ext on Python's path that is compiled, if there is one."""
    folders = (Path(entry or ".") / _FOLDER.name for entry in sys.path)
    return next((folder for folder in folders if (folder / "_cpu.so").exists()), None)


def _load_cuda() -> str:
    """Load the CUDA operators. Return an empty string, or the reason why there are none."""
    library = _FOLDER / "_cuda.so"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not library.exists():
        import mach_ext._C as _C

        return f"mach_ext was built without them: {_C.build_info()['cuda']}"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library} does not load: {error.__cause__ or error}"
    return ""


def refuse_cuda(names: Iterable[str]) -> None:
    """Make the operators among these names raise an error for CUDA tensors, with the reason."""
    for name in names:
        if isinstance(getattr(torch.ops.mach_ext, name, None), torch._ops.OpOverloadPacket):
            _refusals.impl(name, _refuse, "CUDA")


def _refuse(*args: object) -> NoReturn:
    raise RuntimeError(f"mach_ext: there are no CUDA operators: {CUDA_FAULT}")


_load_cpu()
end_pools_before_forks()
CUDA_FAULT = _load_cuda()
_refusals = torch.library.Library("mach_ext", "IMPL")  # Its kernels live as long as it does.
