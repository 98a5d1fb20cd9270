"""How much of P@1 is certified, and how much attacks leave?

Run: PYTHONPATH=benchmarks python -m studies.certified

500 dev documents of wordnet, evenly spread, and two models: a hidden layer of 512, R = 16, and linear MACH,
R = 8, trained as they are needed (2 epochs, the defaults of `fit`) and kept in the user's cache. Attacks are
PGD (10 steps, goals untargeted and positive), for delete greedy deletion. Results: results/certified.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import table
from harness import RESULTS, circumstances
from inputs import dataset, trained

import mach_ext
from mach_ext import attack, certify, metrics

MODELS: dict[str, dict[str, Any]] = {
    "hidden 512, R = 16": {},
    "linear, R = 8": {"num_repetitions": 8, "hidden_size": 0},
}
GRIDS = {
    "support": (0, 0.003, 0.01, 0.03, 0.1, 0.3),
    "l1": (0, 0.01, 0.03, 0.1, 0.3, 1),
    "delete": (0, 1, 2, 3),
}


def study(model: mach_ext.MACH, X: Any, Y: Any, threat: str) -> dict[str, Any]:
    """Certificates and attacks over the grid of a threat model."""
    grid = GRIDS[threat]
    start = time.perf_counter()
    certificate = certify.certify(model, X, Y, grid, threat_model=threat).as_dict()
    certificate["seconds"] = time.perf_counter() - start
    kind = attack.Greedy if threat == "delete" else attack.PGD
    for goal, k in (("untargeted", 5), ("positive", 1)):
        changed = kind(model, threat, goal, k).perturb(X, Y, grid)
        for size, perturbation in zip(certificate["sizes"], changed, strict=True):
            size[f"attacked P@1, {goal}"] = metrics.evaluate(Y, perturbation.predict(5)[1])["P@1"]
    return certificate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    args = parser.parse_args()
    dev = dataset("wordnet", Path()).dev
    rows = np.linspace(0, dev.X.shape[0] - 1, args.documents).astype(int)
    X, Y = dev.X[rows], dev.Y[rows]
    results: dict[str, dict[str, Any]] = {}
    for name, options in MODELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mach_ext.CollisionWarning)
            model = trained("wordnet", Path(), **options)
        for threat in GRIDS:
            results[f"{threat}, {name}"] = study(model, X, Y, threat)
            record = {**circumstances(), "results": results}
            (args.results / "certified.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table.certified(args.results))


if __name__ == "__main__":
    main()
