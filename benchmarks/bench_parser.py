"""The XMC text parser on eurlex57k's train file, in memory, beside scikit-learn and a plain Python loop."""

import io

import pytest
from harness import Floor, Part, Target

from mach_ext import _C
from mach_ext.data.sources import read_input


@pytest.fixture(scope="module")
def text(real_data):
    return read_input(real_data / "eurlex57k" / "train.txt.xz")


def python_loop(text):
    labels, rows = [], []
    lines = io.BytesIO(text)
    next(lines)
    for line in lines:
        head, _, features = line.rstrip().partition(b" ")
        labels.append([int(label) for label in head.split(b",") if label])
        row = {}
        for pair in features.split():
            feature, _, value = pair.partition(b":")
            row[int(feature)] = float(value)
        rows.append(row)
    return labels, rows


def scikit_learn(text):
    from sklearn.datasets import load_svmlight_file

    lines = io.BytesIO(text)
    next(lines)  # the header
    return load_svmlight_file(lines, multilabel=True, zero_based=True)


def test_parse_xmc(compare, threads, text):
    tenth = text[: text.index(b"\n", len(text) // 10) + 1]  # whole lines
    scale, what = len(text) / len(tenth), "a tenth of the text"
    compare(
        "parse XMC text",
        {
            "mach_ext": lambda: _C.parse_xmc(text, num_threads=threads, path="train"),
            "scikit-learn": Part(lambda: scikit_learn(tenth), scale, what),
            "python loop": Part(lambda: python_loop(tenth), scale, what),
        },
        shape={"bytes": len(text)},
        floor=Floor("the text read once", bytes=len(text)),
        targets=[Target("mach_ext", "scikit-learn", None)],
        rounds=(3, 20),
    )
