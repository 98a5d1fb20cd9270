"""Models in shards: cut by any number of processes, read by any other, and refused if they are damaged."""

import contextlib
import json
import random
import shutil
import threading

import numpy as np
import pytest
import torch
from distributed_cases import Threads
from helpers import bitwise_equal
from shard_cases import part_of, save_in_parts, slice_of, tensors_of

import mach_ext
from mach_ext import LabelHash
from mach_ext._model_folder import read_model_record, saving, shards
from mach_ext._model_folder.extents import (
    Extent,
    Shard,
    check_shards,
    cut_of,
    entry_of,
    joint_digest,
    part_shapes,
    shard_of,
    whole_extent,
)
from mach_ext._model_folder.record import has_uncut, parameter_shapes
from mach_ext._model_folder.saving import save_part
from mach_ext.data.records import seal
from mach_ext.distributed import Ranks
from mach_ext.distributed.part import _empty_part, extent_of_rank

pytestmark = pytest.mark.usefixtures("one_thread")
D, L, R, B = 17, 12, 5, 7
KINDS = {
    "linear": {"hidden_size": 0},
    "shared": {"hidden_size": 6},
    "shared, two layers": {"hidden_size": (6, 5)},
    "independent": {"hidden_size": 3, "encoder": "independent"},
    "independent, two layers": {"hidden_size": (3, 2), "encoder": "independent"},
    "dense, linear": {"hidden_size": 0, "num_dense": 4},
    "dense, two layers": {"hidden_size": (6, 5), "num_dense": 4},
    "table": {"hidden_size": 6, "hash": "table"},
}
ATTACHED = {"labels.json": json.dumps([*map(str, range(L))]).encode(), "run.json": b"{}"}


def build(kind, seed=0):
    """A model whose numbers are all different."""
    given = dict(KINDS[kind])
    if "hash" in given:
        given["hash"] = LabelHash.from_buckets(LabelHash(L, B, R, seed=5).buckets.flip(1), B)
    model = mach_ext.MACH(D, L, num_repetitions=R, num_buckets=B, **given).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    if model.num_dense:
        model.scale_for_training(
            mach_ext.data.HybridMatrix(np.eye(9, D), np.random.default_rng(1).random((9, 4))), 1.0
        )
    model.adjust_logits(np.arange(L), tau=0.3)
    model.attachments = dict(ATTACHED)
    return model


def documents(model):
    rng = np.random.default_rng(0)
    X = (rng.random((11, D)) < 0.4).astype(np.float32)
    return mach_ext.data.HybridMatrix(X, rng.random((11, 4))) if model.num_dense else X


def assert_same_model(found, expected):
    assert found.configuration() == expected.configuration()
    assert found.attachments == expected.attachments
    assert found.hash.seed == expected.hash.seed
    assert found.hash.buckets.equal(expected.hash.buckets)
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    assert all(bitwise_equal(ours[name], theirs[name]) for name in ours)
    X = documents(expected)
    for a, b in zip(found.predict(X, L), expected.predict(X, L), strict=True):
        np.testing.assert_array_equal(a, b)


def names(folder):
    return sorted(file.name.partition("-")[0] for file in folder.iterdir())


def shard_files(folder):
    return [
        folder / entry["file"]
        for entry in json.loads((folder / "model.json").read_text())["weights"]["shards"]
    ]


def edit(folder, change):
    """Change the record, and seal it as if it had been written so."""
    record = json.loads((folder / "model.json").read_text())
    change(record["weights"])
    record["weights"]["sha256"] = joint_digest(entry["sha256"] for entry in record["weights"]["shards"])
    (folder / "model.json").write_text(json.dumps(seal(record)))


# ------------------------------------------------------------------------------------------------- extents


def test_everything_of_a_model_is_cut_or_in_the_first_part():
    for kind in KINDS:
        given = build(kind).configuration()
        shapes = parameter_shapes(given) | {"logit_adjustment": (R, B)}
        whole = whole_extent(given)
        assert part_shapes(shapes, given, whole) == shapes
        uncut = {name for name in shapes if cut_of(name, given) is None}
        assert uncut == (
            {"hidden_weight", "hidden_bias"} if kind in ("shared, two layers", "dense, two layers") else set()
        )
        assert has_uncut(given) == (bool(uncut) or "dense" in kind)
        for size in range(1, 6):
            held = [
                part_shapes(shapes, given, extent_of_rank(given, Ranks(rank, size))) for rank in range(size)
            ]
            for name, shape in shapes.items():
                parts = [each[name] for each in held if name in each]
                if name in uncut:
                    assert parts == [shape]
                    continue
                dim, _ = cut_of(name, given)
                assert sum(part[dim] for part in parts) == shape[dim]
                assert all(
                    (*part[:dim], *part[dim + 1 :]) == (*shape[:dim], *shape[dim + 1 :]) for part in parts
                )


def test_extents_of_whole_models():
    expected = {"linear": 0, "shared": 6, "independent": 3 * R, "independent, two layers": 3 * R}
    for kind, units in expected.items():
        assert whole_extent(build(kind).configuration()) == Extent(range(R), range(units))
    assert whole_extent({"num_repetitions": 4, "in_features": 3}) == Extent(range(4), range(0))  # a head


def test_entries_of_the_record_are_shards():
    shard = Shard("weights-0123456789ab.safetensors", "0" * 64, Extent(range(2, 5), range(0, 0)))
    assert shard_of(entry_of(shard)) == shard


@pytest.mark.parametrize(
    ("repetitions", "units", "said"),
    [
        ([(0, 2), (3, 5)], [(0, 3), (3, 6)], "must hold all repetitions in order"),  # a gap
        ([(0, 3), (2, 5)], [(0, 3), (3, 6)], "must hold all repetitions in order"),  # twice
        ([(2, 5), (0, 2)], [(0, 3), (3, 6)], "must hold all repetitions in order"),
        ([(0, 2), (2, 4)], [(0, 3), (3, 6)], "must hold 5 repetitions, got 4"),
        ([(0, 2), (2, 6)], [(0, 3), (3, 6)], "must hold 5 repetitions, got 6"),
        ([(0, 2), (2, 5)], [(0, 3), (4, 6)], "must hold all units in order"),
        ([(0, 2), (2, 5)], [(0, 3), (3, 5)], "must hold 6 units, got 5"),
        ([(0, 6), (6, 5)], [(0, 3), (3, 6)], "must hold repetitions from a number to a larger one"),
    ],
)  # fmt: skip
def test_shards_that_make_no_whole_are_refused(tmp_path, repetitions, units, said):
    given = build("shared").configuration()
    made = [
        Shard("file", "", Extent(range(*own), range(*columns)))
        for own, columns in zip(repetitions, units, strict=True)
    ]
    with pytest.raises(ValueError, match=f"^a folder: shards {said}"):
        check_shards("a folder", made, given)

    save_in_parts(build("shared"), tmp_path, 2)

    def change(weights):
        for entry, own, columns in zip(weights["shards"], repetitions, units, strict=True):
            entry["repetitions"], entry["units"] = own, columns

    edit(tmp_path, change)
    with pytest.raises(ValueError, match=f"model.json: not a model record: shards {said}"):
        mach_ext.load(tmp_path)


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("written", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_reads_what_any_other_wrote(tmp_path, kind, written):
    model = build(kind)
    save_in_parts(model, tmp_path, written)
    assert len(shard_files(tmp_path)) == written
    assert names(tmp_path) == sorted(["labels", "model.json", "run", *["weights"] * written])
    assert_same_model(mach_ext.load(tmp_path), model)
    given, tensors = model.configuration(), tensors_of(model)
    for size in range(1, 6):
        for rank in range(size):
            extent = extent_of_rank(given, Ranks(rank, size))
            part = _empty_part(given, extent, Ranks(rank, size), 0)
            part.load_weights(tmp_path)
            for name, held in tensors_of(part.model).items():
                assert bitwise_equal(held, slice_of(name, tensors[name], given, extent)), (size, rank, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_one_file_is_read_in_parts(tmp_path, kind):
    model = build(kind)
    model.save(tmp_path)
    given, tensors = model.configuration(), tensors_of(model)
    for rank in range(3):
        extent = extent_of_rank(given, Ranks(rank, 3))
        part = _empty_part(given, extent, Ranks(rank, 3), 0)
        part.load_weights(tmp_path)
        for name, held in tensors_of(part.model).items():
            assert bitwise_equal(held, slice_of(name, tensors[name], given, extent)), name


@pytest.mark.parametrize(("kind", "files"), [("independent", {2}), ("shared, two layers", {0, 2})])
def test_only_files_that_hold_some_of_a_part_are_read(tmp_path, monkeypatch, kind, files):
    model, read = build(kind), []
    save_in_parts(model, tmp_path, 4)
    reader = shards.read_tensors
    monkeypatch.setattr(shards, "read_tensors", lambda file, *rest: read.append(file) or reader(file, *rest))
    given = model.configuration()
    ranks = Ranks(2, 4)
    _empty_part(given, extent_of_rank(given, ranks), ranks, 0).load_weights(tmp_path)
    assert read == [file for i, file in enumerate(shard_files(tmp_path)) if i in files]


def test_parts_with_the_same_contents_share_a_file(tmp_path):
    model = mach_ext.MACH(D, L, num_repetitions=4, num_buckets=B, hidden_size=0)  # zeros
    model.attachments = dict(ATTACHED)
    save_in_parts(model, tmp_path, 2)
    first, second = shard_files(tmp_path)
    assert first == second
    assert_same_model(mach_ext.load(tmp_path), model.eval())


# ------------------------------------------------------------------------------------------------- writing


def test_a_save_replaces_the_files_of_the_former_one(tmp_path):
    first, second = build("shared"), build("shared", seed=1)
    save_in_parts(first, tmp_path, 3)
    (tmp_path / "notes.txt").write_text("a user's file")
    former = {*shard_files(tmp_path)}
    save_in_parts(second, tmp_path, 2)
    assert not any(file.exists() for file in former)
    assert names(tmp_path) == ["labels", "model.json", "notes.txt", "run", "weights", "weights"]
    assert_same_model(mach_ext.load(tmp_path), second)
    record, kept = (tmp_path / "model.json").read_bytes(), {*shard_files(tmp_path)}
    save_in_parts(second, tmp_path, 2)  # the same once more
    assert (tmp_path / "model.json").read_bytes() == record
    assert all(file.exists() for file in kept)
    mach_ext.load(tmp_path).save(tmp_path)  # in one file
    assert names(tmp_path) == ["labels", "model.json", "notes.txt", "run", "weights"]
    assert_same_model(mach_ext.load(tmp_path), second)
    mach_ext.load(tmp_path).save(tmp_path, 0.01)  # compressed
    save_in_parts(second, tmp_path, 2)
    assert names(tmp_path) == ["labels", "model.json", "notes.txt", "run", "weights", "weights"]
    assert_same_model(mach_ext.load(tmp_path), second)


@contextlib.contextmanager
def failing(monkeypatch, function, rank, error):
    """Let a function of the module that saves fail on one rank."""
    original = getattr(saving, function)

    def fail(*args):
        if threading.current_thread().name == f"rank {rank}":
            raise error
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(saving, function, fail)
        yield


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("has_former", [True, False])
@pytest.mark.parametrize(
    ("function", "rank"),
    [("save_tensors", 0), ("save_tensors", 1), ("lock", 0), ("_write_record", 0), ("_part_tensors", 1)],
)
def test_a_failure_on_one_rank_leaves_the_former_model(
    tmp_path, monkeypatch, size, has_former, function, rank
):
    if has_former:
        build("shared").save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model, raised = build("shared", seed=1), []

    def save(ranks):
        part = part_of(model, ranks)
        with pytest.raises(OSError, match=r"^the disk is full$"):
            save_part("MACH.save", part, tmp_path, ranks.collect)
        raised.append(ranks.rank)
        ranks.barrier()  # Rank 0 may still be removing files.

    with failing(monkeypatch, function, rank, OSError("the disk is full")):
        Threads(size).on_each(save)
    assert sorted(raised) == [*range(size)]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    save_in_parts(model, tmp_path, size)
    assert_same_model(mach_ext.load(tmp_path), model)


def test_weights_that_are_not_finite_are_refused_on_all_ranks(tmp_path):
    model, messages = build("shared"), []
    with torch.no_grad():
        model.bucket_bias[R - 1, 0] = torch.inf  # of the last rank

    def save(ranks):
        try:
            save_part("MACH.save", part_of(model, ranks), tmp_path, ranks.collect)
        except ValueError as error:
            messages.append(str(error))

    Threads(3).on_each(save)
    assert messages == ["MACH.save: bucket_bias: must be finite"] * 3
    assert [*tmp_path.iterdir()] == []


# -------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "shards"
    save_in_parts(build("dense, two layers"), folder, 3)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "shards")


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer", "missing", "folder"])
def test_damaged_shards_are_refused_by_name(folder, number, damage):
    file = shard_files(folder)[number]
    content = file.read_bytes()
    changed = {
        "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "cut": content[:-8], "empty": b"", "longer": content + b"\0",
    }  # fmt: skip
    file.unlink()
    if damage in changed:
        file.write_bytes(changed[damage])
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(ValueError, match=file.name):
        mach_ext.load(folder)
    given = build("dense, two layers").configuration()
    ranks = Ranks(number, 3)
    part = _empty_part(given, extent_of_rank(given, ranks), ranks, 0)
    with pytest.raises((ValueError, FileNotFoundError), match=file.name):
        part.load_weights(folder)


def test_a_flipped_bit_is_refused_or_changes_nothing(folder):
    model, rng = mach_ext.load(folder), random.Random(0)
    refused = 0
    for _ in range(60):
        file = rng.choice([*shard_files(folder), folder / "model.json"])
        content = file.read_bytes()
        bit = rng.randrange(8 * len(content))
        flipped = content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
        file.write_bytes(flipped)
        try:
            assert_same_model(mach_ext.load(folder), model)
        except ValueError as error:
            refused += 1
            assert str(folder) in str(error)  # noqa: PT017
        file.write_bytes(content)
    assert refused > 50


def swap_files(entries):
    for key in ("file", "sha256"):
        entries[0][key], entries[1][key] = entries[1][key], entries[0][key]


def move(field, first, second):
    """Change what the first two shards are said to hold."""

    def change(entries):
        entries[0][field], entries[1][field] = first, second

    return change


SHAPES, NAME = "weights-.*: weights must have shapes", "weights.file must carry the digest"
EDITS = {
    "files swapped": (swap_files, SHAPES),
    "another digest": (lambda entries: entries[1].update(sha256="0" * 64), NAME),
    "another name": (lambda entries: entries[1].update(file="weights-x.safetensors"), NAME),
    "a path": (lambda entries: entries[1].update(file="../other.safetensors"), NAME),
    "left out": (lambda entries: entries.pop(1), "shards must hold all repetitions in order"),
    "the first left out": (lambda entries: entries.pop(0), "shards must hold all repetitions in order"),
    "none": (lambda entries: entries.clear(), "shards must hold 5 repetitions, got 0"),
    "other units": (move("units", [0, 4], [4, 4]), SHAPES),
    "other repetitions": (move("repetitions", [0, 2], [2, 3]), SHAPES),
    "a negative number": (move("repetitions", [-1, 1], [1, 3]), "repetitions"),
    "three numbers": (move("repetitions", [0, 1, 2], [1, 3]), "repetitions"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_records_are_refused(folder, name):
    change, said = EDITS[name]
    edit(folder, lambda weights: change(weights["shards"]))
    with pytest.raises(ValueError, match=said) as refused:
        mach_ext.load(folder)
    assert str(folder) in str(refused.value)


def test_shards_have_no_steps_and_no_file(folder):
    for extra in ({"steps": {"encoder_weight": 0.1}}, {"file": shard_files(folder)[0].name}):
        record = read_model_record(folder)
        record["weights"] |= extra
        other = folder.parent / next(iter(extra))
        shutil.copytree(folder, other)
        (other / "model.json").write_text(json.dumps(seal(record)))
        with pytest.raises(ValueError, match="weights must have a file, or shards without steps"):
            mach_ext.load(other)
