"""The kept results: CSV files with one row an observation, and the circumstances of each row.

A result is a block of rows that have the same key, such as the name of a test. A block goes into its file in
place of the former block of that key. The new file replaces the old one in one step, so a run that is cut
short loses nothing.
"""

from __future__ import annotations

import contextlib
import csv
import math
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mach_ext import _ops
from mach_ext.data import atomic_path

Row = dict[str, Any]


def write_rows(file: Path, rows: Sequence[Row], key: Sequence[str]) -> None:
    """Puts rows into a CSV file, in place of the rows with the same values of the columns `key`."""
    new = [{name: cell(value) for name, value in row.items()} for row in rows]
    blocks = _blocks(read_rows(file), key) | _blocks(new, key)
    kept = [row for block in blocks.values() for row in block]
    columns = dict.fromkeys(name for row in kept for name in row)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part, open(part, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def _blocks(rows: list[dict[str, str]], key: Sequence[str]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    blocks: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        blocks.setdefault(tuple(row[name] for name in key), []).append(row)
    return blocks


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as text, or none where there is no file."""
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def cell(value: Any) -> str:
    """A value as text.

    Numbers get six significant digits, infinity is empty, and a mapping is written as `name=value
    name=value`.
    """
    if value is None or (isinstance(value, Real) and not math.isfinite(value)):
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={cell(item)}" for name, item in value.items())
    if isinstance(value, Real) and not isinstance(value, (bool, Integral)):
        return f"{value:.6g}"
    return str(value)


def circumstances(folder: Path) -> Row:
    """The column `circumstances` of a row: a number in circumstances.csv.

    That file says on which machine, with which versions and on which day a result was measured.
    """
    file = folder / "circumstances.csv"
    known = read_rows(file)
    now = {"date": datetime.now(timezone.utc).date().isoformat(), "cpu": cpu(), "isa": _ops.cpu_isa()}
    now |= {name: version(name) for name in ("mach_ext", "torch", "numpy", "scipy")}
    for row in known:
        if now.items() <= row.items():
            return {"circumstances": row["id"]}
    number = 1 + max((int(row["id"]) for row in known), default=0)
    write_rows(file, [{"id": number, **now}], ["id"])
    return {"circumstances": number}


def cpu() -> str:
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="ascii") as file:
        return next(text.partition(":")[2].strip() for text in file if text.startswith("model name"))
    return platform.processor() or platform.machine()


def keep(config: Any, module: str, rows: list[Row]) -> None:
    """Keeps the rows of one test in the file of its module, and shows them in one line."""
    folder = config.getoption("--results")
    write_rows(folder / f"{module}.csv", [row | circumstances(folder) for row in rows], ["test", "threads"])
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + line(rows))


def note(
    request: Any, work: str, shape: Row, numbers: dict[str, tuple[float, float | None]], **info: Any
) -> None:
    """Keeps numbers that are no times. Each has an upper bound, or None."""
    row = {"test": short_name(request), "work": work, "shape": shape, "threads": None, "provider": "mach_ext"}
    rows = [
        row | {"over": name, "ratio": number, "at_most": bound} | info
        for name, (number, bound) in numbers.items()
    ]
    keep(request.config, module_name(request), rows)


def short_name(request: Any) -> str:
    """`decode[670K k5]` for `test_decode[2threads-670K k5]`: the threads have a column of their own."""
    return re.sub(r"^test_|\d+threads-?|\[\d+threads\]$", "", request.node.name)


def module_name(request: Any) -> str:
    return Path(request.node.path).stem.removeprefix("bench_")


def line(rows: list[Row]) -> str:
    times = {row["provider"]: row["seconds"] for row in rows if row.get("seconds") is not None}
    shown = "  ".join(f"{name} {seconds * 1e3:.4g} ms" for name, seconds in times.items())
    compared = [row for row in rows if row.get("over")]
    ratios = "  ".join(f"{row['over']} / {row['provider']} = {row['ratio']:.3g}" for row in compared)
    disturbed = " | DISTURBED by others" if rows[0].get("others_cores", 0) > 0.1 else ""
    return f"{rows[0]['test']}: {shown} | {ratios}{disturbed}"


def keep_threats(folder: Path, dataset: str, evaluation: dict[str, Any]) -> None:
    """Keeps what `attack.evaluate` returns in threats.csv, a row a size. Size 0 means clean documents."""
    clean = {"epsilon": 0, "metrics": evaluation["clean"], "random": {}, "size": {}}
    names = ("P@1", "P@3", "P@5", "nDCG@1", "nDCG@3", "nDCG@5")
    rows = []
    for entry in (clean, *evaluation["adversarial"]):
        row = {"dataset": dataset, "threat_model": evaluation["threat_model"], "attack": evaluation["attack"]}
        row |= {"documents": evaluation["documents"], "epsilon": entry["epsilon"]}
        for about, metrics in (("", entry["metrics"]), ("noise ", entry["random"])):
            low, high = metrics.get("P@1 interval", (None, None))
            row |= {about + name: metrics.get(name) for name in names}
            row |= {f"{about}P@1 low": low, f"{about}P@1 high": high}
        sizes = {name: entry["size"].get(name) for name in ("linf", "l2", "l1", "added", "removed")}
        rows.append(row | sizes | circumstances(folder))
    write_rows(folder / "threats.csv", rows, ["dataset", "threat_model"])
