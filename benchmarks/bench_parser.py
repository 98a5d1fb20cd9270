"""The XMC text parser on eurlex57k's train file, in memory, beside scikit-learn and a plain Python loop."""

import io

import pytest

from mach_ext import _C
from mach_ext.data.formats import read_bytes


@pytest.fixture(scope="module")
def text(real_data):
    return read_bytes(real_data / "eurlex57k" / "train.txt.xz")


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


PROVIDERS = {
    "mach_ext 1 thread": lambda text: _C.parse_xmc(text, num_threads=1, path="train"),
    "mach_ext 2 threads": lambda text: _C.parse_xmc(text, num_threads=2, path="train"),
    "scikit-learn": scikit_learn,
    "python loop": python_loop,
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_parse_xmc(benchmark, record, text, provider):
    rounds = 5 if provider.startswith("mach_ext") else 2
    benchmark.pedantic(PROVIDERS[provider], args=(text,), rounds=rounds, warmup_rounds=1 if rounds > 2 else 0)
    record(len(text), provider=provider)
