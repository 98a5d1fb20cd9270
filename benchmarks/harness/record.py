"""What every result records, and where it is kept."""

from __future__ import annotations

import contextlib
import json
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mach_ext import _ops


def keep(config: Any, result: dict[str, Any], module: str) -> None:
    """Puts a result into the JSON of its module, and a line of it on the screen."""
    file = config.getoption("--results") / f"{module}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {r["name"]: r for r in json.loads(file.read_text())} if file.exists() else {}
    kept[result["name"]] = result
    file.write_text(json.dumps([kept[name] for name in sorted(kept)], indent=1) + "\n")
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + line(result))


def note(
    request: Any,
    work: str,
    shape: dict[str, Any],
    numbers: dict[str, tuple[float, float | None]],
    **info: Any,
) -> None:
    """Keeps numbers that have an upper bound, or None."""
    ratios = [
        {"ours": "mach_ext", "over": what, "ratio": number}
        | {"target": bound, "at_most": True, "met": bound is None or number < bound}
        for what, (number, bound) in numbers.items()
    ]
    result = {"name": request.node.name, "work": work, "shape": shape, "providers": {}, "ratios": ratios}
    module = Path(request.node.path).stem.removeprefix("bench_")
    keep(request.config, {**result, **info, **circumstances()}, module)


def line(result: dict[str, Any]) -> str:
    rows = "  ".join(f"{name} {row['median'] * 1e3:.4g} ms" for name, row in result["providers"].items())
    ratios = "  ".join(f"{r['over']} / {r['ours']} = {r['ratio']:.3g}" for r in result["ratios"])
    disturbed = " | DISTURBED by others" if result.get("other_processes_cores", 0) > 0.1 else ""
    return f"{result['name']}: {rows} | {ratios}{disturbed}"


def circumstances() -> dict[str, Any]:
    """Versions, instruction set, machine: no names, no paths."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="ascii") as file:
        model = next(text.partition(":")[2].strip() for text in file if text.startswith("model name"))
    return {
        "cpu": model,
        "isa": _ops.cpu_isa(),
        "versions": {name: version(name) for name in ("mach_ext", "torch", "numpy", "scipy")},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
