"""What ships, that a wheel stands alone, that the oldest torch will do; what CUDA kernels use."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import ROOT


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The sources as a clone would have them, without build folders: nothing here touches the real ones."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    folder = tmp_path_factory.mktemp("checkout")
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def pip(*arguments, cwd, **env):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})


def test_wheel_from_sdist_stands_alone(checkout, tmp_path):
    build = "from setuptools import build_meta as b; print(b.build_sdist('dist'))"
    run = subprocess.run([sys.executable, "-c", build], cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (sdist,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CMakeLists.txt",
        "csrc/ops.cpp",
        "csrc/cpu/bind/merge_topk.cpp",
        "csrc/cuda/sparse_optim.cu",
        "mach_ext/_C.pyi",
        "LICENSE",
    } <= names
    assert not [name for name in names if name.endswith(".so")]

    wheel = ["wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(sdist)]
    # Without optimising, in half the time: what is optimised is tested everywhere else.
    run = pip(*wheel, cwd=tmp_path, MACH_CUDA="0", CMAKE_BUILD_TYPE="Debug")
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"mach_ext/_cpu.so", "mach_ext/py.typed", "mach_ext/_C.pyi", "mach_ext/nn.py"} <= set(names)
    assert "mach_ext/_cuda.so" not in names
    assert not [name for name in names if "torch_cuda" in name or name.startswith(("tests", "csrc"))]

    smoke = (
        "import mach_ext, torch; hash = mach_ext.LabelHash(100, 20, 8); print(mach_ext.__file__);"
        "mach_ext.functional.merge_topk(torch.randn(2, 8, 20), hash, 3)"
    )
    run = subprocess.run(
        [sys.executable, "-c", smoke],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path / "site"))


def test_build_without_torch_says_what_to_run(checkout, tmp_path):
    """As in an isolated `pip install .`: the build's Python has setuptools but no torch."""
    venv.create(tmp_path / "venv", with_pip=False)
    paths = [p for p in sys.path if p.endswith("site-packages")]
    (tmp_path / "only").mkdir()
    for name in ("setuptools", "_distutils_hack", "pybind11", "cmake", "ninja"):
        for found in (Path(p) / name for p in paths):
            if found.exists():
                (tmp_path / "only" / name).symlink_to(found)
    hook = "from setuptools import build_meta as b; b.get_requires_for_build_wheel()"
    run = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", hook],
        cwd=checkout, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "only")},
    )  # fmt: skip
    assert run.returncode != 0
    assert "mach_ext: torch not found by the Python that builds" in run.stderr
    assert "pip install --no-build-isolation ." in run.stderr
    assert "Traceback" not in run.stderr


def test_mach_cuda_must_be_0_or_1(checkout):
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=checkout, capture_output=True, text=True, env={**os.environ, "MACH_CUDA": "yes"},
    )  # fmt: skip
    assert run.returncode != 0
    assert "MACH_CUDA must be 0 or 1, got 'yes'" in run.stderr


def test_import_without_the_compiled_part_says_what_to_run(tmp_path):
    (tmp_path / "mach_ext").mkdir()
    copy = tmp_path / "mach_ext" / "_libraries.py"
    copy.write_bytes((ROOT / "mach_ext" / "_libraries.py").read_bytes())
    run = subprocess.run(
        [sys.executable, "-E", "-c", "import sys; sys.path.insert(0, '.'); import _libraries"],
        cwd=tmp_path / "mach_ext", capture_output=True, text=True,
    )  # fmt: skip
    assert "ImportError: mach_ext: the compiled operators (_cpu.so) are not in" in run.stderr
    assert "pip install --no-build-isolation ." in run.stderr


def test_import_in_the_checkout_beside_an_installed_package_says_to_leave_it(tmp_path):
    """Python takes the sources in the current folder before the package that was just installed."""
    for place in ("checkout/mach_ext", "site/mach_ext"):
        (tmp_path / place).mkdir(parents=True)
    copy = tmp_path / "checkout" / "mach_ext" / "_libraries.py"
    copy.write_bytes((ROOT / "mach_ext" / "_libraries.py").read_bytes())
    (tmp_path / "site" / "mach_ext" / "_cpu.so").touch()
    run = subprocess.run(
        [sys.executable, "-E", "-c", "import sys; sys.path[:0] = ['.', '../../site']; import _libraries"],
        cwd=tmp_path / "checkout" / "mach_ext", capture_output=True, text=True,
    )  # fmt: skip
    last = run.stderr.splitlines()[-1]
    assert (
        "A compiled mach_ext is installed in ../../site/mach_ext, but Python found this folder first." in last
    )
    assert last.endswith(f"Start Python in another folder than {tmp_path / 'checkout'}")


OLDEST_TORCH = re.search(r"^OLDEST_TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
# What includes torch: the schemas, and a folder of bindings for each device.
BINDINGS = [ROOT / "csrc" / "ops.cpp", ROOT / "csrc" / "cpu" / "bind", ROOT / "csrc" / "cuda" / "bind"]


@pytest.mark.parametrize("release", [OLDEST_TORCH, "installed", "newest"])
@pytest.mark.parametrize("source", BINDINGS, ids=lambda source: str(source.relative_to(ROOT)))
def test_bindings_compile_against_torch(source, release, tmp_path):
    """That of CUDA with the headers of the shim, which every machine has, and with nvcc's where it is.

    The files of a folder are compiled as one: each of them would read torch's headers anew.
    """
    headers = ROOT / "build" / f"torch-{release}" / "include"
    if release == "installed":
        headers = Path(torch.__file__).parent / "include"
    if not headers.exists():
        pytest.skip(f"no headers of torch {release}: `make test` fetches them over the network")
    if source.is_dir():
        includes = [f'#include "{path}"' for path in sorted(source.glob("*.cpp"))]
        assert includes
        (tmp_path / "all.cpp").write_text("\n".join(includes))
    target = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", headers]
    flags = ["-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    cuda = source.parent.name == "cuda"
    shim = ["-DMACH_SHIM", f"-I{ROOT / 'tests' / 'cuda_shim'}"] if cuda else []
    commands = [[os.environ.get("CXX", "c++"), *flags, *shim]]
    if cuda and NVCC:
        commands.append([NVCC, "-c", "-o", os.devnull, f"-Xcompiler={','.join(flags)}", "-DUSE_CUDA"])
    for command in commands:
        file = tmp_path / "all.cpp" if source.is_dir() else source
        run = subprocess.run([*command, *target, file], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_sizes_of_grids_are_not_cut_off():
    """A number of blocks becomes 32 bits by `grid_extent`, which checks it, or after a bound by its side."""
    for path in (ROOT / "csrc" / "cuda").rglob("*.cu"):
        source = path.read_text()
        for start in re.finditer(r"static_cast<unsigned>\(", source):
            depth, end = 1, start.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(source[end], 0)
                end += 1
            cast = source[start.end() : end - 1]
            assert "min(" in cast or "min<" in cast or " < " in cast, (path.name, cast)


def test_bindings_are_what_is_compiled_against_torch():
    """Every file that includes torch, itself or by a header of ours, is one of them."""
    with_torch = re.compile(r'#include .*(torch/csrc|(check|arguments|parallel|runtime|tensors)\.h")')
    for path in (ROOT / "csrc").rglob("*.cpp"):
        if with_torch.search(path.read_text()):
            assert path in BINDINGS or path.parent in BINDINGS, path


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("folder", "program", "anew"), [("here", True, False), ("gone", True, True), ("here", False, True)]
)
def test_an_environment_that_was_moved_is_made_anew(checkout, tmp_path, folder, program, anew):
    """Its scripts name the folder they were made in; a Python that is gone is no better."""
    shutil.copy(checkout / "Makefile", tmp_path)
    made = tmp_path / ".venv"
    (made / "bin").mkdir(parents=True)
    (made / "created").touch()
    where = tmp_path.resolve() if folder == "here" else "/before/it/was/moved"
    (made / "bin" / "activate").write_text(f"VIRTUAL_ENV={where}/.venv\n")
    (made / "bin" / "python").symlink_to(sys.executable if program else "/gone/python")
    run = subprocess.run(["make", "-n", ".venv/created"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert ("-m venv --clear .venv" in run.stdout) is anew


CUDA_LIBRARY = ROOT / "mach_ext" / "_cuda.so"
needs_cuda_library = pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without MACH_CUDA=1 or nvcc")


@needs_cuda_library
def test_cuda_library_needs_libtorch_cuda_and_leaves_no_stub():
    out = subprocess.run(["readelf", "-d", CUDA_LIBRARY], check=True, capture_output=True, text=True).stdout
    assert "libtorch_cuda.so" in out
    assert "libcudart" not in out  # linked in: no second copy of a driver-facing library to find
    assert "RPATH" not in out
    assert "RUNPATH" not in out


def kernel_resources():
    """{kernel: {architecture: (registers, static shared, stack, spilled bytes)}}, as ptxas said it."""
    folder = CUDA_LIBRARY.resolve().parent / "CMakeFiles" / "_cuda.dir" / "csrc" / "cuda"
    # By source: the log of one that was renamed stays in the build folder.
    logs = [folder / f"{source.name}.o.ptxas" for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    text = "".join(log.read_text() for log in logs)
    text = subprocess.run(["c++filt"], input=text, check=True, capture_output=True, text=True).stdout
    found = {}
    for entry in text.split("Compiling entry function '")[1:]:
        name = re.match(r"(.*)' for 'sm_(\d+)", entry)
        kernel = re.sub(r"^void |\(anonymous namespace\)::|\bmach::|\(.*", "", name[1])
        stack, stores, loads = (
            int(re.search(rf"(\d+) bytes {what}", entry)[1])
            for what in ("stack frame", "spill stores", "spill loads")
        )
        registers = int(re.search(r"Used (\d+) registers", entry)[1])
        shared = re.search(r"(\d+) bytes smem", entry)
        found.setdefault(kernel, {})[int(name[2])] = (
            registers, int(shared[1]) if shared else 0, stack, stores + loads,
        )  # fmt: skip
    return found


@needs_cuda_library
def test_cuda_kernels_keep_their_budget():
    """Registers in steps of 8, the unit they are given out in; static shared memory and stack in bytes."""
    budget = json.loads((ROOT / "tests" / "cuda_budget.json").read_text())
    found = kernel_resources()
    wrong = []
    for kernel, by_architecture in sorted(found.items()):
        registers, shared, stack, spilled = map(max, zip(*by_architecture.values(), strict=True))
        line = json.dumps({"registers": -(-registers // 8) * 8, "shared": shared, "stack": stack})
        kept = budget.get(kernel)
        if spilled:
            wrong.append(
                f"{kernel} spills: { ({a: r[3] for a, r in by_architecture.items() if r[3]}) } bytes"
            )
        if kept is None:
            wrong.append(f'missing:  "{kernel}": {line},')
        elif registers > kept["registers"] or shared > kept["shared"] or stack > kept["stack"]:
            wrong.append(f'beyond {json.dumps(kept)}:  "{kernel}": {line},')
    wrong += [f"{kernel} is no longer there" for kernel in sorted(budget.keys() - found.keys())]
    assert not wrong, "tests/cuda_budget.json and the last build differ:\n" + "\n".join(wrong)


@needs_cuda_library
@pytest.mark.skipif("TORCH_CUDA_ARCH_LIST" in os.environ, reason="TORCH_CUDA_ARCH_LIST chose architectures")
def test_cuda_kernels_are_compiled_for_every_architecture():
    for kernel, by_architecture in kernel_resources().items():
        assert {75, 80, 86, 89, 90, 100} <= by_architecture.keys(), kernel
