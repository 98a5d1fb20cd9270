"""Folders: the checkout, the cache of prepared inputs, the results."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mach_ext" / "benchmarks"
