"""What the programs of a run leave behind, read into the entries of summary.json.

Every reader takes files that may be missing or cut short.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

MOST_FAILURES = 40  # named in summary.json; the log has the others
REFUSED = {  # what a tool says, and what it means
    "Device not supported": "compute-sanitizer does not work on this machine: it refuses the device",
    "ERR_NVGPUCTRPERM": "the driver does not permit performance counters to this user",
    "LibraryNotLoaded": "the profiler cannot be loaded on this machine",
    "Failed to initialize the profiler": "the profiler cannot be started on this machine",
}
ERRORS = re.compile(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: \d+ hazards? displayed \()(\d+) errors?")


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def refusal(text: str) -> dict[str, str]:
    return next(({"note": meaning} for said, meaning in REFUSED.items() if said in text), {})


def tests(file: Path) -> dict[str, Any]:
    """Counts of what recorder.py wrote, and the failures in one line each."""
    records = []
    for line in read(file).splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the line that was being written
            continue
    if not records:
        return {}
    outcomes: dict[str, dict[str, str]] = {}
    for record in records:
        if "test" in record and outcomes.get(record["test"], {}).get("outcome") != "failed":
            outcomes[record["test"]] = record
    counts = {
        outcome: sum(record["outcome"] == outcome for record in outcomes.values())
        for outcome in ("passed", "failed", "skipped")
    }
    failures = [
        {"test": name, "line": record["line"]}
        for name, record in outcomes.items()
        if record["outcome"] == "failed"
    ]
    collected = sum(record.get("collected", 0) for record in records)
    return {"collected": collected, **counts, "failures": failures[:MOST_FAILURES]}


def smoke(log: str) -> dict[str, Any]:
    """The lines of smoke.py: `ok NAME ...` or `FAILED NAME: why`."""
    failures = [
        {"test": name, "line": line.strip()}
        for name, line in re.findall(r"^FAILED (\S+): (.*)$", log, re.MULTILINE)
    ]
    passed = len(re.findall(r"^ok ", log, re.MULTILINE))
    return {"passed": passed, "failed": len(failures), "failures": failures[:MOST_FAILURES]}


def sanitizer(log: str) -> dict[str, Any]:
    """Errors that compute-sanitizer counted, and whether it found those of the planted kernels.

    A checker that finds no planted error has checked nothing, so its silence on our kernels means nothing.
    """
    planted, _, ours = log.partition("=== operators")
    faults = sum(map(int, ERRORS.findall(planted)))
    counted = ERRORS.findall(ours)
    found: dict[str, Any] = {"planted errors found": faults}
    found["errors"] = sum(map(int, counted)) if counted else None
    if faults == 0:
        found["note"] = "no planted error was found: what this tool says of the operators means nothing"
    elif not counted:
        found["note"] = "the checker did not come to its end"
    return found | refusal(log)


def counters(log: str) -> list[dict[str, str]]:
    """The CSV that ncu prints after its own lines: one row a metric, put together by launch."""
    lines = log.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        if row.get("Metric Name") and row.get("Metric Value"):
            launch = launches.setdefault(row["ID"], {"kernel": kernel_name(row.get("Kernel Name") or "")})
            unit = row.get("Metric Unit") or ""
            launch[row["Metric Name"]] = f"{row['Metric Value']} {unit}".strip()
    return list(launches.values())


def kernel_name(signature: str) -> str:
    """`scan_kernel<(bool)1>` of `void mach::(anonymous namespace)::scan_kernel<(bool)1>(mach::Scan)`."""
    match = re.search(r"\w+_kernel(<.*?>)?(?=\(|$)", signature)
    return match[0] if match else signature


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none where there is no file."""
    return list(csv.DictReader(read(file).splitlines()))


def ceilings(file: Path) -> dict[str, float]:
    return {row["resource"]: float(row["per_second"]) for row in rows(file) if row.get("per_second")}
