"""The machine of a run: its programs, its Python packages, its GPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("PYTHON") or sys.executable  # of all that is run
# Modules without which nothing can be built or run, and those that a part of the work needs.
NEEDED = ("torch", "setuptools", "pybind11", "numpy", "scipy", "safetensors", "tqdm", "pytest", "hypothesis")
HELPFUL = ("sklearn", "pandas", "jinja2", "matplotlib", "typer", "rich", "captum", "xdist")
OLDEST_SETUPTOOLS = 77
# Asked in a process of its own, which may fail or crash.
PROBE = """
import json, torch
properties = torch.cuda.get_device_properties(0)
print(json.dumps({
    "torch": torch.__version__,
    "torch cuda": torch.version.cuda,
    "device": torch.cuda.get_device_name(0),
    "capability": "%d.%d" % torch.cuda.get_device_capability(0),
    "memory": properties.total_memory,
    "multiprocessors": properties.multi_processor_count,
    "L2": getattr(properties, "L2_cache_size", None),
}))
"""


class Unfit(Exception):
    """Why nothing can be run here."""


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def install_wheels(folder: Path, site: Path) -> str:
    """Install the wheels of a folder into `site`, without the network. Return what went wrong, or nothing."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        return ""
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", site, *wheels], capture_output=True, text=True)
    sys.path.insert(1, str(site))
    importlib.invalidate_caches()
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""


def missing() -> list[str]:
    """Names of what is needed and not there."""
    names = [name for name in NEEDED if not is_there(name)]
    names += [name for name in ("cmake", "ninja") if not (is_there(name) or shutil.which(name))]
    if not any(map(shutil.which, (os.environ.get("CXX", "c++").split()[0], "c++", "g++", "clang++"))):
        names.append("a C++ compiler")
    if "setuptools" not in names:
        version = importlib.metadata.version("setuptools")
        if int(re.match(r"\d+", version)[0]) < OLDEST_SETUPTOOLS:  # type: ignore[index]
            names.append(f"setuptools>={OLDEST_SETUPTOOLS} (here: {version})")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        names.append("Python.h")
    return names


def find_nvcc() -> str:
    """The nvcc that the build would take: setup.py looks for it."""
    setup = importlib.import_module("setup")
    faults = {nvcc: setup.nvcc_fault(nvcc) for nvcc in setup.find_nvccs()}
    if usable := [nvcc for nvcc, fault in faults.items() if not fault]:
        return str(usable[0])
    raise Unfit("missing: " + (next(iter(faults.values()), "") or "nvcc, also in the usual toolkit folders"))


def find_tool(name: str, nvcc: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, beside nvcc, or where Nsight Compute is installed."""
    folders = [Path(nvcc).resolve().parent, Path(nvcc).parent]
    folders += [folder / "bin" for folder in newest_first("/usr/local", "cuda*")]
    folders += newest_first("/opt/nvidia/nsight-compute", "*")
    candidates = [name, *(str(folder / name) for folder in folders)]
    return next(filter(None, map(shutil.which, candidates)), None)


def newest_first(folder: str, pattern: str) -> list[Path]:
    return sorted(Path(folder).glob(pattern), reverse=True)


def probe() -> dict[str, Any]:
    """PyTorch and its GPU."""
    done = subprocess.run([PYTHON, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise Unfit(f"no CUDA GPU that this PyTorch can use: {said}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"card": card(found["device"])}


def card(device: str) -> str:
    """The short name that keeps timings apart: H100 and H200 are the SXM modules of that name.

    Other forms of them have other clocks or memory. They keep their full name, as every other GPU does.
    """
    name = device.removeprefix("NVIDIA ").strip()
    match = re.match(r"(H100|H200)\b", name)
    if match is None or re.search(r"PCIe|NVL|MIG", name):
        return name
    return match[1]


def driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.strip().splitlines()[0] if done.returncode == 0 else None
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None


def commit() -> str | None:
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu() -> Iterator[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            yield from (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except OSError:
        pass
    yield platform.processor() or platform.machine()


def describe(nvcc: str) -> dict[str, Any]:
    """The machine, without its GPU."""
    version = importlib.import_module("setup").nvcc_version(nvcc)
    return {
        "commit": commit(),
        "cpu": next(cpu()),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nvcc": version,
        "driver": driver(),
        "missing": [name for name in HELPFUL if not is_there(name)],
    }
