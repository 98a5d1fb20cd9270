"""Compiled helpers that an operator schema can't carry (csrc/pybind.cpp)."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

# Label indptr, label indices, feature indptr, feature indices, values, N, D, L.
Document = tuple[
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.float32],
    int,
    int,
    int,
]

MAX_LINE: int  # bytes of a line, at most

def parse_xmc(buffer: Buffer, num_threads: int = 0, path: str = "text") -> Document: ...
def parse_lines(
    buffer: Buffer,
    num_features: int = -1,
    num_labels: int = -1,
    first_line: int = 1,
    svmlight: bool = False,
    num_threads: int = 0,
    path: str = "text",
) -> Document: ...
def parse_header(buffer: Buffer, path: str = "text") -> tuple[int, int, int]: ...
def format_lines(
    label_indptr: NDArray[np.int64],
    label_indices: NDArray[np.int32],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
) -> bytes: ...
def build_info() -> dict[str, str | int]: ...
