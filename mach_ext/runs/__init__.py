r"""Runs: what the commands of `mach-ext` do, from Python.

A run folder holds a trained model and the record of its data and results.

* `train` makes a run from a dataset. `Run.open` opens an existing run.
* `Run.evaluate`, `Run.predict`, `Run.explain`, `Run.attack` and `Run.compress` do the same as the commands of
  these names.
* `measure_throughput` times each kernel of a model on this machine, as `mach-ext bench` does.
* The other functions serve models that you train yourself. `attachments` keeps what later commands need of
  the data. `load_dataset` and `columns_of` read further files in the same way as the training. `evaluate`
  computes metrics.

Example:
    >>> from pathlib import Path
    >>> from mach_ext import runs
    >>> Path("pets").mkdir()
    >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
    >>> for split in ("train", "test"):
    ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
    >>> run = runs.train("pets", svm=True, merge="mean_logit", progress=False)
    >>> run.folder == runs.RUNS / "pets"  # the default folder
    True
    >>> run.predict("a dog in the garden")[0][0].label
    'dog'
    >>> runs.CANDIDATES  # this many labels of each document are ranked again by neighbors=True
    200
    >>> run.evaluate("test", neighbors=True)["P@1"]
    1.0
"""

from mach_ext.runs.adversarial import AttackSettings, RunAttack
from mach_ext.runs.dataset import load_dataset
from mach_ext.runs.evaluation import CANDIDATES, evaluate
from mach_ext.runs.explanation import RunExplanation
from mach_ext.runs.labels import TrainingLabels
from mach_ext.runs.prediction import Answer, Prediction
from mach_ext.runs.record import (
    attachments,
    columns_of,
    kept_propensity,
    record_of,
    refuse_to_replace,
    weights_digest,
)
from mach_ext.runs.run import RUNS, Run
from mach_ext.runs.throughput import Throughput, measure_throughput
from mach_ext.runs.trainer import train

__all__ = [
    "CANDIDATES",
    "RUNS",
    "Answer",
    "AttackSettings",
    "Prediction",
    "Run",
    "RunAttack",
    "RunExplanation",
    "Throughput",
    "TrainingLabels",
    "attachments",
    "columns_of",
    "evaluate",
    "kept_propensity",
    "load_dataset",
    "measure_throughput",
    "record_of",
    "refuse_to_replace",
    "train",
    "weights_digest",
]
