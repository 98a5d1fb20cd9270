"""The reference pages of the public modules, from the package itself."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from types import ModuleType

import mach_ext

EXAMPLE = re.compile(
    r"^Example:\n((?: {4}.*\n?|\n)+)", re.MULTILINE
)  # of a docstring, with the code below it

# The command line has a page of its own, from its commands.
OTHERWISE = {"cli"}


def modules() -> list[str]:
    """The public modules: those that stand directly in the package and have no underscore."""
    names = sorted(info.name for info in pkgutil.iter_modules(mach_ext.__path__))
    return [f"mach_ext.{name}" for name in names if not name.startswith("_") and name not in OTHERWISE]


def public_names(module: ModuleType) -> list[str]:
    """Its `__all__`, or the classes and functions that the module defines if it has none."""
    if hasattr(module, "__all__"):
        names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    else:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return sorted(names, key=lambda name: (order(getattr(module, name)), name.lower()))


def order(value: object) -> int:
    """Classes first, then functions, then constants."""
    return 0 if inspect.isclass(value) else 1 if callable(value) else 2


def home(name: str) -> str:
    """The module whose page has the entry of a name of `mach_ext`."""
    value = getattr(mach_ext, name)
    for module in modules():
        loaded = importlib.import_module(module)
        if name in public_names(loaded) and getattr(loaded, name) is value:
            return module
    raise LookupError(f"no public module has mach_ext.{name}")


def sentence(value: object) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split()).replace("|", "\\|")


def path(module: str) -> str:
    """The page of a module, within docs/."""
    return f"reference/{module.removeprefix('mach_ext.')}.md"


def overview() -> str:
    """The names of `mach_ext` itself and the modules, with links to their entries."""
    rows = ["| name | what it is |", "| --- | --- |"]
    for name in public_names(mach_ext):
        module = home(name)
        link = f"{path(module).removeprefix('reference/')}#{module}.{name}"
        text = sentence(getattr(mach_ext, name))
        rows.append(f'| <a id="mach_ext.{name}"></a>[`mach_ext.{name}`]({link}) | {text} |')
    rows += ["", "| module | what is in it |", "| --- | --- |"]
    for module in modules():
        text = sentence(importlib.import_module(module))
        rows.append(f"| [`{module}`]({path(module).removeprefix('reference/')}) | {text} |")
    return "\n".join(rows) + "\n"


def entries(module: str) -> str:
    """The entries of a module, by mkdocstrings for classes and functions. Constants show their values."""
    loaded = importlib.import_module(module)
    names = public_names(loaded)
    constants = [name for name in names if order(getattr(loaded, name)) == 2]
    parts = [f"::: {module}.{name}" for name in names if name not in constants]
    for name in constants:
        value = textwrap.shorten(repr(getattr(loaded, name)), 300)
        parts.append(f"## {name} {{#{module}.{name}}}\n\n```python\n{name} = {value}\n```")
    return "\n\n".join(parts) + "\n"


def head(module: str) -> str:
    """The title of a module's page and what its docstring says."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    return f"# {module}\n\n{EXAMPLE.sub(_fenced, text)}\n"


def _fenced(match: re.Match[str]) -> str:
    return f"```pycon\n{textwrap.dedent(match[1]).strip()}\n```\n"
