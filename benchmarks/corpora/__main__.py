"""Builds datasets into the data folder: `PYTHONPATH=benchmarks python -m corpora NAME ...`, or `all`.

Without names, it lists the datasets, and says which are built.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from corpora import NAMES
from mach_ext.data import Dataset, data_home, load, write_folder
from mach_ext.data.home import lock_home


def prepare(name: str) -> Path:
    """Builds a dataset if it is not there yet, and returns its folder."""
    module = importlib.import_module(f"corpora.{name}")
    folder = data_home() / name
    with lock_home(folder):
        if not folder.exists():
            write_folder(folder, module.build(module.fetch()))
    return folder


def sizes(data: Dataset) -> tuple[int, int, int, int]:
    """The numbers of training documents with dev, test documents, features and labels."""
    train = sum(len(split) for name, split in data.splits.items() if name != "test")
    return train, len(data.test or ()), data.num_features, data.num_labels


def describe(data: Dataset) -> str:
    """The dataset's sizes as a line."""
    train, test, features, labels = sizes(data)
    X, Y = data.train.X, data.train.Y
    return (
        f"{data.name}\t{data.path}\ttrain {train:,} (with dev), test {test:,}, D {features:,}, L {labels:,}, "
        f"labels/doc {Y.nnz / Y.shape[0]:.1f}, docs/label {Y.nnz / len({*Y.indices.tolist()}):.1f}, "
        f"nnz/doc {X.nnz / X.shape[0]:.1f}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m corpora")
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args(arguments).names
    if unknown := {*names} - {*NAMES, "all"}:
        parser.error(f"a name must be one of {', '.join(NAMES)} or all, got {', '.join(sorted(unknown))}")
    for name in () if names else NAMES:
        print(f"{name}\t{data_home() / name if (data_home() / name).is_dir() else 'not built'}")
    for name in NAMES if "all" in names else names:
        data = load(prepare(name))
        print(describe(data), flush=True)
        expected = importlib.import_module(f"corpora.{name}").SIZES
        if sizes(data) != expected:
            print(f"{name}: the sizes should be {expected}, got {sizes(data)}", file=sys.stderr)


if __name__ == "__main__":
    main()
