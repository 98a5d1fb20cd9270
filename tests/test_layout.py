"""The shape of the package: small modules, imports that run downwards, short functions of few parameters."""

import ast
import functools
import io
import statistics
import tokenize
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "mach_ext"
COMPILED = {"_C", "_cpu", "_cuda"}  # operators: no Python, and they import nothing of ours

# Functions of more than 60 lines of code, three at most, as package.function.
LONG = {"sklearn.MACHClassifier.__init__"}  # scikit-learn wants an assignment for each parameter

# Functions of more than 8 parameters, as package.function: what users call, and how operators are declared.
PUBLIC = {
    "_ops._",  # shapes that operators of many arguments return
    "_ops.bucket_svm",
    "_ops.sparse_adam",
    "_ops.sparse_linear_adam",
    "_reference.bucket_svm",
    "_reference.sparse_adam",
    "attack.evaluate",
    "attack.evaluate_texts",
    "certify.certify",
    "cli.run",  # the commands, whose parameters are their options
    "explain.integrated_gradients",
    "explain.token_attributions",
    "functional.bucket_forward",
    "functional.linear_bucket_bce",
    "head.MACHHead.__init__",
    "nn.MACH.__init__",
    "nn.MACH.forward",
    "nn.MACH.loss",
    "runs.Run.attack",
    "runs.Run.explain",
    "runs.Run.iter_predict",
    "runs.train",
    "sklearn.MACHClassifier.__init__",
    "training.finetune",
    "training.fit",
    "training.fit_svm",
}

_SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def module_name(file, root=ROOT):
    """mach_ext/data/files.py -> mach_ext.data.files; the name of a package for its __init__.py."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def code_lines(source):
    """Numbers of the lines that hold code: no blank lines, no comments, no docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _SCOPES) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def functions(source):
    """Each function with its name as Python qualifies it, without the `<locals>`."""

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
                name = f"{prefix}.{child.name}" if prefix else child.name
            if isinstance(child, _FUNCTIONS):
                yield name, child
            yield from visit(child, name)

    return visit(ast.parse(source), "")


def count_parameters(function):
    """How many parameters it has, `*args` and `**kwargs` included, `self`, `cls` and `ctx` left out."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    count = len(positional) + len(arguments.kwonlyargs)
    count += (arguments.vararg is not None) + (arguments.kwarg is not None)
    return count - bool(positional and positional[0].arg in ("self", "cls", "ctx"))


def imports(module, source, modules, is_package=False):
    """The modules among `modules` that a module imports, inside functions and for types alone, too.

    `from package import name` counts for the submodule of this name. Only other names count for the package.
    """

    def visit(node):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                if alias.name not in COMPILED:
                    yield submodule if submodule in modules else base
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return {name for name in visit(ast.parse(source)) if name in modules} - {module}


def circles(edges):
    """The sets of two or more modules of which each imports each, if by way of others."""

    def reach(start):
        seen, ahead = set(), [start]
        while ahead:
            for name in edges[ahead.pop()] - seen:
                seen.add(name)
                ahead.append(name)
        return seen

    reached = {name: reach(name) for name in edges}
    mutual = {frozenset(b for b in reached[a] if a in reached[b]) for a in edges}
    return sorted(sorted(circle) for circle in mutual if circle)


SOURCES = {file: file.read_text(encoding="utf-8") for file in sorted(PACKAGE.rglob("*.py"))}


def measured(measure, limit):
    """Functions of which `measure` is above a limit, as package.function: the file within is left open."""
    above = {}
    for file, source in SOURCES.items():
        code = code_lines(source)
        package = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for name, function in functions(source):
            if (count := measure(function, code)) > limit:
                above[f"{package}.{name}"] = count
    return above


def test_half_of_the_files_have_at_most_150_lines_of_code():
    sizes = [len(code_lines(text)) for file, text in SOURCES.items() if file.name != "__init__.py"]
    assert statistics.median(sizes) <= 150


def test_one_file_at_most_has_more_than_600_lines():
    lengths = {module_name(file): len(source.splitlines()) for file, source in SOURCES.items()}
    assert len([name for name, length in lengths.items() if length > 600]) <= 1, lengths


def test_imports_make_no_circle():
    modules = {module_name(file): file for file in SOURCES}
    edges = {
        name: imports(name, SOURCES[file], modules.keys(), file.name == "__init__.py")
        for name, file in modules.items()
    }
    assert circles(edges) == []


def test_functions_have_at_most_60_lines_of_code():
    long = measured(lambda function, code: len(code & {*range(function.lineno, function.end_lineno + 1)}), 60)
    assert len(LONG) <= 3
    assert long.keys() == LONG, long


def test_functions_have_at_most_8_parameters():
    many = measured(lambda function, code: count_parameters(function), 8)
    assert many.keys() == PUBLIC, many


def test_names_of_test_files_are_unique():
    """pytest imports a test file by its name alone."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []


# What measures is measured by hand.


def test_code_lines_are_those_that_hold_code():
    head = '"""Head\n\nof two lines."""\n\n# why\n'
    body = 'def f(a):  # this\n    """Text."""\n    b = """x\n    y"""\n\n    return b\n'
    assert code_lines(head + body) == {6, 8, 9, 11}


def test_functions_go_by_their_qualified_names():
    source = "class A:\n    def f(self):\n        def g(): pass\nif True:\n    async def h(): pass\n"
    assert [name for name, _ in functions(source)] == ["A.f", "A.f.g", "h"]


@pytest.mark.parametrize(
    ("signature", "count"),
    [("", 0), ("self, a", 1), ("ctx, a, /, b=1, *c, d, **e", 5), ("a, self", 2), ("*self", 1)],
)
def test_parameters_are_counted_without_self(signature, count):
    (function,) = ast.parse(f"def f({signature}): pass").body
    assert count_parameters(function) == count


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import p.b", {"p.b"}),
        ("import p.b as c, json", {"p.b"}),
        ("from p.b import name", {"p.b"}),
        ("from p import b", {"p.b"}),
        ("from p import b, name", {"p", "p.b"}),
        ("from p import _C", set()),
        ("from . import b", {"p.b"}),
        ("from .b import name", {"p.b"}),
        ("from .q import c", {"p.q.c"}),
        ("def f():\n    try:\n        from p.q import name\n    except ImportError: pass", {"p.q"}),
        ("if TYPE_CHECKING:\n    import p.b\nelse:\n    import p.q", {"p.b", "p.q"}),
        ("if typing.TYPE_CHECKING:\n    from p import b", {"p.b"}),
        ("import p.a", set()),
    ],
)
def test_imports_are_read_from_the_code(source, imported):
    modules = {"p", "p.a", "p.b", "p.q", "p.q.c"}
    assert imports("p.a", source, modules) == imported


def test_relative_imports_count_from_the_package():
    modules = {"p", "p.q", "p.q.c", "p.b"}
    assert imports("p.q", "from . import c\nfrom ..b import name", modules, is_package=True) == {
        "p.q.c",
        "p.b",
    }
    assert imports("p.q.c", "from .. import b\nfrom . import name", modules) == {"p.b", "p.q"}


def test_circles_are_found_whatever_their_length():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(edges) == [["a", "b", "c"], ["d", "e"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_modules_are_named_by_their_files():
    assert module_name(Path("/r/p/q/c.py"), Path("/r")) == "p.q.c"
    assert module_name(Path("/r/p/q/__init__.py"), Path("/r")) == "p.q"
