"""A pytest plugin that writes one line of JSON for each test as soon as it has ended, so a cut loses none.

The first line of a process says how many tests it has to run. $MACH_GPU_RESULTS names the file.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


def write(record: dict[str, Any]) -> None:
    with open(os.environ["MACH_GPU_RESULTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def is_worker(config: Any) -> bool:
    """Whether this is a worker of pytest-xdist. What it does is reported to the process that started it."""
    return hasattr(config, "workerinput")


class Recorder:
    def __init__(self) -> None:
        self.collected = False

    def collected_once(self, count: int) -> None:
        if not self.collected:
            self.collected = True
            write({"collected": count})

    def pytest_collection_finish(self, session: Any) -> None:
        if session.items:
            self.collected_once(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.collected_once(len(ids))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            write({"test": report.nodeid, "outcome": "failed", "line": last_line(str(report.longrepr))})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed or (report.when == "setup" and report.skipped):
            line = reason(report) if report.failed or report.skipped else ""
            seconds = round(report.duration, 2)
            write({"test": report.nodeid, "outcome": report.outcome, "line": line, "seconds": seconds})


def reason(report: Any) -> str:
    """In one line, why a test failed or was skipped."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


def pytest_configure(config: Any) -> None:
    if not is_worker(config):
        config.pluginmanager.register(Recorder())
