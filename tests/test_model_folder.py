"""The model folder: writers side by side, kills, hostile records and files. For what it keeps: test_nn.py."""

import errno
import fcntl
import json
import os
import re
import resource
import stat
import threading

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import killed_at
from safetensors.torch import load_file, save_file
from stress.writers import two_writers

import mach_ext
from mach_ext import nn, runs, training
from mach_ext._model_folder import named_weights, parameter_shapes, save_tensors, saving, tensors_digest
from mach_ext.data import atomic_path, atomic_write, attachments
from mach_ext.data.atomic import new_folder
from mach_ext.data.records import seal
from mach_ext.data.temporaries import clear_temporaries

D, L, R, B = 12, 15, 4, 8
X = scipy.sparse.identity(D, np.float32, "csr")
Y = scipy.sparse.csr_matrix(np.eye(D, L))


def build(seed=0, **changes):
    sizes = {"num_repetitions": R, "num_buckets": B, "hidden_size": 6}
    model = mach_ext.MACH(D, L, seed=seed, **(sizes | changes))
    model.attachments = {"labels.json": json.dumps([f"{seed} {i}" for i in range(L)]).encode()}
    return model


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def forge(folder, change=lambda record: None, tensors=None):
    """Changes a saved model, and writes every digest anew."""
    record = json.loads((folder / "model.json").read_text())
    old = folder / record["weights"]["file"]
    if tensors is not None:
        changed = load_file(old)
        tensors(changed)
        digest = tensors_digest(changed)
        record["weights"] |= {"file": f"weights-{digest[:12]}.safetensors", "sha256": digest}
        save_file(
            {name: tensor.clone() for name, tensor in changed.items()}, folder / record["weights"]["file"]
        )
    change(record)
    record.pop("sha256")
    (folder / "model.json").write_text(json.dumps(seal(record)))


# ------------------------------------------------------------------------------------- writers side by side


def test_two_processes_save_into_one_folder_and_a_third_loads(tmp_path):
    assert min(two_writers(tmp_path, 1.5)) > 0


def test_threads_save_into_one_folder(tmp_path):
    models, errors = [build(seed) for seed in range(3)], []

    def save(model):
        try:
            for _ in range(8):
                model.save(tmp_path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert mach_ext.load(tmp_path).seed in range(3)
    assert len(names(tmp_path)) == 3


def in_thread(function):
    """What a function raises in a thread of its own."""
    errors = []

    def call():
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_a_save_beside_a_training_run_is_refused(tmp_path):
    build().save(tmp_path)
    with training.lock_run(tmp_path):
        error = in_thread(lambda: build(1).save(tmp_path))
        build(2).save(tmp_path)  # by the run itself
    assert isinstance(error, ValueError)
    assert str(error) == f"MACH.save: another run is training in {tmp_path}"
    assert mach_ext.load(tmp_path).seed == 2
    assert in_thread(lambda: build(1).save(tmp_path)) is None


def test_a_save_waits_for_another_save(tmp_path, monkeypatch):
    """However long that takes."""
    monkeypatch.setattr("mach_ext.data.locks._QUIET_SECONDS", 0.4)
    inside, go_on = threading.Event(), threading.Event()
    write = saving.save_tensors

    def slow(path, tensors):
        if threading.current_thread() is first:
            inside.set()
            assert go_on.wait(60)
        write(path, tensors)

    monkeypatch.setattr(saving, "save_tensors", slow)
    errors = []
    first = threading.Thread(target=lambda: build(1).save(tmp_path))
    second = threading.Thread(target=lambda: errors.append(in_thread(lambda: build(2).save(tmp_path))))
    first.start()
    assert inside.wait(60)
    second.start()
    second.join(1)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert errors == [None]
    assert mach_ext.load(tmp_path).seed == 2


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    folder = tmp_path / "a"
    with training.lock_run(folder):
        folder.rmdir()
        build().save(folder)
    assert mach_ext.load(folder).seed == 0


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EIO])
def test_file_systems_without_locks(tmp_path, monkeypatch, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".mach_ext-0123456789abcdef.tmp").write_text("perhaps another's")
    build(1).save(tmp_path)
    build(2).save(tmp_path)
    model = build(3)
    mach_ext.fit(model, X, Y, output=tmp_path, epochs=1, progress=False)
    assert torch.equal(mach_ext.load(tmp_path).bucket_weight, model.bucket_weight)
    expected = [".mach_ext", "checkpoint.json", "labels", "model.json", "weights"]
    assert [name.partition("-")[0] for name in names(tmp_path)] == expected


# --------------------------------------------------------------------------------------------------- kills


def test_a_save_killed_at_any_step_leaves_a_model_and_the_next_one_cleans_up(tmp_path):
    step = status = 0
    build(1).save(tmp_path)
    while True:
        status = killed_at(step, lambda: build(2).save(tmp_path))
        assert mach_ext.load(tmp_path).seed in (1, 2)
        build(1).save(tmp_path)
        assert len(names(tmp_path)) == 3, step
        if status == 0:
            break
        step += 1
    assert step > 8


@pytest.mark.parametrize("name", [".mach_ext-0123456789abcdef.tmp", ".mach_ext-0123456789abcdef.journal"])
def test_what_a_dead_process_left_is_cleared(tmp_path, name):
    (tmp_path / name).write_text("half of something")
    (tmp_path / ".mach_ext-notes.tmp").write_text("mine")
    build().save(tmp_path)
    assert len(names(tmp_path)) == 4
    assert (tmp_path / ".mach_ext-notes.tmp").exists()


def test_what_a_live_process_writes_stays(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary, new_folder(tmp_path / "b") as folder:
        temporary.write_text("a")
        clear_temporaries(tmp_path)
        assert temporary.exists()
        assert folder.exists()
    assert names(tmp_path) == ["a.txt", "b"]
    (tmp_path / ".mach_ext-0123456789abcdef.tmp").mkdir()
    with new_folder(tmp_path / "c"):
        pass
    assert names(tmp_path) == ["a.txt", "b", "c"]


# ------------------------------------------------------------------------------------------------- deleting


@pytest.mark.parametrize("sealed_anew", [True, False])
def test_a_record_deletes_nothing_but_files_of_a_model(tmp_path, sealed_anew):
    folder = tmp_path / "model"
    build(1).save(folder)
    theirs = ["labels.txt", ".git", "metrics.json", "run-0123456789ab.json", "../victim-0123456789ab.txt"]
    for name in theirs:
        (folder / name).write_text("mine")
    (folder / "folder-0123456789ab.txt").mkdir()
    record = json.loads((folder / "model.json").read_text())
    record.pop("sha256")
    record["attachments"] |= {f"a{i}.json": name for i, name in enumerate(theirs)}
    (folder / "model.json").write_text(
        json.dumps(seal(record) if sealed_anew else record | {"sha256": "0" * 64})
    )
    assert nn.files_of(folder) == set()
    journal = {"files": ["labels.txt", "../victim-0123456789ab.txt"]}
    (folder / ".mach_ext-0123456789abcdef.journal").write_text(json.dumps(seal(journal)))
    build(2).save(folder)
    assert all((folder / name).read_text() == "mine" for name in theirs)
    assert (folder / "folder-0123456789ab.txt").is_dir()


def test_a_journal_deletes_nothing_that_a_later_format_names(tmp_path):
    build().save(tmp_path)
    journal = {"files": [name for name in names(tmp_path) if name != "model.json"]}
    (tmp_path / ".mach_ext-0123456789abcdef.journal").write_text(json.dumps(seal(journal)))
    forge(tmp_path, lambda record: record.update(format=99))
    with training.lock_run(tmp_path):
        assert {*journal["files"]} < {*names(tmp_path)}
        assert len(names(tmp_path)) == 3


# ----------------------------------------------------------------------------------------- atomic writing


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def umask():
    former = os.umask(0o077)
    yield
    os.umask(former)


def test_permissions_follow_umask_and_stay(tmp_path, umask):
    build().save(tmp_path / "model")
    assert mode(tmp_path / "model") == 0o700
    assert {mode(file) for file in (tmp_path / "model").iterdir()} == {0o600}
    with new_folder(tmp_path / "data") as folder:
        (folder / "a").write_text("a")
    assert mode(tmp_path / "data") == 0o700
    (tmp_path / "model" / "model.json").chmod(0o640)
    os.umask(0o022)
    build(1).save(tmp_path / "model")
    assert mode(tmp_path / "model" / "model.json") == 0o640
    assert [mode(file) for file in (tmp_path / "model").glob("weights-*")] == [0o644]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "target").write_text("mine")
    for name, target in (("link", "target"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
        with atomic_write(tmp_path / name) as file:
            file.write(b"new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "target").read_text() == "mine"


def test_a_waiting_link_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "target").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)  # as if it could be foreseen
    (tmp_path / ".mach_ext-0000000000000000.tmp").symlink_to("target")
    with pytest.raises(FileExistsError, match=r"a\.txt"), atomic_path(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "target").read_text() == "mine"


def test_names_of_any_length(tmp_path):
    with atomic_write(tmp_path / ("é" * 125 + ".json")) as file:  # 255 bytes
        file.write(b"{}")
    assert len(names(tmp_path)) == 1
    with pytest.raises(OSError, match="File name too long"), atomic_write(tmp_path / ("a" * 256)):
        pass
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "a.txt"
    {
        "a folder": path.mkdir,
        "a named pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/null"),
    }[kind]()
    with pytest.raises(ValueError, match=rf"a.txt: must be a regular file, got {kind}"), atomic_path(path):
        pass
    assert names(tmp_path) == ["a.txt"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.txt'"), atomic_path(tmp_path / "nowhere/a.txt"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        build().save(tmp_path / "file")
    with pytest.raises(OSError, match="file/model"):
        build().save(tmp_path / "file" / "model")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("limit", [100, 1000])  # no room for the weights, none for the journal
def test_a_full_disk_leaves_the_former_model_and_nothing_else(tmp_path, limit):
    build(1).save(tmp_path / "there")
    before = names(tmp_path / "there")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
    try:
        for folder in ("there", "new"):
            with pytest.raises(OSError, match=rf"File too large: .*{folder}/"):
                build(2).save(tmp_path / folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert names(tmp_path / "there") == before
    assert mach_ext.load(tmp_path / "there").seed == 1
    assert names(tmp_path) == ["there"]


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for a user who is not root
    message = r"the file is read-only: '.*a\.txt'"
    with pytest.raises(PermissionError, match=message), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == ["a.txt"]


def test_tensor_files_are_those_of_the_library(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.randn(3, 5, generator=generator),
        "a": torch.randn(7, generator=generator).bfloat16(),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "turned": torch.randn(4, 6, generator=generator).T,
        "é": torch.tensor(1.0, dtype=torch.float64),
        "none": torch.empty(0, 4, dtype=torch.float16),
        "ids": torch.arange(4, dtype=torch.int32),
        "c": torch.arange(4),
    }
    save_tensors(tmp_path / "ours", tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    read = load_file(tmp_path / "ours")
    assert tensors_digest(read) == tensors_digest(tensors) == tensors_digest(load_file(tmp_path / "theirs"))
    del tensors["é"]  # which the library spells otherwise
    save_tensors(tmp_path / "ours", tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


# ------------------------------------------------------------------------------------------- sizes claimed


@pytest.mark.parametrize("hidden_size", [0, 6, (5, 7)])
@pytest.mark.parametrize("encoder", ["shared", "independent"])
def test_shapes_are_known_without_a_model(hidden_size, encoder):
    model = build(hidden_size=hidden_size, encoder=encoder)
    shapes = {name: tuple(parameter.shape) for name, parameter in named_weights(model).items()}
    assert parameter_shapes(model.configuration()) == shapes


@pytest.mark.parametrize("step", [None, 0.01])
@pytest.mark.parametrize(
    ("size", "value"),
    [
        ("num_features", 2**40),
        ("num_features", 2**61),
        ("num_repetitions", 2**61),
        ("num_buckets", 2**31 - 1),
        ("hidden_size", [2**61]),
        ("hidden_size", [2**61, 2**61]),
        ("hidden_size", 0),
        ("encoder", "independent"),
    ],
)
def test_nothing_is_allocated_for_sizes_that_the_weights_have_not(tmp_path, monkeypatch, size, value, step):
    build().save(tmp_path, step)
    forge(tmp_path, lambda record: record["model"].update({size: value}))
    for allocating in (("LabelHash",), ("compression", "decode")):
        monkeypatch.delattr(".".join(("mach_ext._model_folder.loading", *allocating)))
    with pytest.raises(ValueError, match=r"weights-.*: weights must have shapes|weights-.*: a step must be"):
        mach_ext.load(tmp_path)


def test_a_label_hash_suits_what_is_known_of_the_labels(tmp_path, monkeypatch):
    build().save(tmp_path)
    forge(tmp_path, lambda record: record["model"].update(num_labels=2**31 - 2))
    monkeypatch.delattr("mach_ext._model_folder.loading.LabelHash")
    with pytest.raises(
        ValueError, match=r"model.json: .*: num_labels must match labels.json, got L=2,147,483,646"
    ):
        mach_ext.load(tmp_path)
    model = build()
    model.attachments = {}
    model.save(tmp_path / "bare")
    forge(tmp_path / "bare", lambda record: record["model"].update(num_labels=2**31 - 2))
    monkeypatch.setattr("mach_ext._memory.available.available_memory", lambda *_, **__: 2**30)
    message = (
        r"load: not enough memory: 32.0 GiB for the label hash of .*bare "
        r"\(num_labels=2,147,483,646, num_repetitions=4\), 1.0 GiB can be had"
    )
    with pytest.raises(MemoryError, match=message):
        mach_ext.load(tmp_path / "bare")


def test_a_table_of_other_labels_is_refused(tmp_path):
    build(hash=mach_ext.LabelHash.from_buckets(mach_ext.LabelHash(L, B, R).buckets, B)).save(tmp_path)
    forge(tmp_path, lambda record: record["model"].update(num_labels=L + 1))
    with pytest.raises(ValueError, match="weights must have shapes"):
        mach_ext.load(tmp_path)
    forge(
        tmp_path,
        lambda record: record["model"].update(num_labels=L),
        lambda tensors: tensors["hash.buckets"].fill_(B),
    )
    with pytest.raises(ValueError, match=r"model.json: .*: LabelHash.from_buckets: .* has bucket 8"):
        mach_ext.load(tmp_path)


# ----------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize(
    "dtype", [torch.complex64, torch.float8_e4m3fn, torch.int32, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("step", [None, 0.01])
def test_weights_of_other_dtypes_are_refused(tmp_path, dtype, step):
    build().save(tmp_path, step)

    def change(tensors):
        for name in tensors:
            if step is None or name.endswith("bias"):
                tensors[name] = tensors[name].to(dtype)

    forge(tmp_path, tensors=change)
    with pytest.raises(
        ValueError, match=r"weights-.*_bias: must be one of float16, bfloat16, float32, float64, got"
    ):
        mach_ext.load(tmp_path)


def cast(model, dtype):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def test_weights_are_of_one_dtype(tmp_path):
    model = build()
    model.bucket_bias.data = model.bucket_bias.data.double()
    with pytest.raises(
        ValueError, match=r"MACH.save: weights must be of one dtype, got torch.float32, torch.float64"
    ):
        model.save(tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"MACH.save: encoder_weight: must be one of float16, .*, got torch.complex64"
    ):
        cast(build(), torch.complex64).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    build().save(tmp_path)
    forge(tmp_path, tensors=lambda tensors: tensors.update(bucket_bias=tensors["bucket_bias"].double()))
    with pytest.raises(ValueError, match=r"weights-.*: weights must be of one dtype, got F32, F64"):
        mach_ext.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_are_finite(tmp_path, dtype, value):
    model = build().to(dtype)
    model.save(tmp_path)
    with torch.no_grad():
        model.bucket_weight[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"MACH.save: bucket_weight: must be finite$"):
        model.save(tmp_path)
    forge(tmp_path, tensors=lambda tensors: tensors["encoder_weight"].view(-1)[3:4].fill_(value))
    with pytest.raises(ValueError, match=r"weights-.*: encoder_weight: must be finite$"):
        mach_ext.load(tmp_path)


@pytest.mark.parametrize("step", [0, -1.0, 1e300])
def test_steps_of_a_forged_record(tmp_path, step):
    build().save(tmp_path, 0.01)
    forge(tmp_path, lambda record: record["weights"]["steps"].update(encoder_weight=step))
    with pytest.raises(
        ValueError, match=r"weights-.*: (a step must be above 0|encoder_weight: must be finite)"
    ):
        mach_ext.load(tmp_path)
    forge(tmp_path, lambda record: record["weights"]["steps"].update(encoder_bias=1.0))
    with pytest.raises(ValueError, match=r"weights-.*: a step must be above 0"):
        mach_ext.load(tmp_path)


# ------------------------------------------------------------------------------------------------- records


def places(value, path=()):
    """Every place of a record."""
    if path:
        yield path
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else [])
    ):
        yield from places(part, (*path, key))


WRONG = ({}, [], None, "x", "../x", True, 1.5, -1, 10**30, [[]], {"a": {}})


def test_other_types_at_every_place_of_a_record(tmp_path):
    build().save(tmp_path, 0.01)
    text = (tmp_path / "model.json").read_text()
    right = mach_ext.load(tmp_path).state_dict()
    messages, accepted = {}, []
    for path in places(json.loads(text)):
        for wrong in (*WRONG, ...):
            (tmp_path / "model.json").write_text(json.dumps(changed(json.loads(text), path, wrong)))
            try:
                state = mach_ext.load(tmp_path).state_dict()
                accepted.append({} if "steps" in path else state)
            except ValueError as error:
                messages[path, str(wrong)] = str(error)
    for message in messages.values():
        assert re.search(r"/(model\.json|weights-\w+\.safetensors): ", message)
    for state in accepted:  # of other seeds, other steps, without attachments
        assert all(
            torch.equal(state[name], right[name]) for name in state if not name.endswith("hash._extra_state")
        )
    assert len(messages) > 20 * len(accepted) > 0


def changed(record, path, value):
    """A record with another value at a place, or without it, under a right digest."""
    part = record
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return record if path == ("sha256",) else seal({k: v for k, v in record.items() if k != "sha256"})


def test_other_keys_in_a_record(tmp_path):
    build().save(tmp_path)
    for change in (
        lambda record: record.update(more=1),
        lambda record: record["model"].update(more=1),
        lambda record: record["hash"].update(more=1),
    ):
        forge(tmp_path, change)
        with pytest.raises(ValueError, match=r"model.json: not a model record: .* must have no key 'more'"):
            mach_ext.load(tmp_path)
        build().save(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b'{"format": "\0"}', b"[" * 100_000,
        b'{"format": 3, "format": 3}', b'{"format": NaN}', b'{"format": 1e999}', b"1" * 5000,
        b'{"format": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
    ],
    ids=lambda content: str(content[:20]),
)  # fmt: skip
def test_text_that_is_no_record(tmp_path, content):
    build().save(tmp_path)
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.json: (not a model record: |format must be)"):
        mach_ext.load(tmp_path)
    assert not nn.is_compressed(tmp_path)
    assert nn.files_of(tmp_path) == set()
    assert runs.weights_digest(tmp_path) is None
    build().save(tmp_path)
    assert mach_ext.load(tmp_path).seed == 0


@pytest.mark.parametrize("part", ["model.json", "weights-*", "labels-*"])
@pytest.mark.parametrize(
    "put",
    [
        lambda file: file.write_bytes(b""),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), os.mkfifo(file)),
        lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
        lambda file: (file.unlink(), file.symlink_to("nowhere")),
        lambda file: file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:]),  # the length of the header
    ],
    ids=["empty", "folder", "pipe", "device", "dangling link", "length"],
)
def test_something_else_in_place_of_a_file(tmp_path, part, put):
    build().save(tmp_path)
    (file,) = tmp_path.glob(part)
    put(file)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        mach_ext.load(tmp_path)


def test_links_to_the_files_are_followed(tmp_path):
    build().save(tmp_path / "store")
    (tmp_path / "model").mkdir()
    for file in (tmp_path / "store").iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    assert mach_ext.load(tmp_path / "model").seed == 0
    build(1).save(tmp_path / "model")
    assert mach_ext.load(tmp_path / "store").seed == 0


# -------------------------------------------------------------------------------------------- attachments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", r"it must be an object, got \[\]"),
        (b"\xff", "must be JSON in UTF-8"),
        (b'{"reader": []}', "reader must be an object"),
        (b'{"propensity": [1]}', "propensity must be a list of 2, got 1"),
        (b'{"train": [1, true]}', r"train.1. must be an integer"),
        (b'{"dataset": 5}', "dataset must be a string"),
    ],
)
def test_run_records_of_other_contents(content, message):
    model = build()
    model.attachments["run.json"] = content
    with pytest.raises(ValueError, match=f"run.json of the model: .*{message}"):
        runs.record_of(model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", b"{}", "it must be a list"),
        ("labels.json", b'["a"]', "must have 15 names, got 1"),
        ("labels.json", b"[" + b"1," * 14 + b"1]", "must be a string"),
        ("features.json", b'["a", "b"]', "must have 12 names, got 2"),
        ("vectorizer.json", b"[" * 100_000, "must be a vectorizer's JSON"),
        (
            "vectorizer.json",
            b'{"type": "tfidf", "vocabulary": ["a"], "idf": [1' + b"0" * 400 + b"]}",
            "vectorizer",
        ),
    ],
)
def test_names_of_other_contents(name, content, message):
    model = build()
    model.attachments[name] = content
    with pytest.raises(ValueError, match=f"{name} of the model: .*{message}"):
        runs.columns_of(model)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4", np.lib.format.magic(1, 0) + b"\x10\0{'descr': 'O'}", b"\x93NUMPY\1\0\xff\xff{"],
)
def test_label_counts_of_other_contents(content):
    model = build()
    model.attachments["label_counts.npy"] = content
    with pytest.raises(ValueError, match=r"label_counts.npy of the model: must be"):
        attachments.label_counts(model.attachments, model.num_labels)


@pytest.mark.parametrize(
    "counts", [np.zeros(L + 1, int), np.zeros(L), -np.ones(L, int), np.zeros((1, L), int)]
)
def test_label_counts_that_are_none(tmp_path, counts):
    model = build()
    np.save(tmp_path / "counts.npy", counts)
    model.attachments["label_counts.npy"] = (tmp_path / "counts.npy").read_bytes()
    with pytest.raises(ValueError, match=r"label_counts.npy of the model: .*must"):
        attachments.label_counts(model.attachments, model.num_labels)
