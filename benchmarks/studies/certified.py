"""How much of P@1 is certified, and how much attacks leave?

Run it by `PYTHONPATH=benchmarks python -m studies.certified`.

The documents are 500 dev documents of wordnet, evenly spread. One model has a hidden layer of 512 and R = 16,
the other is linear MACH with R = 8. They are trained as they are needed (2 epochs, the defaults of `fit`) and
kept in the user's cache. Attacks are PGD (10 steps, goals untargeted and positive), for delete greedy
deletion. The results are in results/certified.csv.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, circumstances, write_rows
from inputs import dataset, trained
from tables import TABLES

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


def study(model: mach_ext.MACH, X: Any, Y: Any, threat: str) -> list[dict[str, Any]]:
    """Certificates and attacks over the grid of a threat model, a row a size."""
    grid = GRIDS[threat]
    start = time.perf_counter()
    certificate = certify.certify(model, X, Y, grid, threat_model=threat).as_dict()
    seconds = time.perf_counter() - start
    kind = attack.Greedy if threat == "delete" else attack.PGD
    attacked: dict[str, list[float]] = {}
    for goal, k in (("untargeted", 5), ("positive", 1)):
        changed = kind(model, threat, goal, k).perturb(X, Y, grid)
        attacked[goal] = [metrics.evaluate(Y, change.predict(5)[1])["P@1"] for change in changed]
    rows = []
    for size, *attacks in zip(certificate["sizes"], *attacked.values(), strict=True):
        low, high = size["robust P@1"]
        row = {"documents": certificate["documents"], "epsilon": size["epsilon"]}
        row |= {f"P@{k}": size[f"P@{k}"] for k in (1, 3, 5)} | {"robust P@1": low, "robust P@1 bound": high}
        row |= {f"{goal} P@1": value for goal, value in zip(attacked, attacks, strict=True)}
        row |= {f"zero P@{k}": certificate["zero"][f"P@{k}"][1] for k in (1, 3, 5)}
        rows.append(row | {"seconds": seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    args = parser.parse_args()
    dev = dataset("wordnet", Path()).dev
    rows = np.linspace(0, dev.X.shape[0] - 1, args.documents).astype(int)
    X, Y = dev.X[rows], dev.Y[rows]
    for name, options in MODELS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mach_ext.CollisionWarning)
            model = trained("wordnet", Path(), **options)
        for threat in GRIDS:
            about = {"threat_model": threat, "model": name}
            rows = [about | row | circumstances(args.results) for row in study(model, X, Y, threat)]
            write_rows(args.results / "certified.csv", rows, list(about))
    print(TABLES["certified"](args.results))


if __name__ == "__main__":
    main()
