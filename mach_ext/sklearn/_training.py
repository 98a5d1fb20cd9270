"""A model for documents and labels, by the rules of `mach_ext.train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from mach_ext import data, training
from mach_ext.data import HybridMatrix
from mach_ext.data.matrices import Csr
from mach_ext.distributed.part import ModelPart
from mach_ext.nn import MACH
from mach_ext.runs.arguments import check_device
from mach_ext.runs.race import CHOICES, Race, run_race
from mach_ext.runs.recipe import SETTINGS, Recipe

# Parameters of the estimator that are arguments of `Recipe` under the same name.
_ARGUMENTS = (
    "num_repetitions", "num_buckets", "hidden_size", "encoder", "merge", "feature_dropout", "hidden_dropout",
    "svm", "C", "repetitions_at_a_time",
)  # fmt: skip


def train_model(
    parameters: Mapping[str, Any], X: Csr | HybridMatrix, Y: Csr
) -> tuple[MACH, training.Progress, Race | None]:
    """Return a trained model, the progress of its training, and the race if there was one.

    Args:
        parameters: The parameters of the estimator.
        X: Documents [N, D], or with dense features.
        Y: Labels [N, L].
    """
    for name in ("holdout", "progress"):
        if not isinstance(parameters[name], (bool, np.bool_)):
            raise TypeError(f"MACHClassifier: {name} must be True or False, got {parameters[name]!r}")
    device, choice, progress = parameters["device"], parameters["choice"], bool(parameters["progress"])
    check_device(device)
    if choice not in CHOICES:
        raise ValueError(f"MACHClassifier: choice must be one of {', '.join(CHOICES)}, got {choice!r}")
    recipe = Recipe(
        **{name: parameters[name] for name in _ARGUMENTS},
        seed=_seed(parameters["random_state"]),
        hyperparameters={name: parameters[name] for name in SETTINGS if name != "seed"},
    )
    sparse, dense = (X.sparse, X.dense) if isinstance(X, HybridMatrix) else (X, None)
    dataset = data.Dataset("y", Path(), data.Split(sparse, Y, dense=dense))
    if parameters["holdout"]:
        dataset = data.hold_out(dataset)
    race = run_race(recipe, dataset, device, progress) if choice == "race" else None
    recipe = recipe.with_solver(dataset, device) if race is None else race.applied(recipe)
    model = recipe.model(dataset).to(device)
    return model, recipe.train(ModelPart.alone(model), dataset, progress=progress), race


def _seed(random_state: Any) -> Any:
    """Return an integer as it is. None and a `RandomState` draw a seed."""
    if isinstance(random_state, (int, np.integer)):
        return random_state
    return int(check_random_state(random_state).randint(2**31 - 1))
