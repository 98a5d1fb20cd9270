"""The harness: providers timed in turn within one run, what every result records, where the real data is.

A benchmark is a pytest test that calls the `compare` fixture once. Its rows go into `results/<module>.csv` as
soon as they are there, in place of the former rows of the same test. So a run of a part
(`make bench ARGS="-k 31K"`) renews that part.
"""

from harness.interleave import Floor, Part, Target, interleave, num_threads, seconds
from harness.machine import clock, matmul_speed, original_mach, others_seconds, stream_bandwidth
from harness.memory import peak_megabytes
from harness.places import CACHE, RESULTS, ROOT
from harness.record import circumstances, keep, keep_threats, line, module_name, note, short_name, write_rows

__all__ = [
    "CACHE",
    "RESULTS",
    "ROOT",
    "Floor",
    "Part",
    "Target",
    "circumstances",
    "clock",
    "interleave",
    "keep",
    "keep_threats",
    "line",
    "matmul_speed",
    "module_name",
    "note",
    "num_threads",
    "original_mach",
    "others_seconds",
    "peak_megabytes",
    "seconds",
    "short_name",
    "stream_bandwidth",
    "write_rows",
]
