"""Builds mach_ext. CMakeLists.txt says what and how; this file finds torch and calls it."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

missing = [name for name in ("torch", "cmake", "ninja", "pybind11") if importlib.util.find_spec(name) is None]
missing = [name for name in missing if name not in ("cmake", "ninja") or shutil.which(name) is None]
if missing:
    sys.exit(
        f"mach_ext: {', '.join(missing)} not found by the Python that builds. mach_ext compiles against the "
        "torch you run, so pip must not build it in isolation. Run:\n"
        "    pip install 'torch>=2.11' 'setuptools>=77' wheel cmake ninja pybind11 "
        "&& pip install --no-build-isolation ."
    )

import pybind11  # noqa: E402
import torch  # noqa: E402
from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

ROOT = Path(__file__).parent.resolve()


def program(name: str) -> str:
    """Path of cmake or ninja: from PATH, else from the package of that name."""
    found = shutil.which(name)
    if found:
        return found
    package = importlib.import_module(name)
    return str(Path(getattr(package, "CMAKE_BIN_DIR", None) or package.BIN_DIR) / name)


def with_cuda() -> bool:
    """MACH_CUDA=1 or 0 decides; unset, the CUDA operators are built where torch has CUDA."""
    wanted = os.environ.get("MACH_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"mach_ext: MACH_CUDA must be 0 or 1, got {wanted!r}")
    return wanted == "1" if wanted else torch.version.cuda is not None


class CMakeBuild(build_ext):
    """One setuptools Extension for each CMake target."""

    def get_ext_filename(self, fullname: str) -> str:
        # _cpu and _cuda hold no Python: no ABI tag in their names, torch.ops.load_library loads them.
        if fullname.rpartition(".")[2] in ("_cpu", "_cuda"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        tag = f"{sys.implementation.cache_tag}-{platform.machine()}-torch{torch.__version__}"
        folder = ROOT / "build" / tag
        torch_root = Path(torch.__file__).parent
        options = {
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "MACH_CUDA": "ON" if with_cuda() else "OFF",
            "MACH_SHIM": "ON" if os.environ.get("MACH_SHIM") == "1" else "OFF",
            "MACH_VERSION": self.distribution.get_version(),
            "MACH_WERROR": "ON" if os.environ.get("MACH_WERROR") == "1" else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "TORCH_INCLUDE": torch_root / "include",
            "TORCH_LIB": torch_root / "lib",
            "TORCH_VERSION": torch.__version__,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        cmake = program("cmake")
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run([cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *defines], check=True)
        targets = [extension.name.rpartition(".")[2] for extension in self.extensions]
        if options["MACH_SHIM"] == "ON":
            targets.append("shim")  # what it makes stays in the build folder, where the tests look for it
        subprocess.run([cmake, "--build", folder, "--target", *targets], check=True)
        for extension in self.extensions:
            target = extension.name.rpartition(".")[2]
            built = next(folder.glob(f"{target}.*so"))
            installed = Path(self.get_ext_fullpath(extension.name))
            installed.parent.mkdir(parents=True, exist_ok=True)
            installed.unlink(missing_ok=True)
            if self.inplace or self.editable_mode:
                installed.symlink_to(built)  # a later build is seen at once
            else:
                shutil.copy2(built, installed)


targets = ["_cpu", "_C"] + (["_cuda"] if with_cuda() else [])
setup(
    ext_modules=[Extension(f"mach_ext.{target}", sources=[]) for target in targets],
    cmdclass={"build_ext": CMakeBuild},
)
