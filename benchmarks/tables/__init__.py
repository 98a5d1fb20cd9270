"""The tables of the documents, each made from the kept results: name -> Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tables import accuracy, faithfulness, race, robustness, scale, speed

TABLES: dict[str, Callable[[Path], str]] = {
    "adjusted": accuracy.adjusted,
    "benchmarks": speed.benchmarks,
    "certified": robustness.certified,
    "contenders": race.contenders,
    "embeddings": accuracy.embeddings,
    "faithfulness": faithfulness.faithfulness,
    "half": accuracy.half,
    "defaults": race.defaults,
    "learned_buckets": race.learned_buckets,
    "levers": accuracy.levers,
    "peers": accuracy.peers,
    "prediction": speed.prediction,
    "processes": speed.processes,
    "race": race.race,
    "robustness": robustness.robustness,
    "scale_exchanged": scale.exchanged,
    "scale_measured": scale.measured,
    "scale_plan": scale.plan,
    "scale_prediction": scale.prediction,
    "standing": accuracy.standing,
    "threats": robustness.threats,
}
