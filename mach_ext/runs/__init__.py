"""Runs: what `mach-ext` does, from Python. A run folder holds a trained model and what is known of it.

* `train` makes a run of a dataset; `Run.open` opens one.
* `Run.evaluate`, `.predict`, `.explain`, `.attack`, `.compress` do what the commands of these names do.
* `measure_throughput` times each kernel of a model on this machine, as `mach-ext bench` does.
* The functions below them take a model of one's own: `attachments` for what later commands need of the data,
  `load_dataset` and `columns_of` to read further files as the training did, `evaluate` for metrics.
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
