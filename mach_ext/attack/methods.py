"""Attacks by their names on the command line."""

from __future__ import annotations

from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.greedy import Greedy
from mach_ext.attack.pgd import PGD
from mach_ext.attack.threats import Delete, Insert, ThreatModel
from mach_ext.nn import MACH

METHODS = ("fgsm", "pgd", "delete", "insert")


def create(
    name: str,
    model: MACH,
    threat: str | ThreatModel,
    goal: str,
    k: int | None,
    seed: int = 0,
    steps: int = 10,
) -> FGSM:
    """An attack by its name on the command line: "fgsm", "pgd", "delete" or "insert" (words).

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> pgd = mach_ext.attack.create("pgd", model, "support", "untargeted", k=5, steps=20)
        >>> pgd.name, pgd.steps
        ('pgd', 20)
    """
    if name in ("delete", "insert"):
        greedy = Greedy(model, threat, goal, k, seed=seed)
        if not isinstance(greedy.threat_model, Delete if name == "delete" else Insert):
            raise ValueError(f"attack: {name!r} is not for the threat model {greedy.threat_model}")
        return greedy
    if name == "pgd":
        return PGD(model, threat, goal, k, steps=steps, seed=seed)
    return FGSM(model, threat, goal, k, seed=seed)
