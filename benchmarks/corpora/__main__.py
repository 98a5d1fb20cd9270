"""Builds datasets into the data folder: `PYTHONPATH=benchmarks python -m corpora NAME ...`, or `all`.

Without names, it lists the datasets, and says which are built.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import mach_ext
from corpora import NAMES
from mach_ext.data.home import data_home, lock_home


def folder_of(name: str) -> Path:
    return data_home() / name


def prepare(name: str) -> Path:
    """Builds a dataset if it is not there yet, and returns its folder."""
    module = importlib.import_module(f"corpora.{name}")
    folder = folder_of(name)
    with lock_home(folder):
        if not folder.exists():
            mach_ext.data.write_folder(folder, module.build(module.fetch()))
    return folder


def describe(folder: Path) -> str:
    """The sizes of a dataset, as it is loaded."""
    data = mach_ext.data.load(folder)
    train = sum(len(split) for name, split in data.splits.items() if name != "test")
    Y, X, test = data.train.Y, data.train.X, len(data.test or ())
    per_label = Y.nnz / len({*Y.indices.tolist()})
    return (
        f"{data.name}\t{folder}\ttrain {train:,} (with dev), test {test:,}, D {data.num_features:,}, "
        f"L {data.num_labels:,}, labels/doc {Y.nnz / len(data.train):.1f}, docs/label {per_label:.1f}, "
        f"nnz/doc {X.nnz / len(data.train):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m corpora")
    parser.add_argument("names", nargs="*", choices=[*NAMES, "all", []], metavar="NAME")
    names = parser.parse_args().names
    if not names:
        for name in NAMES:
            print(f"{name}\t{folder_of(name) if folder_of(name).exists() else 'not built'}")
    for name in NAMES if "all" in names else names:
        print(describe(prepare(name)), flush=True)


if __name__ == "__main__":
    main()
