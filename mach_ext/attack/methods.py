"""Attacks by their names on the command line."""

from __future__ import annotations

from mach_ext._user_encoder import Encoder
from mach_ext.attack.fgsm import FGSM
from mach_ext.attack.greedy import Greedy
from mach_ext.attack.pgd import PGD
from mach_ext.attack.threats import Delete, Insert, ThreatModel
from mach_ext.head import MACHHead
from mach_ext.nn import MACH

METHODS = ("fgsm", "pgd", "delete", "insert")


def create(
    name: str,
    model: MACH | MACHHead,
    threat: str | ThreatModel,
    goal: str,
    k: int | None,
    seed: int = 0,
    steps: int = 10,
    encoder: Encoder | None = None,
) -> FGSM:
    """Makes an attack by its name on the command line.

    Args:
        name: "fgsm", "pgd", or "delete" or "insert" for words.
        model: The model or head.
        threat: A threat model or its name.
        goal: One of `GOALS`.
        k: Size of the top k in the goals, as in `FGSM`.
        seed: Seed of noise.
        steps: Steps of "pgd".
        encoder: As in `FGSM`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or the attack does not fit the threat model.

    Example:
        >>> import mach_ext
        >>> model = mach_ext.MACH(100, 500, num_repetitions=8, num_buckets=64, hidden_size=16)
        >>> pgd = mach_ext.attack.create("pgd", model, "support", "untargeted", k=5, steps=20)
        >>> pgd.name, pgd.steps
        ('pgd', 20)
    """
    if name in ("delete", "insert"):
        greedy = Greedy(model, threat, goal, k, seed=seed, encoder=encoder)
        if not isinstance(greedy.threat_model, Delete if name == "delete" else Insert):
            raise ValueError(f"attack: {name!r} does not work with the threat model {greedy.threat_model}")
        return greedy
    if name == "pgd":
        return PGD(model, threat, goal, k, steps=steps, seed=seed, encoder=encoder)
    return FGSM(model, threat, goal, k, seed=seed, encoder=encoder)
