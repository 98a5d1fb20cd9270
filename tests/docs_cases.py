"""Small data for the pages of docs/: what their hidden setup blocks import."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import mach_ext
from mach_ext import data

# A label and the words that its documents use.
ANIMALS = {
    "dog": "barks tail fetches bone puppy leash",
    "cat": "purrs tail whiskers mouse kitten claws",
    "lion": "roars mane savanna pride claws tawny",
    "horse": "gallops mane saddle hooves hay rider",
    "whale": "swims ocean spout deep fins giant",
    "shark": "swims ocean teeth deep fins gills",
    "eagle": "flies wings feathers talons nest soars",
    "owl": "flies wings feathers night hoots nest",
}
GROUPS = {
    "pet": ("dog", "cat"),
    "mammal": ("dog", "cat", "lion", "horse", "whale"),
    "predator": ("lion", "shark", "eagle", "owl"),
    "sea animal": ("whale", "shark"),
    "bird": ("eagle", "owl"),
}


def animals(folder, train=400, test=80, seed=0):
    """Writes train.jsonl and test.jsonl: texts about animals, labelled with the animal and its groups."""
    rng, folder = np.random.default_rng(seed), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        lines = []
        for _ in range(count):
            animal = str(rng.choice([*ANIMALS]))
            words = " ".join(rng.choice(ANIMALS[animal].split(), 4, replace=False))
            labels = [animal, *(group for group, members in GROUPS.items() if animal in members)]
            lines.append(json.dumps({"text": f"an animal that {words}", "labels": labels}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def need_transformers():
    """Skips the rest of the page where transformers is not installed: the dev extra brings it."""
    pytest.importorskip("transformers", reason="transformers is not installed: `pip install -e .[dev]`")


def need_wordnet():
    """Skips the page where the dataset wordnet is not in the data folder: building it takes the network."""
    if not (data.data_home() / "wordnet").is_dir():
        pytest.skip("the dataset wordnet is not there: mach-ext data fetch --dataset wordnet")


def wordnet_run(folder):
    """Copies the run of docs/tutorials/first-model.md to a folder; it is trained once for all pages."""
    need_wordnet()
    shutil.copytree(Path(_trained().name) / "quick", folder)


@functools.cache
def _trained():
    """A temporary folder with the run."""
    folder = tempfile.TemporaryDirectory()
    sizes = {"num_repetitions": 4, "num_buckets": 512, "hidden_size": 128}
    mach_ext.train("wordnet", output=f"{folder.name}/quick", epochs=2, progress=False, **sizes)
    return folder
