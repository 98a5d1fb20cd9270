"""A head in a folder of its own: what it keeps, damage, kills, and what commands say."""

import json
import re

import numpy as np
import pytest
import torch
from head_cases import SIZES, B, H, L, R, all_equal, build, hidden_of
from helpers import FIXTURES, killed_at
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize, prune

import mach_ext
from mach_ext import cli
from mach_ext._model_folder import named_weights, parameter_shapes, saving, tensors_digest
from mach_ext.data.records import seal

STEP = 0.1  # A head's weights take hidden units, so they are rounded to multiples of a 64th of it.
HEADS = sorted(FIXTURES.glob("head_v*"))
# Other values for each place of a record.
WRONG = ({}, [], None, "x", "../x", True, 1.5, -1, 10**30, [[]], {"a": {}})

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::mach_ext.hashing.CollisionWarning"),
]


def head_of(**options):
    """A head with weights unlike those of its seed."""
    head = build(**options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    head.attachments = {
        "labels.json": json.dumps([f"label {i}" for i in range(L)]).encode(),
        "a.bin": b"\0\1",
    }
    return head


def given_table():
    return mach_ext.LabelHash.from_buckets(build(seed=5).hash.buckets.flip(1), B)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def record_of(folder):
    return json.loads((folder / "model.json").read_text())


def write_record(folder, record):
    record.pop("sha256", None)
    (folder / "model.json").write_text(json.dumps(seal(record)))


OPTIONS = {
    "shared": {},
    "per repetition": {"per_repetition": True},
    "another merge and seed": {"merge": "median_prob", "seed": 9},
    "a given table": {"hash": given_table},
    "a hash of another seed": {"hash": lambda: build(seed=9).hash, "seed": 2},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
}


def options_of(name):
    return {key: value() if callable(value) else value for key, value in OPTIONS[name].items()}


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_folder_keeps_a_head(tmp_path, name, adjusted):
    head = head_of(**options_of(name))
    if adjusted and head.merge == "mean_logit":
        head.adjust_logits(range(L), 0.5)
    head.save(tmp_path)
    loaded = mach_ext.load(tmp_path)
    assert type(loaded) is mach_ext.MACHHead
    assert not loaded.training
    assert loaded.configuration() == head.configuration()
    assert loaded.attachments == head.attachments
    assert all_equal([*loaded.state_dict().values()], [*head.state_dict().values()])
    assert loaded.hash == head.hash
    assert loaded.hash.seed == head.hash.seed
    hidden = hidden_of(head, 5).detach()
    if head.bucket_weight.dtype != torch.float16:  # for which the CPU has no kernel
        with torch.no_grad():
            assert all_equal(loaded.topk(hidden, 4), head.topk(hidden, 4))
    before = {file: (tmp_path / file).read_bytes() for file in names(tmp_path)}
    loaded.save(tmp_path)
    assert before == {file: (tmp_path / file).read_bytes() for file in names(tmp_path)}


@pytest.mark.parametrize("name", OPTIONS)
def test_compressed_heads(tmp_path, name):
    """Every weight within half a step of a 64th, in float32. A second time, the same bytes."""
    head = head_of(**options_of(name))
    head.save(tmp_path, quantization_step=STEP)
    loaded = mach_ext.load(tmp_path)
    assert loaded.bucket_weight.dtype == torch.float32
    error = (loaded.bucket_weight.double() - head.bucket_weight.double()).abs().max()
    assert error <= STEP / 128 * 1.01
    assert torch.equal(loaded.bucket_bias, head.bucket_bias.float())
    before = names(tmp_path)
    loaded.save(tmp_path, quantization_step=STEP)
    assert names(tmp_path) == before


def test_a_loaded_head_trains(tmp_path):
    """Its weights lie in the mapped file, which stays as it is."""
    head_of().save(tmp_path)
    before = {file: (tmp_path / file).read_bytes() for file in names(tmp_path)}
    head = mach_ext.load(tmp_path).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = head.loss(hidden_of(head, 4).detach(), [[1], [2, 3], [], [4]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert before == {file: (tmp_path / file).read_bytes() for file in names(tmp_path)}


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("step", [None, STEP])
@pytest.mark.parametrize("name", ["bucket_weight", "bucket_bias"])
@pytest.mark.parametrize("whole", [False, True])
def test_pruned_and_parametrized_weights_are_kept_as_they_are_used(tmp_path, whole, name, step):
    for change in (
        lambda head: parametrize.register_parametrization(head, name, Doubled()),
        lambda head: prune.l1_unstructured(head, name, 0.5),
    ):
        each = mach_ext.MACH(10, L, R, B, hidden_size=H) if whole else head_of()
        change(each.head if whole else each)
        each.save(tmp_path, step)
        loaded = mach_ext.load(tmp_path)
        for kept in ("bucket_weight", "bucket_bias"):
            torch.testing.assert_close(
                getattr(loaded, kept), getattr(each, kept), rtol=0, atol=0 if step is None else STEP / 127
            )


def test_the_record_of_a_head(tmp_path):
    head_of(per_repetition=True).save(tmp_path)
    record = record_of(tmp_path)
    assert record["format"] == 7
    assert record["head"] == {**SIZES, "merge": "mean_logit", "seed": 0, "per_repetition": True}
    assert "model" not in record
    mach_ext.MACH(10, L, R, B, hidden_size=H).save(
        tmp_path
    )  # A model takes its place, and the other way round.
    assert "head" not in record_of(tmp_path)
    assert type(mach_ext.load(tmp_path)) is mach_ext.MACH
    head_of().save(tmp_path)
    assert type(mach_ext.load(tmp_path)) is mach_ext.MACHHead
    assert len(names(tmp_path)) == 4
    shapes = {name: tuple(parameter.shape) for name, parameter in named_weights(build()).items()}
    assert parameter_shapes(build().configuration()) == shapes


# ------------------------------------------------------------------------------------------------ fixtures


def test_there_is_a_head_of_each_format():
    assert [record_of(folder)["format"] for folder in HEADS] == [4, 4]
    assert all(sum(file.stat().st_size for file in folder.iterdir()) < 50_000 for folder in HEADS)


@pytest.mark.parametrize("folder", HEADS, ids=lambda folder: folder.name)
def test_heads_of_former_formats_answer_as_they_did(folder):
    answers = json.loads((folder / "answers.json").read_text())
    head = mach_ext.load(folder)
    hidden = torch.tensor(answers["hidden"])
    if head.per_repetition:
        hidden = hidden.unflatten(1, (head.num_repetitions, head.in_features))
    with torch.no_grad():
        scores, labels = head.topk(hidden, 3)
    label_names = json.loads(head.attachments["labels.json"])
    assert [[label_names[label] for label in row] for row in labels.tolist()] == answers["labels"]
    np.testing.assert_allclose(scores.numpy(), answers["scores"], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------ damaged folders


def places(value, path=()):
    """Every place of a record."""
    if path:
        yield path
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else [])
    ):
        yield from places(part, (*path, key))


@pytest.mark.parametrize("options", [{}, {"per_repetition": True, "hash": given_table}])
def test_other_types_at_every_place_of_a_record(tmp_path, options):
    options = {key: value() if callable(value) else value for key, value in options.items()}
    head_of(**options).save(tmp_path, STEP)
    text = (tmp_path / "model.json").read_text()
    right = mach_ext.load(tmp_path)
    messages, accepted = {}, {}
    for path in places(json.loads(text)):
        for wrong in (*WRONG, ...):
            record = json.loads(text)
            part = record
            for key in path[:-1]:
                part = part[key]
            if wrong is ...:
                del part[path[-1]]
            else:
                part[path[-1]] = wrong
            if path == ("sha256",):
                (tmp_path / "model.json").write_text(json.dumps(record))
            else:
                write_record(tmp_path, record)
            try:
                accepted[path, str(wrong)] = mach_ext.load(tmp_path)
            except ValueError as error:
                messages[path, str(wrong)] = str(error)
    for message in messages.values():
        assert re.search(r"/(model\.json|weights-\w+\.safetensors): ", message)
    for (path, _), head in accepted.items():  # other seeds, other steps, other attachments, own units or not
        assert path[0] in ("attachments", "weights", "hash") or path[-1] in ("seed", "per_repetition")
        if "steps" not in path:
            assert head.bucket_weight.equal(right.bucket_weight)
    assert len(messages) > 10 * len(accepted) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(format=3), "model is missing"),
        (lambda record: record.update(format=8), "format must be 1 to 7 for this mach_ext, got 8"),
        (lambda record: record.update(model=record["head"]), "must have no key 'model'"),
        (lambda record: record["head"].update(encoder="shared"), "must have no key 'encoder'"),
        (lambda record: record["head"].update(merge="mean"), "MACHHead: merge must be one of"),
        (lambda record: record["head"].update(per_repetition=1), "per_repetition must be true or false"),
        (lambda record: record["head"].pop("in_features"), "head.in_features is missing"),
        (lambda record: record["head"].update(in_features=2**61), "weights must have shapes"),
        (lambda record: record["head"].update(num_repetitions=2**61), "weights must have shapes"),
        (lambda record: record["head"].update(num_buckets=2**31 - 1), "weights must have shapes"),
        (lambda record: record["hash"].update(kind="table"), "weights must have shapes"),
        (lambda record: record["weights"].update(sha256="0" * 64), "must carry the digest of the weights"),
        (lambda record: record["attachments"].update({"labels.json": "x"}), "attachments must be"),
    ],
)  # fmt: skip
def test_records_that_are_none(tmp_path, change, message):
    head_of().save(tmp_path)
    record = record_of(tmp_path)
    change(record)
    write_record(tmp_path, record)
    with pytest.raises(ValueError, match=message):
        mach_ext.load(tmp_path)
    head_of().save(tmp_path)  # The next save needs no former record.
    assert mach_ext.load(tmp_path).num_labels == L


def test_a_record_that_was_edited(tmp_path):
    head_of().save(tmp_path)
    record = record_of(tmp_path)
    record["head"]["seed"] = 1
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"model\.json: edited: its contents do not match their SHA-256"):
        mach_ext.load(tmp_path)


@pytest.mark.parametrize("part", ["weights-*", "labels-*", "a-*"])
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing"])
def test_files_that_are_not_those_of_the_record(tmp_path, part, damage):
    head_of().save(tmp_path)
    (file,) = tmp_path.glob(part)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is missing" if damage == "missing" else "truncated or edited"):
        mach_ext.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update(bucket_weight=torch.zeros(R, H + 1, B)), "weights must have shapes"),
        (lambda tensors: tensors.pop("bucket_bias"), "weights must have shapes"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "weights must have shapes"),
        (lambda tensors: tensors.update(bucket_bias=torch.zeros(R, B).double()), "weights must be of one"),
        (lambda tensors: tensors["bucket_weight"].fill_(float("nan")), "bucket_weight: must be finite"),
        (lambda tensors: tensors.update({k: v.int() for k, v in tensors.items()}), "must be one of"),
        (lambda tensors: tensors.update(logit_adjustment=torch.zeros(R, B + 1)), "weights must have shapes"),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_record(tmp_path, change, message):
    head_of().save(tmp_path)
    record = record_of(tmp_path)
    tensors = {name: t.clone() for name, t in load_file(tmp_path / record["weights"]["file"]).items()}
    change(tensors)
    digest = tensors_digest(tensors)
    record["weights"] = {"file": f"weights-{digest[:12]}.safetensors", "sha256": digest}
    save_file(tensors, tmp_path / record["weights"]["file"])
    write_record(tmp_path, record)
    with pytest.raises(ValueError, match=rf"weights-\w+\.safetensors: .*{message}"):
        mach_ext.load(tmp_path)


# ------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        (lambda head: head.bucket_weight.data.fill_(float("inf")), None, "bucket_weight: must be finite$"),
        (lambda head: head.bucket_bias.data.fill_(float("nan")), STEP, "bucket_bias: must be finite and fit"),
        (lambda head: head.attachments.update({"no name": b""}), None, "an attachment must be bytes"),
        (lambda head: head.attachments.update({"a.json": "x"}), None, "an attachment must be bytes"),
        (lambda head: None, 0, "quantization_step must be None or a finite number above 0, got 0"),
        (lambda head: None, 1e4, "bucket_weight: weights must not all be rounded to 0"),
        (lambda head: head.hash.buckets.numpy().fill(B), None, "LabelHash: buckets holds 5"),
    ],
)  # fmt: skip
def test_heads_that_are_not_saved(tmp_path, change, step, message):
    head_of().save(tmp_path / "there")
    before = names(tmp_path / "there")
    head = head_of(hash=given_table())
    change(head)
    for folder in ("there", "new"):
        with pytest.raises(ValueError, match=rf"^(MACHHead\.save: )?{message}"):
            head.save(tmp_path / folder, step)
    assert names(tmp_path / "there") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("broken", ["save_tensors", "write_json"])
def test_a_failed_save_leaves_the_former_head(tmp_path, monkeypatch, broken):
    head_of(seed=1).save(tmp_path)
    before = names(tmp_path)

    def fail(*_):
        raise OSError("full")

    monkeypatch.setattr(saving, broken, fail)
    with pytest.raises(OSError, match="full"):
        head_of(seed=2).save(tmp_path)
    assert names(tmp_path) == before
    assert mach_ext.load(tmp_path).seed == 1


def test_a_save_killed_at_any_step_leaves_a_head_and_the_next_one_cleans_up(tmp_path):
    step = status = 0
    head_of(seed=1).save(tmp_path)
    while True:
        status = killed_at(step, lambda: head_of(seed=2).save(tmp_path))
        assert mach_ext.load(tmp_path).seed in (1, 2)
        head_of(seed=1).save(tmp_path)
        assert len(names(tmp_path)) == 4, step
        if status == 0:
            break
        step += 1
    assert step > 8


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--text", "a"],
        ["evaluate"],
        ["explain", "--text", "a"],
        ["attack"],
        ["compress", "--output", "smaller"],
        ["info"],
    ],
    ids=lambda command: command[0],
)
def test_commands_refuse_a_head_in_one_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    head_of().save("head")
    assert cli.main([*command, "--model-path", "head"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "mach-ext: head: holds a head alone; commands and runs need a whole model\n"
