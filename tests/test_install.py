"""The first minutes: what setup.py decides and says, what `import mach_ext` needs, what `load` takes.

Fixtures are model folders of every format so far, each with what it answered. tests/fixtures/make_model.py
makes one of the format in force.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import FIXTURES, ROOT
from setuptools import Distribution, Extension

import mach_ext
from mach_ext import _C, _ops, cli, compression, data, nn

MODELS = sorted(FIXTURES.glob("model_v*"))
DENSE = sorted(FIXTURES.glob("dense_v*"))
SHARDS = sorted(FIXTURES.glob("shards_v*"))


def script(path, text):
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python(code, *flags, **options):
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, **options)


# ------------------------------------------------------------------------------------------------ setup.py


@pytest.fixture
def setup_py(monkeypatch, tmp_path):
    """setup.py as a module, on a machine of its own: nothing on PATH, no toolkit, no variable of a build."""
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "TOOLKITS", (str(tmp_path / "usual"),))
    monkeypatch.setattr(module, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    for name in ("MACH_CUDA", "MACH_SHIM", "MACH_WERROR", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return module


def a_torch(cuda, version="2.13.0"):
    return SimpleNamespace(
        __version__=version, version=SimpleNamespace(cuda=cuda), __file__="/site/torch/__init__.py"
    )


def an_nvcc(path, release="13.0"):
    return str(script(path, f"echo 'Cuda compilation tools, release {release}, V{release}.88'"))


def message(failure):
    """The one line that a build ends with."""
    text = failure.value.code
    assert text.startswith("mach_ext: ")
    assert "\n" not in text
    return text


def test_torch_with_cuda_but_no_nvcc_builds_for_cpu_and_says_so_in_one_line(setup_py):
    cuda = setup_py.decide_cuda(a_torch("13.0"))
    assert cuda.nvcc is None
    text = setup_py.remark(a_torch("13.0"), cuda)
    assert text == (
        "builds for CPU only: torch has CUDA 13.0, but nvcc is not on PATH, in CUDA_HOME/bin or in "
        "/usr/local/cuda/bin. For the CUDA operators, install the CUDA toolkit and run pip install again"
    )


def test_torch_without_cuda_builds_for_cpu_and_has_nothing_to_say(setup_py, tmp_path):
    an_nvcc(tmp_path / "bin" / "nvcc")
    cuda = setup_py.decide_cuda(a_torch(None, "2.13.0+cpu"))
    assert cuda == (None, "torch 2.13.0+cpu has no CUDA", False)
    assert setup_py.remark(a_torch(None), cuda) == ""


@pytest.mark.parametrize(
    ("where", "variables"),
    [
        ("bin/nvcc", {}),
        ("home/bin/nvcc", {"CUDA_HOME": "home"}),
        ("path/bin/nvcc", {"CUDA_PATH": "path"}),
        ("usual/bin/nvcc", {}),
        ("usual-13.0/bin/nvcc", {}),
        ("site/nvidia/cu13/bin/nvcc", {}),
        ("site/nvidia/cuda_nvcc/bin/nvcc", {}),
        ("mine/nvcc-13", {"CUDACXX": "mine/nvcc-13"}),
        ("bin/nvcc", {"CUDA_HOME": "gone"}),  # an old variable does no harm
    ],
)
def test_nvcc_is_found(setup_py, tmp_path, monkeypatch, where, variables):
    nvcc = an_nvcc(tmp_path / where)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert setup_py.decide_cuda(a_torch("13.0")) == (nvcc, "CUDA 13.0", False)
    monkeypatch.setenv("MACH_CUDA", "1")
    assert setup_py.decide_cuda(a_torch(None)) == (nvcc, "CUDA 13.0", True)
    monkeypatch.setenv("MACH_CUDA", "0")
    assert setup_py.decide_cuda(a_torch("13.0")) == (None, "MACH_CUDA=0 was set", False)


def test_the_newest_toolkit_comes_first(setup_py, tmp_path):
    nvccs = [an_nvcc(tmp_path / f"usual-{version}" / "bin" / "nvcc") for version in ("12.9", "13.10", "13.2")]
    assert setup_py.find_nvccs() == [nvccs[1], nvccs[2], nvccs[0]]


def test_source_lines_are_kept_where_they_are_asked_for(setup_py, monkeypatch):
    package = SimpleNamespace(get_version=lambda: "1")
    build = SimpleNamespace(torch=a_torch("13.0"), cuda=setup_py.Cuda(None, ""), distribution=package)
    for value, option in (("", "OFF"), ("1", "ON")):
        monkeypatch.setenv("MACH_LINEINFO", value)
        assert f"-DMACH_LINEINFO={option}" in setup_py.CMakeBuild.defines(build)


def test_the_named_toolkit_comes_before_path(setup_py, tmp_path, monkeypatch):
    an_nvcc(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup_py.decide_cuda(a_torch("13.0")).nvcc == str(tmp_path / "bin" / "nvcc")
    named = an_nvcc(tmp_path / "home" / "bin" / "nvcc")
    assert setup_py.decide_cuda(a_torch("13.0")).nvcc == named


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("exit 1", "does not run"),
        ("echo 'clang version 14'", "does not run"),
        ("echo 'Cuda compilation tools, release 11.8, V11.8.89'", "is of CUDA 11.8, and CUDA 12 or newer"),
    ],
)
def test_an_nvcc_that_will_not_do(setup_py, tmp_path, monkeypatch, text, fault):
    nvcc = script(tmp_path / "bin" / "nvcc", text)
    cuda = setup_py.decide_cuda(a_torch("13.0"))
    assert cuda.nvcc is None
    assert f"torch has CUDA 13.0, but {nvcc} {fault}" in cuda.note
    monkeypatch.setenv("MACH_CUDA", "1")
    with pytest.raises(SystemExit) as failure:
        setup_py.decide_cuda(a_torch("13.0"))
    assert f"MACH_CUDA=1 needs the CUDA toolkit, but {nvcc} {fault}" in message(failure)
    other = an_nvcc(tmp_path / "usual" / "bin" / "nvcc")  # one that will is found behind it
    assert setup_py.decide_cuda(a_torch("13.0")).nvcc == other


def test_mach_cuda_1_without_nvcc_says_so(setup_py, monkeypatch):
    monkeypatch.setenv("MACH_CUDA", "1")
    with pytest.raises(SystemExit) as failure:
        setup_py.decide_cuda(a_torch(None))
    assert "MACH_CUDA=1 needs the CUDA toolkit, but nvcc is not on PATH" in message(failure)


def test_nvcc_of_another_release_than_torch_is_used_and_mentioned(setup_py, tmp_path):
    nvcc = an_nvcc(tmp_path / "bin" / "nvcc", "12.4")
    cuda = setup_py.decide_cuda(a_torch("13.0"))
    assert cuda == (nvcc, "CUDA 12.4", False)
    assert setup_py.remark(a_torch("13.0"), cuda) == (
        f"{nvcc} is of CUDA 12.4, torch of CUDA 13.0: the driver must be new enough for both"
    )
    assert setup_py.remark(a_torch("12.8"), cuda) == ""


@pytest.fixture
def build(setup_py, tmp_path, monkeypatch):
    """build(cuda): runs build_ext with a CMake that makes files of the right names; the calls it got.

    It fails to configure where `calls` is told to be asked for CUDA: as with an nvcc that doesn't suit g++.
    """
    calls = tmp_path / "calls"
    script(
        tmp_path / "cmake",
        f'echo "$*" >> {calls}\n'
        'case "$*" in\n'
        "*-DMACH_CUDA=ON*) test ! -e $0.broken || exit 1 ;;\n"
        '--build*) for f in _cpu _C _cuda; do : > "$2/$f.so"; done; exit ;;\n'
        "esac\n"
        'mkdir -p "$4"; : > "$4/CMakeCache.txt"',
    )
    monkeypatch.setattr(setup_py, "program", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def run(cuda):
        setup_py.CMakeBuild.torch, setup_py.CMakeBuild.cuda = a_torch("13.0"), cuda
        targets = ["_cpu", "_C"] + (["_cuda"] if cuda.nvcc else [])
        modules = [Extension(f"mach_ext.{target}", sources=[]) for target in targets]
        command = setup_py.CMakeBuild(Distribution({"name": "x", "version": "1", "ext_modules": modules}))
        command.ensure_finalized()
        command.build_lib = str(tmp_path / "lib")
        calls.unlink(missing_ok=True)
        command.run()
        return command, calls.read_text().splitlines()

    return run


def built(folder):
    return {file.name.partition(".")[0] for file in (folder / "lib" / "mach_ext").iterdir()}


def test_nvcc_is_passed_to_cmake(setup_py, build, tmp_path):
    _, (configure, compile_) = build(setup_py.Cuda("/there/nvcc", "CUDA 13.0"))
    assert "-DMACH_CUDA=ON" in configure
    assert "-DCMAKE_CUDA_COMPILER=/there/nvcc" in configure
    assert "-DMACH_CUDA_NOTE=CUDA 13.0" in configure
    assert compile_.endswith("--target _cpu _C _cuda")
    assert built(tmp_path) == {"_cpu", "_C", "_cuda"}


def test_an_nvcc_that_cmake_can_not_use_is_left_out(setup_py, build, tmp_path, capfd):
    build(setup_py.Cuda("/there/nvcc", "CUDA 13.0"))
    (tmp_path / "cmake.broken").touch()
    command, calls = build(setup_py.Cuda("/there/nvcc", "CUDA 13.0"))
    assert ["-DMACH_CUDA=ON" in call for call in calls] == [True, False, False]
    assert "-DMACH_CUDA_NOTE=torch has CUDA 13.0, but CMake cannot use /there/nvcc. For" in calls[1]
    assert calls[2].endswith("--target _cpu _C")
    assert [extension.name for extension in command.extensions] == ["mach_ext._cpu", "mach_ext._C"]
    assert built(tmp_path) == {"_cpu", "_C"}  # what a former build left would be loaded, or packed
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mach_ext: ")]
    assert len(said) == 1
    assert "mach_ext: builds for CPU only: torch has CUDA 13.0, but CMake cannot use /there/nvcc" in said[0]


def test_an_nvcc_that_cmake_can_not_use_but_is_asked_for_fails(setup_py, build, tmp_path):
    (tmp_path / "cmake.broken").touch()
    with pytest.raises(SystemExit) as failure:
        build(setup_py.Cuda("/there/nvcc", "CUDA 13.0", required=True))
    assert message(failure) == (
        "mach_ext: MACH_CUDA=1, but CMake cannot use /there/nvcc: its messages above say why"
    )


CACHE = """# This is the CMakeCache file.
CMAKE_CXX_COMPILER:FILEPATH={tmp}/bin/c++
CMAKE_CUDA_COMPILER:FILEPATH={tmp}/bin/nvcc
CMAKE_GENERATOR:INTERNAL=Ninja
CMAKE_HOME_DIRECTORY:INTERNAL={tmp}/checkout
_Python_INCLUDE_DIR:INTERNAL={tmp}/bin
"""


@pytest.mark.parametrize(
    ("was", "now", "stale"),
    [
        ("", "", False),
        ("{tmp}/checkout", "/before/it/was/moved", True),
        ("INTERNAL=Ninja", "INTERNAL=Unix Makefiles", True),
        ("{tmp}/bin/c++", "/gone/c++", True),
        ("{tmp}/bin/c++", "CMAKE_CXX_COMPILER-NOTFOUND", True),
        ("{tmp}/bin/nvcc", "/other/nvcc", True),
        ("INTERNAL={tmp}/bin", "INTERNAL=/gone/include", True),
        ("CMAKE_CUDA_COMPILER:FILEPATH={tmp}/bin/nvcc\n", "", False),  # was built for CPU
    ],
)
def test_a_build_folder_made_elsewhere_is_made_anew(setup_py, build, tmp_path, capfd, was, now, stale):
    script(tmp_path / "bin" / "c++", "")
    nvcc = an_nvcc(tmp_path / "bin" / "nvcc")
    build(setup_py.Cuda(nvcc, "CUDA 13.0"))
    (cache,) = (tmp_path / "checkout" / "build").glob("*/CMakeCache.txt")
    cache.write_text(CACHE.replace(was, now).format(tmp=tmp_path))
    (cache.parent / "object").touch()
    build(setup_py.Cuda(nvcc, "CUDA 13.0"))
    assert (cache.parent / "object").exists() is not stale
    assert ("it is made anew" in capfd.readouterr().err) is stale


def test_another_compiler_makes_the_build_folder_anew(setup_py, tmp_path, monkeypatch):
    script(tmp_path / "bin" / "c++", "")
    script(tmp_path / "bin" / "g++-12", "")
    (tmp_path / "CMakeCache.txt").write_text(CACHE.format(tmp=tmp_path))
    assert not setup_py.is_stale(tmp_path, None)
    monkeypatch.setenv("CXX", "c++ -m64")
    assert not setup_py.is_stale(tmp_path, None)
    monkeypatch.setenv("CXX", "g++-12")
    assert setup_py.is_stale(tmp_path, None)


def test_in_place_libraries_move_with_the_checkout(setup_py, build, tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "mach_ext"
    monkeypatch.setattr(setup_py.CMakeBuild, "editable_mode", True)
    monkeypatch.setattr(setup_py.CMakeBuild, "get_ext_fullpath", lambda _, name: str(package / name))
    build(setup_py.Cuda(None, ""))
    (tmp_path / "checkout").rename(tmp_path / "moved")
    libraries = (tmp_path / "moved" / "mach_ext").iterdir()
    assert {library.name: library.exists() for library in libraries} == {
        "mach_ext._cpu": True,
        "mach_ext._C": True,
    }


def test_a_folder_that_can_not_be_written_to_is_named(setup_py, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SystemExit) as failure:
        setup_py.check_writable(tmp_path / "build" / "here")
    assert message(failure).startswith(f"mach_ext: {tmp_path} cannot be written to.")


@pytest.mark.parametrize(
    ("compiler", "variables", "said"),
    [
        (None, {}, "no C++ compiler is found. Install one, as with: apt install g++"),
        (None, {"CXX": "g++-99 -m64"}, "$CXX names g++-99, which is not found"),
        ("echo 'x.cpp:1: error: no from_chars' >&2; exit 1", {}, "does not compile the C++17 that is needed"),
        ("echo broken >&2; exit 1", {}, "(GCC 11 or newer does): broken"),
        ("exit 3", {}, "(GCC 11 or newer does): exit code 3"),
    ],
)
def test_no_compiler_that_will_do(setup_py, tmp_path, monkeypatch, compiler, variables, said):
    if compiler:
        script(tmp_path / "bin" / "c++", compiler)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as failure:
        setup_py.check_compiler()
    assert said in message(failure)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_compiler_here_will_do(setup_py, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    setup_py.check_compiler()


def test_python_h_is_missing(setup_py, tmp_path, monkeypatch):
    script(tmp_path / "bin" / "c++", "")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/gone")
    with pytest.raises(SystemExit) as failure:
        setup_py.check_compiler()
    version = "{}.{}".format(*sys.version_info)
    assert message(failure).endswith(f"/gone has no Python.h. Install Python's headers, as with: "
                                     f"apt install python{version}-dev")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 'cmake version 3.22.1'", "cmake 3.22.1 is too old, 3.24 or newer is needed. Run: pip install"),
        ("exit 1", "cmake does not run. Run: pip install --force-reinstall cmake"),
    ],
)
def test_a_cmake_that_will_not_do(setup_py, tmp_path, monkeypatch, text, said):
    cmake = script(tmp_path / "cmake", text)
    monkeypatch.setattr(setup_py, "program", lambda name: str(cmake))
    with pytest.raises(SystemExit) as failure:
        setup_py.check_cmake()
    assert said in message(failure)


def test_cmake_and_ninja_of_the_environment_come_before_older_ones_on_path(setup_py, tmp_path):
    for name in ("cmake", "ninja"):
        script(tmp_path / "bin" / name, "exit 1")
        assert setup_py.program(name) != str(tmp_path / "bin" / name)


@pytest.mark.parametrize("name", ["torch", "cmake", "ninja", "pybind11"])
def test_a_package_that_is_missing_is_named(setup_py, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(SystemExit) as failure:
        setup_py.check_packages()
    assert failure.value.code.startswith(f"mach_ext: {name} not found by the Python that builds.")
    assert failure.value.code.endswith("&& pip install --no-build-isolation .")


def test_packages_that_will_not_do(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py.setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit) as failure:
        setup_py.check_packages()
    assert "setuptools 65.5.0 is too old, 77 or newer is needed" in message(failure)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit) as failure:
        setup_py.check_packages()
    assert message(failure) == "mach_ext: builds on Linux, not on darwin"


@pytest.mark.parametrize(
    ("torch_init", "said"),
    [
        ("__version__ = '2.10.1+cu128'", "torch 2.10.1+cu128 is too old, 2.11 or newer is needed"),
        ("raise OSError('libcudart.so.13: cannot open\\nmore')", "libcudart.so.13: cannot open\n"),
        ("raise ImportError", "torch cannot be imported by the Python that builds: ImportError"),
    ],
)
def test_a_torch_that_will_not_do_ends_the_build_in_one_line(tmp_path, torch_init, said):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(torch_init)
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode != 0
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_oldest_versions_are_the_same_everywhere(setup_py):
    project = (ROOT / "pyproject.toml").read_text()
    for name, oldest in setup_py.OLDEST.items():
        if name != "CUDA":
            version = ".".join(map(str, oldest))
            assert set(re.findall(rf'"{name}>=([\d.]+)"', project)) == {version}
    major, minor = setup_py.OLDEST["torch"]
    assert f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}{0:012x}" in (ROOT / "CMakeLists.txt").read_text()
    assert f"OLDEST_TORCH := {major}.{minor}.0\n" in (ROOT / "Makefile").read_text()


# ------------------------------------------------------------------------------------------------- import


def test_import_loads_little():
    code = (
        "import sys, torch; before = {*sys.modules}; import mach_ext;"
        "print(*sorted({name.partition('.')[0] for name in {*sys.modules} - before}));"
        "print('torch._dynamo' in sys.modules, 'mach_ext.attack' in sys.modules, 'asyncio' in before)"
    )
    run = python(code)
    assert run.returncode == 0, run.stderr
    packages, flags = run.stdout.splitlines()
    heavy = {"sklearn", "matplotlib", "jinja2", "captum", "sympy", "pandas"}
    assert not heavy & {*packages.split()}
    assert flags.split()[:2] == ["False", "False"]


def test_modules_load_when_first_asked_for():
    code = (
        "import mach_ext; print(mach_ext.explain.__name__, mach_ext.attack.FGSM.__name__, mach_ext.certify)"
    )
    assert python(code).stdout.startswith("mach_ext.explain FGSM <module 'mach_ext.certify'")
    assert {*mach_ext.__all__} <= {*dir(mach_ext)}
    with pytest.raises(AttributeError, match="module 'mach_ext' has no attribute 'attac'"):
        _ = mach_ext.attac


def test_torch_compile_takes_the_label_index_as_a_constant():
    def function():
        pass

    torch.compiler.assume_constant_result(function)
    assert vars(function).items() <= vars(mach_ext.functional._merge._label_index).items()


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """What is installed here, without mach_ext: neither its files nor its metadata."""
    folder = tmp_path_factory.mktemp("packages")
    ours = ("mach_ext", "__editable__")
    for path in [Path(p) for p in sys.path if p.endswith("-packages")]:
        for each in path.iterdir():
            if not each.name.startswith(ours) and each.suffix != ".pth":
                (folder / each.name).symlink_to(each)
    return folder


@pytest.fixture
def checkout(tmp_path, packages):
    """checkout(code): runs it with a copy of the package on PYTHONPATH; `.folder` is the copy."""
    folder = tmp_path / "checkout" / "mach_ext"
    shutil.copytree(ROOT / "mach_ext", folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in (ROOT / "mach_ext").glob("*.so"):
        (folder / library.name).symlink_to(library.resolve())

    def run(code):
        path = f"{folder.parent}:{packages}"
        return python(code, "-S", cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})

    run.folder = folder
    return run


def test_a_checkout_needs_no_metadata(checkout):
    run = checkout("import mach_ext; print(mach_ext.__file__, mach_ext.__version__)")
    assert run.stdout.split() == [str(checkout.folder / "__init__.py"), mach_ext.__version__], run.stderr


def test_version_has_one_source():
    assert re.fullmatch(r"\d+\.\d+\.\d+", mach_ext.__version__)
    run = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1:] == [mach_ext.__version__], run.stderr


CUDA_TORCH = "import torch; torch.version.cuda = '13.0'\n"
ASK_FOR_CUDA = """
import mach_ext
from mach_ext import _ops
hash = mach_ext.LabelHash(20, 8, 4)
print(mach_ext.functional.merge_topk(torch.zeros(1, 4, 8), hash, 2)[1].tolist())
try:
    torch.ops.mach_ext.merge_scores.default._op_dk(
        torch._C.DispatchKey.CUDA, torch.zeros(1, 4, 8), hash.buckets, torch.zeros(1, 1).long(), "mean"
    )
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (b"not a library", r"_cuda.so does not load: .*(ELF|too short)"),
        (None, "mach_ext was built without them: " + re.escape(str(_C.build_info()["cuda"]))),
    ],
)
def test_cuda_operators_that_are_not_there_harm_no_cpu_user(checkout, library, said):
    (checkout.folder / "_cuda.so").unlink(missing_ok=True)
    if library is not None:
        (checkout.folder / "_cuda.so").write_bytes(library)
    run = checkout(CUDA_TORCH + ASK_FOR_CUDA)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    answer, error = run.stdout.splitlines()
    assert answer == "[[0, 1]]"
    assert re.search(f"^mach_ext: there are no CUDA operators: .*{said}", error)


def test_every_operator_refuses_cuda_tensors_where_it_has_no_cuda_kernel():
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mach_ext::")]
    assert len(names) > 20
    missing = [n for n in names if not torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA")]
    assert not missing or not _ops.CUDA_FAULT


def test_the_command_says_why_there_is_no_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_ops, "CUDA_FAULT", "no nvcc")
    model = str(MODELS[0])
    assert cli.main(["predict", "--model-path", model, "--text", "x", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "mach-ext: --device cuda: there are no CUDA operators: no nvcc\n"
    assert cli.main(["info", "--model-path", model]) == 0
    assert "; CUDA: no nvcc\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("_cpu.so", None, "the compiled operators (_cpu.so) are not in "),
        ("_cpu.so", b"not a library", "the compiled operators do not load with torch 2."),
        ("_C.*.so", None, "the compiled parser (_C) does not load with Python 3."),
        ("_C.*.so", b"not a library", "the compiled parser (_C) does not load with Python 3."),
    ],
)
def test_a_compiled_part_that_is_missing_or_damaged_says_what_to_run(checkout, name, content, said):
    (library,) = checkout.folder.glob(name)
    library.unlink()
    if content is not None:
        library.write_bytes(content)
    run = checkout("import mach_ext")
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: mach_ext: {said}")
    assert last.endswith("Run: pip install --no-build-isolation . (in a checkout: make build)")


def read_only(*command):
    """Runs it in a mount namespace where the file system cannot be written to; skips where there is none."""
    shell = 'mount -o remount,bind,ro / && for d in /tmp /var/tmp "$PWD"; do ! touch "$d/x" || exit 77; done'
    namespace = ["unshare", "--mount", "--map-root-user", "--propagation", "private", "sh", "-c"]
    run = subprocess.run(
        [*namespace, f'({shell}) 2>/dev/null || exit 77; exec "$@"', "sh", *command],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if run.returncode == 77 or run.stderr.startswith("unshare: "):
        pytest.skip("no read-only mount can be made here")
    return run


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_import_and_answers_on_a_read_only_file_system():
    code = (
        "import mach_ext, tempfile, sys\n"
        "try: tempfile.gettempdir()\n"
        "except FileNotFoundError: print('read-only')\n"
        "from mach_ext import cli\n"
        f"sys.exit(cli.main(['predict', '--model-path', {str(MODELS[0])!r}, '--text', 'dog', '--k', '1']))"
    )
    run = read_only(sys.executable, "-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("read-only\nanimal\t")


# --------------------------------------------------------------------------------------------------- load


@pytest.mark.parametrize("folder", MODELS + SHARDS, ids=lambda folder: folder.name)
def test_models_of_former_formats_answer_as_they_did(folder, capsys):
    asked = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    model = mach_ext.load(folder)
    vectorizer = data.Vectorizer.from_json(model.attachments["vectorizer.json"])
    names = json.loads(model.attachments["labels.json"])
    scores, labels = model.predict(vectorizer.transform([answer["text"] for answer in asked]), 3)
    expected = [[label["score"] for label in answer["labels"]] for answer in asked]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    best = [[label["label"] for label in answer["labels"]] for answer in asked]
    assert [[names[label] for label in row] for row in labels] == best

    texts = [argument for answer in asked for argument in ("--text", answer["text"])]
    assert cli.main(["predict", "--model-path", str(folder), "--k", "3", "--format", "jsonl", *texts]) == 0
    printed = [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]
    assert [[label["label"] for label in row] for row in printed] == best


@pytest.mark.parametrize("folder", DENSE, ids=lambda folder: folder.name)
def test_models_with_dense_features_answer_as_they_did(folder):
    asked = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    model = mach_ext.load(folder)
    assert nn.in_float32(model).is_scaled
    assert model.num_dense == 3
    X = data.HybridMatrix(np.array(asked["sparse"]), np.array(asked["dense"]))
    scores, labels = model.predict(X, 3)
    np.testing.assert_allclose(scores, asked["scores"], rtol=1e-4, atol=1e-4)
    assert labels.tolist() == asked["labels"]
    assert labels[:, 0].tolist() == [*range(6)]
    blind = model.predict(data.HybridMatrix(X.sparse, np.tile(model.dense_center, (6, 1))), 1)[1]
    assert (blind.ravel() != labels[:, 0]).any()  # the words alone do not tell the labels apart


def test_there_is_a_model_of_each_format():
    formats = [
        json.loads((folder / "model.json").read_text())["format"] for folder in MODELS + DENSE + SHARDS
    ]
    assert {*formats} == {1, 2, 3, 4, 5, 6, 7}
    assert [len([*folder.glob("weights-*")]) for folder in SHARDS] == [3]
    assert [nn.is_compressed(folder) for folder in DENSE] == [False, True, True]
    assert nn.is_compressed(ROOT / "tests/fixtures/model_v2")
    assert not nn.is_compressed(ROOT / "tests/fixtures/model_v1")


@pytest.mark.parametrize("step", [None, 0.01])
def test_the_format_in_force_has_plain_and_compressed_weights(tmp_path, step):
    model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=4)
    model.save(tmp_path, step)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == 7
    assert nn.is_compressed(tmp_path) is (step is not None)
    assert mach_ext.load(tmp_path).num_labels == 20


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"weights": 3}', '{"format": 2, "weights": []}'])
def test_what_is_no_record_is_not_compressed(tmp_path, record):
    (tmp_path / "model.json").write_text(record)
    assert not nn.is_compressed(tmp_path)
    assert not nn.is_compressed(tmp_path / "gone")


@pytest.mark.parametrize("step", [None, 0.01])
@pytest.mark.parametrize("table", [False, True])
def test_load_draws_no_weights(tmp_path, monkeypatch, step, table):
    hash = mach_ext.LabelHash(20, 8, 8)
    if table:
        hash = mach_ext.LabelHash.from_buckets(hash.buckets, 8)
    model = mach_ext.MACH(10, 20, num_repetitions=8, num_buckets=8, hidden_size=(4, 6), hash=hash)
    model.adjust_logits(np.arange(20), tau=0.3)
    model.save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", None)
        loaded = mach_ext.load(tmp_path)
    state = {**loaded.state_dict()}
    assert not any(tensor.is_meta for tensor in state.values())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0 if step is None else step)


def test_a_model_on_the_meta_device_takes_no_memory():
    with torch.device("meta"):
        model = mach_ext.MACH(10**6, 10**6, num_repetitions=16, num_buckets=8, hidden_size=10**6, hash=HASH)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert bytes(model.hash_fingerprint.tolist()).decode() == HASH.fingerprint()


HASH = mach_ext.LabelHash(10**6, 8, 16)

PEAK = """
import re, sys, mach_ext
def peak():  # ru_maxrss would be that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
model = mach_ext.load(sys.argv[1])
print((peak() - before) / sum(4 * p.numel() for p in model.parameters()))
"""


@pytest.mark.parametrize(
    ("step", "most"),
    [(None, 1.3), (0.05, 2.5)],  # 3.1 and 4.0 with weights drawn first; compressed blocks take 60 MB
)
def test_load_takes_little_more_memory_than_the_weights(tmp_path, step, most):
    mach_ext.MACH(40_000, 100, num_repetitions=8, num_buckets=16, hidden_size=400).save(tmp_path, step)
    run = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True)
    assert float(run.stdout) < most, run.stderr


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_stream_is_read_piece_by_piece(monkeypatch, piece):
    weight = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    for step in (0.1, 0.001):  # a byte a weight, two
        stream = compression.encode(weight, step)
        monkeypatch.setattr(compression, "_PIECE", piece)
        decoded = compression.decode(stream, weight.shape, step)
        assert torch.equal(decoded, (weight / step).round() * step)
        for broken in (stream[:-1], stream[:5], stream[:0]):
            with pytest.raises(ValueError, match="must be a zlib stream"):
                compression.decode(broken, weight.shape, step)
