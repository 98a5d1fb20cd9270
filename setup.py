"""Builds mach_ext. CMakeLists.txt says what and how; this file finds torch and the compilers and calls it.

What a first installation can lack is looked for before any work, and told in one line.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# The oldest that will do; pyproject.toml has them too, where pip reads them.
OLDEST = {"torch": (2, 11), "setuptools": (77,), "cmake": (3, 24), "CUDA": (12,)}
COMMAND = (
    "pip install 'torch>=2.11' 'setuptools>=77' wheel cmake ninja pybind11 "
    "&& pip install --no-build-isolation ."
)
TOOLKITS = (
    "/usr/local/cuda",
    "/opt/cuda",
)  # where CUDA is installed by default, also with "-13.0" at the end
# C++17 as mach_ext uses it. GCC came to read floats with std::from_chars only in release 11.
PROBE = """
#include <charconv>
#include <optional>
int main() {
  const char text[] = "1";
  float number;
  return std::from_chars(text, text + 1, number).ptr == text;
}
"""


def fail(text: str) -> NoReturn:
    sys.exit(f"mach_ext: {text}")


def say(text: str) -> None:
    print(f"mach_ext: {text}", file=sys.stderr)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_version(name: str, version: str) -> None:
    if numbers(version) < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        fail(f"{name} {version} is too old, {oldest} or newer is needed. Run: pip install '{name}>={oldest}'")


# ----------------------------------------------------------------------------------------- what must be there


def check_packages() -> None:
    """The Python packages that a build needs."""
    if sys.platform != "linux":
        fail(f"builds on Linux, not on {sys.platform}")
    missing = [n for n in ("torch", "cmake", "ninja", "pybind11") if importlib.util.find_spec(n) is None]
    missing = [name for name in missing if name not in ("cmake", "ninja") or shutil.which(name) is None]
    if missing:
        fail(
            f"{', '.join(missing)} not found by the Python that builds. mach_ext compiles against the "
            f"torch you run, so pip must not build it in isolation. Run:\n    {COMMAND}"
        )
    check_version("setuptools", setuptools.__version__)


def import_torch() -> ModuleType:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # whatever a broken installation raises
        fail(f"torch cannot be imported by the Python that builds: {first_line(error)}")
    check_version("torch", torch.__version__)
    return torch


def program(name: str) -> str:
    """Path of cmake or ninja: from the package of that name, else from PATH, whose own may be old."""
    if importlib.util.find_spec(name) is not None:
        package = importlib.import_module(name)
        folder = getattr(package, "CMAKE_BIN_DIR", None) or getattr(package, "BIN_DIR", "")
        if (Path(folder) / name).exists():
            return str(Path(folder) / name)
    found = shutil.which(name)
    return found or fail(f"the package {name} has no program. Run: pip install --force-reinstall {name}")


def find_compiler() -> list[str]:
    """The C++ compiler as CMake finds it: $CXX, a command, else the usual names on PATH."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named and shutil.which(named[0]) is None:
        fail(f"$CXX names {named[0]}, which is not found")
    found = named or [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    return found or fail("no C++ compiler is found. Install one, as with: apt install g++")


def check_compiler() -> None:
    compiler = find_compiler()
    arguments = [*compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(arguments, input=PROBE, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        fail(
            f"{' '.join(compiler)} does not compile the C++17 that is needed (GCC 11 or newer does): "
            f"{lines[0] if lines else f'exit code {done.returncode}'}"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        version = ".".join(map(str, sys.version_info[:2]))
        fail(f"{headers} has no Python.h. Install Python's headers, as with: apt install python{version}-dev")


def check_cmake() -> None:
    done = subprocess.run([program("cmake"), "--version"], capture_output=True, text=True)
    version = re.search(r"cmake version (\S+)", done.stdout)
    if version is None:
        fail(f"{program('cmake')} does not run. Run: pip install --force-reinstall cmake")
    check_version("cmake", version[1])


# ------------------------------------------------------------------------------------------------------- CUDA


class Cuda(NamedTuple):
    """Whether the CUDA operators are built."""

    nvcc: str | None  # None: they are left out
    note: str  # with what, or why not; kept in build_info()
    required: bool = False  # MACH_CUDA=1


def find_nvccs() -> list[str]:
    """$CUDACXX, the toolkit of $CUDA_HOME or $CUDA_PATH, PATH, the usual folders; those that are there."""
    named = shlex.split(os.environ.get("CUDACXX", ""))[:1]
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [*named, *(f"{home}/bin/nvcc" for home in homes), "nvcc"]
    candidates += [f"{home}/bin/nvcc" for home in usual_toolkits()]
    return list(filter(None, map(shutil.which, candidates)))


def usual_toolkits() -> list[str]:
    """Where installers put a toolkit, those with a version after those without, then NVIDIA's wheels."""
    versions = [path for home in TOOLKITS for path in Path(home).parent.glob(f"{Path(home).name}-*")]
    newest_first = sorted(versions, key=lambda path: numbers(path.name), reverse=True)
    names = ("cu[0-9]*", "cuda_nvcc")  # since CUDA 13, and before
    wheels = [path for site in sys.path for name in names for path in Path(site).glob(f"nvidia/{name}")]
    return [*TOOLKITS, *map(str, newest_first), *map(str, wheels)]


def nvcc_version(nvcc: str) -> str:
    """As 13.0; empty where it does not run."""
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    except OSError:
        return ""
    release = re.search(r"release (\d+\.\d+)", done.stdout)
    return release[1] if release and done.returncode == 0 else ""


def nvcc_fault(nvcc: str) -> str:
    """Why the CUDA operators can't be built with it; empty where they can."""
    version = nvcc_version(nvcc)
    if not version:
        return f"{nvcc} does not run"
    if numbers(version) < OLDEST["CUDA"]:
        return f"{nvcc} is of CUDA {version}, and CUDA 12 or newer is needed"
    return ""


def decide_cuda(torch: ModuleType) -> Cuda:
    """MACH_CUDA=1 or 0 decides. Unset, the CUDA operators are built where torch has CUDA and nvcc works."""
    wanted = os.environ.get("MACH_CUDA", "")
    if wanted not in ("", "0", "1"):
        fail(f"MACH_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return Cuda(None, "MACH_CUDA=0 was set")
    if not wanted and torch.version.cuda is None:
        return Cuda(None, f"torch {torch.__version__} has no CUDA")
    faults = {nvcc: nvcc_fault(nvcc) for nvcc in find_nvccs()}
    for nvcc, fault in faults.items():
        if not fault:
            return Cuda(nvcc, f"CUDA {nvcc_version(nvcc)}", wanted == "1")
    fault = next(iter(faults.values()), "nvcc is not on PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin")
    if wanted:
        fail(f"MACH_CUDA=1 needs the CUDA toolkit, but {fault}")
    return without_cuda(torch, fault)


def without_cuda(torch: ModuleType, fault: str) -> Cuda:
    """No ";" and no "$" may be in a note, for it goes through CMake and a shell."""
    note = f"torch has CUDA {torch.version.cuda}, but {fault}"
    return Cuda(None, f"{note}. For the CUDA operators, install the CUDA toolkit and run pip install again")


def remark(torch: ModuleType, cuda: Cuda) -> str:
    """What whoever builds should know of the decision; empty where there is nothing."""
    theirs = torch.version.cuda
    if theirs is None:
        return ""
    if cuda.nvcc is None:
        return f"builds for CPU only: {cuda.note}"
    if numbers(cuda.note)[0] == numbers(theirs)[0]:
        return ""
    return f"{cuda.nvcc} is of {cuda.note}, torch of CUDA {theirs}: the driver must be new enough for both"


# ------------------------------------------------------------------------------------------------------ build


def is_stale(folder: Path, nvcc: str | None) -> bool:
    """Whether CMake made a build folder for another place, or with a compiler that has changed or gone."""
    cache = folder / "CMakeCache.txt"
    if not cache.exists():
        return False
    text = cache.read_text(encoding="utf-8", errors="surrogateescape")
    recorded = dict(re.findall(r"^(\w+):\w+=(.*)$", text, re.MULTILINE))
    wanted = {"CMAKE_HOME_DIRECTORY": str(ROOT), "CMAKE_GENERATOR": "Ninja"}
    if nvcc is not None:
        wanted["CMAKE_CUDA_COMPILER"] = nvcc
    if os.environ.get("CXX"):
        wanted["CMAKE_CXX_COMPILER"] = shutil.which(find_compiler()[0]) or ""
    if any(recorded.get(name, value) != value for name, value in wanted.items()):
        return True
    names = ("CMAKE_CXX_COMPILER", "_Python_INCLUDE_DIR")
    return not all(Path(recorded.get(name, ROOT)).exists() for name in names)


def check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        fail(f"{there} cannot be written to. Build in a copy of the checkout, or as the user that owns it")


class CMakeBuild(build_ext):
    """One setuptools Extension for each CMake target."""

    torch: ModuleType
    cuda: Cuda

    def get_ext_filename(self, fullname: str) -> str:
        # _cpu and _cuda hold no Python: no ABI tag in their names, torch.ops.load_library loads them.
        if fullname.rpartition(".")[2] in ("_cpu", "_cuda"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        tag = f"{sys.implementation.cache_tag}-{platform.machine()}-torch{self.torch.__version__}"
        folder = ROOT / "build" / tag
        check_writable(folder)
        if is_stale(folder, self.cuda.nvcc):
            say(f"{folder} was made elsewhere, or with other compilers: it is made anew")
            shutil.rmtree(folder)
        self.configure(folder)
        targets = [target_of(extension) for extension in self.extensions]
        if os.environ.get("MACH_SHIM") == "1":
            targets.append("shim")  # what it makes stays in the build folder, where the tests look for it
        if not cmake("--build", folder, "--target", *targets):
            hint = "; MACH_CUDA=0 leaves the CUDA operators out" if self.cuda.nvcc else ""
            fail(f"compiling failed, the messages above say why{hint}")
        for extension in self.extensions:
            self.install(extension, next(folder.glob(f"{target_of(extension)}.*so")))
        if self.cuda.nvcc is None:  # left by a former build, it would be loaded, or packed into a wheel
            Path(self.get_ext_fullpath("mach_ext._cuda")).unlink(missing_ok=True)

    def configure(self, folder: Path) -> None:
        """Runs CMake. Where it can't use an nvcc that nobody asked for, the CUDA operators are left out."""
        if cmake("-S", ROOT, "-B", folder, "-G", "Ninja", *self.defines()):
            return
        if self.cuda.nvcc is None:
            fail("CMake failed, its messages above say why")
        fault = f"CMake cannot use {self.cuda.nvcc}"
        if self.cuda.required:
            fail(f"MACH_CUDA=1, but {fault}: its messages above say why")
        self.cuda = without_cuda(self.torch, fault)
        say(remark(self.torch, self.cuda))
        self.extensions = [each for each in self.extensions if target_of(each) != "_cuda"]
        shutil.rmtree(folder)
        self.configure(folder)

    def defines(self) -> list[str]:
        torch_root = Path(self.torch.__file__).parent
        options = {
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "MACH_CUDA": "OFF" if self.cuda.nvcc is None else "ON",
            "MACH_CUDA_NOTE": self.cuda.note,
            "MACH_LINEINFO": "ON" if os.environ.get("MACH_LINEINFO") == "1" else "OFF",
            "MACH_SHIM": "ON" if os.environ.get("MACH_SHIM") == "1" else "OFF",
            "MACH_VERSION": self.distribution.get_version(),
            "MACH_WERROR": "ON" if os.environ.get("MACH_WERROR") == "1" else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "TORCH_INCLUDE": torch_root / "include",
            "TORCH_LIB": torch_root / "lib",
            "TORCH_VERSION": self.torch.__version__,
            "pybind11_DIR": importlib.import_module("pybind11").get_cmake_dir(),
        }
        if self.cuda.nvcc is not None:
            options["CMAKE_CUDA_COMPILER"] = self.cuda.nvcc
        return [f"-D{name}={value}" for name, value in options.items()]

    def install(self, extension: Extension, built: Path) -> None:
        installed = Path(self.get_ext_fullpath(extension.name))
        installed.parent.mkdir(parents=True, exist_ok=True)
        installed.unlink(missing_ok=True)
        if self.inplace or self.editable_mode:  # a later build is seen at once, and the checkout may move
            installed.symlink_to(os.path.relpath(built, installed.parent.resolve()))
        else:
            shutil.copy2(built, installed)


def target_of(extension: Extension) -> str:
    return extension.name.rpartition(".")[2]


def cmake(*arguments: str | Path) -> bool:
    """Runs CMake and tells whether it succeeded."""
    return subprocess.run([program("cmake"), *arguments]).returncode == 0


def main() -> None:
    check_packages()
    torch = import_torch()
    check_compiler()
    check_cmake()
    cuda = decide_cuda(torch)
    if text := remark(torch, cuda):
        say(text)
    CMakeBuild.torch, CMakeBuild.cuda = torch, cuda
    targets = ["_cpu", "_C"] + (["_cuda"] if cuda.nvcc else [])
    setup(
        ext_modules=[Extension(f"mach_ext.{target}", sources=[]) for target in targets],
        cmdclass={"build_ext": CMakeBuild},
    )


if __name__ == "__main__":
    main()
