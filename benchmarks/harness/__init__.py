"""The harness: providers timed in turn within one run, what every result records, where the real data is.

A benchmark is a pytest test that calls the `compare` fixture once. Its result goes into
`results/<module>.json` as soon as it is there, in place of the former one of the same name, so a run of a
part (`make bench ARGS="-k 31K"`) renews that part.
"""

from harness.interleave import Floor, Part, Target, interleave, num_threads, seconds
from harness.machine import clock, matmul_speed, original_mach, others_seconds, stream_bandwidth
from harness.memory import peak_megabytes
from harness.places import CACHE, RESULTS, ROOT
from harness.record import circumstances, keep, line, note

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
    "line",
    "matmul_speed",
    "note",
    "num_threads",
    "original_mach",
    "others_seconds",
    "peak_megabytes",
    "seconds",
    "stream_bandwidth",
]
