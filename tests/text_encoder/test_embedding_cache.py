"""The embedding cache: kills, damaged files, a full disk, several processes, what an entry is found by."""

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import time

import numpy as np
import pytest
import tiny_bert
import torch
from helpers import killed_at

from mach_ext.text_encoder import TextEncoder, _cache
from mach_ext.text_encoder import encoder as encoder_module
from mach_ext.text_encoder._tokens import Corpus

TEXTS = [" ".join(random.Random(i).choices(tiny_bert.WORDS, k=i % 23)) for i in range(120)]


@pytest.fixture
def many_blocks(monkeypatch):
    """A block for each batch, and a batch for each 60 tokens: two long texts or more short ones."""
    monkeypatch.setattr(_cache, "BLOCK_TOKENS", 1)
    monkeypatch.setattr(encoder_module, "_BATCH_TOKENS", {"cpu": 60})


@pytest.fixture
def whole(tiny, tmp_path, many_blocks):
    """The bytes of the embeddings without an interruption."""
    tiny.embed(TEXTS, tmp_path / "whole", progress=False)
    return content(tmp_path / "whole")


def entry(cache):
    """The only folder of a cache."""
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    return folder


def content(cache):
    """The bytes of the embeddings in a cache."""
    return (entry(cache) / "embeddings.npy").read_bytes()


def files(cache):
    """The names of an entry's files."""
    return sorted(file.name for file in entry(cache).iterdir())


def child(function):
    """Runs a function in a process of its own, and returns the process's number."""
    if pid := os.fork():
        return pid
    with contextlib.suppress(BaseException):
        function()
        os._exit(0)
    os._exit(1)


def exit_code(pid):
    """Waits for a process. A killed one has a negative code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def blocks_size(cache):
    """The bytes of the blocks of an entry."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return (entry(cache) / "blocks.partial").stat().st_size
    return 0


# ----------------------------------------------------------------------------------------------- kills


def slowly(work):
    """Work that pauses before each batch, so that a kill finds the moment on a fast machine, too."""
    batch = TextEncoder._batch

    def pausing(*arguments):
        time.sleep(0.03)
        return batch(*arguments)

    TextEncoder._batch = pausing  # in a process of its own
    work()


def test_killed_at_ten_moments(tiny, tmp_path, whole):
    cache, rng, seen = tmp_path / "killed", random.Random(0), []
    size = 4 * tiny.num_dense * len({*TEXTS})
    for target in sorted(rng.sample(range(size), 10)):
        pid = child(lambda: slowly(lambda: tiny.embed(TEXTS, cache, progress=False)))
        until = time.monotonic() + 60
        while blocks_size(cache) <= target and time.monotonic() < until:
            time.sleep(0.003)
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        seen.append(blocks_size(cache))
    assert seen == sorted(seen)
    assert len({*seen}) > 5
    assert not (entry(cache) / "embeddings.npy").exists()
    tiny.embed(TEXTS, cache, progress=False)
    assert content(cache) == whole
    assert files(cache) == ["embeddings.json", "embeddings.npy"]


def test_killed_before_each_change_to_the_folder(tiny, tmp_path, many_blocks):
    texts = TEXTS[:18]
    tiny.embed(texts, tmp_path / "whole", progress=False)
    step, codes = 0, []
    while codes[-1:] != [0]:
        cache = tmp_path / f"{step}"
        codes.append(killed_at(step, lambda cache=cache: tiny.embed(texts, cache, progress=False)))
        again = tiny.embed(texts, cache, progress=False)
        assert content(cache) == content(tmp_path / "whole"), step
        assert files(cache) == ["embeddings.json", "embeddings.npy"], step
        assert again.shape == (18, tiny.num_dense)
        step += 1
    assert {*codes[:-1]} == {9}
    assert step > 10  # blocks, the final file, its record, the end of the blocks


def test_going_on_computes_the_rest_alone(tiny, tmp_path, whole, monkeypatch):
    cache, batch, calls = tmp_path / "cache", TextEncoder._batch, []

    def failing(self, op, corpus, at):
        calls.append(at.start)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return batch(self, op, corpus, at)

    monkeypatch.setattr(TextEncoder, "_batch", failing)
    with pytest.raises(KeyboardInterrupt):
        tiny.embed(TEXTS, cache, progress=False)
    done = calls[:-1]
    tiny.embed(TEXTS, cache, progress=False)
    assert done == [*range(0, 18, 2)]  # two of 24 tokens at a time
    assert calls[10] == 18
    assert calls[10:] == sorted({*calls[10:]})
    assert content(cache) == whole
    calls.clear()
    tiny.embed(TEXTS, cache, progress=False)
    assert calls == []


def test_bar_starts_at_what_is_done(tiny, tmp_path, many_blocks, monkeypatch, capsys):
    bars = []
    monkeypatch.setattr(encoder_module, "progress_bar", lambda *given: bars.append(given) or NoBar())
    assert killed_at(9, lambda: tiny.embed(TEXTS, tmp_path, progress=False)) == 9
    tiny.embed(TEXTS, tmp_path, progress=True)
    ((what, unit, total, done, shown),) = bars
    lengths = sorted((len(tiny.tokenize([text]).input_ids[0]) for text in {*TEXTS}), reverse=True)
    assert (what, unit, shown) == ("embed", "token", True)
    assert total == sum(lengths)
    assert done in [sum(lengths[:n]) for n in range(1, 60)]


class NoBar:
    """A bar that shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        pass


# ----------------------------------------------------------------------------------------------- damage


def half_filled(tiny, cache):
    """The path and the bytes of the blocks of an entry that a kill left at the last change but a few."""
    assert killed_at(25, lambda: tiny.embed(TEXTS, cache, progress=False)) == 9
    path = entry(cache) / "blocks.partial"
    return path, path.read_bytes()


def test_torn_and_damaged_blocks(tiny, tmp_path, whole):
    cache, rng = tmp_path / "cache", random.Random(1)
    path, blocks = half_filled(tiny, cache)
    damaged = [blocks[: rng.randrange(len(blocks))] for _ in range(6)]
    damaged += [blocks[:n] for n in (0, 1, 31, 32, 33)]
    damaged += [blocks + bytes(n) for n in (1, 40, 5000)]  # a file can grow before its contents are there
    for _ in range(6):
        at = rng.randrange(len(blocks))
        damaged.append(blocks[:at] + bytes([blocks[at] ^ 1 << rng.randrange(8)]) + blocks[at + 1 :])
        damaged.append(blocks[:at] + bytes(len(blocks) - at))
    size = 4 * tiny.num_dense * 2 + 32
    damaged.append(blocks[:32] + blocks[32 + size : 32 + 2 * size] * 2)  # a block in the place of another
    folder = path.parent
    for number, blocks in enumerate(damaged):
        for file in folder.iterdir():
            file.unlink()
        path.write_bytes(blocks)
        tiny.embed(TEXTS, cache, progress=False)
        assert content(cache) == whole, number


def test_damaged_entries_are_made_anew(tiny, tmp_path, whole, monkeypatch):
    cache = tmp_path / "cache"
    expected = np.array(tiny.embed(TEXTS, cache, progress=False))
    file, record = entry(cache) / "embeddings.npy", entry(cache) / "embeddings.json"
    bytes_, text = file.read_bytes(), record.read_text()
    edited = json.loads(text) | {"truncated": 7}
    for array, json_text in [
        (bytes_[:-1], text), (bytes_ + b"\0", text), (bytes_[:-1] + b"?", text), (b"", text), (None, text),
        (bytes_, ""), (bytes_, text[:-5]), (bytes_, None), (bytes_, json.dumps(edited)), (None, None),
    ]:  # fmt: skip
        file.write_bytes(array or b"")
        record.write_text(json_text or "")
        for path, given in ((file, array), (record, json_text)):
            if given is None:
                path.unlink()
        assert np.array_equal(tiny.embed(TEXTS, cache, progress=False), expected)
        assert content(cache) == whole
        assert files(cache) == ["embeddings.json", "embeddings.npy"]


def test_blocks_beside_a_whole_entry_are_deleted(tiny, tmp_path):
    tiny.embed(TEXTS[:3], tmp_path, progress=False)
    (entry(tmp_path) / "blocks.partial").write_bytes(b"left by a kill")
    tiny.embed(TEXTS[:3], tmp_path, progress=False)
    assert files(tmp_path) == ["embeddings.json", "embeddings.npy"]


def test_other_blocks_than_planned_do_not_count(tiny, tmp_path, whole, monkeypatch):
    """As after an update of the package that makes larger blocks."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(encoder_module, "_BATCH_TOKENS", {"cpu": 70})
    half_filled(tiny, cache)
    monkeypatch.setattr(encoder_module, "_BATCH_TOKENS", {"cpu": 60})
    tiny.embed(TEXTS, cache, progress=False)
    assert content(cache) == whole


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_full_disk(tiny, tmp_path, whole, share):
    """The system refuses to write beyond a size, in the blocks or in the final file."""
    cache = tmp_path / "cache"
    blocks = 4 * tiny.num_dense * len({*TEXTS})
    limit = int(share * (blocks if share < 1 else len(whole) - 1))

    def embed():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"File too large.*(blocks.partial|embeddings.npy)"):
            tiny.embed(TEXTS, cache, progress=False)

    assert exit_code(child(embed)) == 0
    assert files(cache) == ["blocks.partial"]
    tiny.embed(TEXTS, cache, progress=False)
    assert content(cache) == whole


def test_room_on_the_disk_is_looked_at_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        OSError, match=r"No space left on device: the embeddings take .*, and 1000 bytes are free"
    ):
        tiny.embed(TEXTS, tmp_path, progress=False)
    assert files(tmp_path) == []


def test_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the data folder must be writable"):
        tiny.embed(["a"], tmp_path / "file", progress=False)


# ------------------------------------------------------------------------------------------- processes


def test_processes_wait_for_each_other(tiny, tmp_path, whole):
    cache = tmp_path / "cache"
    pids = [child(lambda: tiny.embed(TEXTS, cache, progress=False)) for _ in range(3)]
    assert [exit_code(pid) for pid in pids] == [0, 0, 0]
    assert content(cache) == whole
    assert files(cache) == ["embeddings.json", "embeddings.npy"]


# ------------------------------------------------------------------------------------- what it is found by


def keys(cache):
    """The names of the entries of a cache."""
    return {path.name for path in cache.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["ab", ""]), (["a", "b"], ["b", "a"]), (["a\n", "b"], ["a", "\nb"]), (["a"], ["a", "a"]),
        (["\ud800"], ["\ufffd"]), (["a\0"], ["a"]), (["é"], ["e\u0301"]),
    ],
)  # fmt: skip
def test_other_texts_have_another_entry(one, other):
    names = [_cache.corpus_key("0" * 64, "float32", texts) for texts in (one, other)]
    assert names[0] != names[1]
    assert all(len(name) == 64 for name in names)


def test_key_is_what_it_says():
    parts = b"mach_ext embeddings 1 DIGEST float32 2\n" + b"\3\0\0\0\0\0\0\0\xc3\xa9a" + bytes(8)
    assert _cache.corpus_key("DIGEST", "float32", ["éa", ""]) == hashlib.sha256(parts).hexdigest()


def test_other_encoders_have_another_entry(tiny_folder, tiny, tmp_path):
    tiny.embed(["a"], tmp_path, progress=False)
    TextEncoder.load(tiny_folder, max_length=9).embed(["a"], tmp_path, progress=False)
    trained = TextEncoder.load(tiny_folder)
    with torch.no_grad():
        next(trained.parameters())[5, 5] += 1e-3
    trained.embed(["a"], tmp_path, progress=False)
    assert len(keys(tmp_path)) == 3


def test_default_folder_is_in_the_data_folder(tiny, data_home):
    tiny.embed(["a cat"], progress=False)
    (name,) = keys(data_home / "embeddings")
    assert name == _cache.corpus_key(tiny.digest, "float32", ["a cat"])
    record = json.loads((data_home / "embeddings" / name / "embeddings.json").read_text())
    assert record["encoder"] == tiny.record()
    array = np.load(data_home / "embeddings" / name / "embeddings.npy")
    assert np.array_equal(array, tiny.encode(["a cat"], progress=False))


def test_embeddings_are_read_only_and_outlive_the_entry(tiny, tmp_path):
    embeddings = tiny.embed(TEXTS, tmp_path, progress=False)
    expected = np.array(embeddings)
    with pytest.raises(ValueError, match="read-only"):
        embeddings[0, 0] = 0
    for file in entry(tmp_path).iterdir():
        file.unlink()
    assert np.array_equal(embeddings, expected)


def test_cut_texts_are_counted_from_the_file_too(tiny, tmp_path):
    texts, remarks = ["cat " * 31, "a", "cat " * 31, "cat " * 30], []
    for _ in range(2):
        tiny.embed(texts, tmp_path, progress=False, remarks=remarks)
    said = "2 of 4 texts were cut, because they have more than max_length=32 tokens"
    assert remarks == [said, said]


def test_no_texts_need_no_file(tiny, tmp_path):
    assert tiny.embed([], tmp_path / "cache", progress=False).shape == (0, tiny.num_dense)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------ blocks


def test_blocks_are_whole_batches(monkeypatch):
    monkeypatch.setattr(_cache, "BLOCK_TOKENS", 100)
    lengths = np.array([30] * 5 + [9] * 20 + [2] * 7)
    corpus = Corpus.__new__(Corpus)
    corpus.lengths = lengths
    batches = corpus.batches(90)
    stops = [batch.stop for batch in batches]
    assert stops == [3, 6, 16, 26, 32]  # 30 30 30, 30 30 9, 10 * 9, 9 * 9 + 2, the rest
    assert [batch.start for batch in batches] == [0, *stops[:-1]]
    assert _cache.block_stops(lengths, batches).tolist() == [6, 26, 32]  # 90 + 69, 90 + 83, 12
    assert [batch.stop for batch in corpus.batches(90, 4)] == [3, 6, 10, 14, 18, 22, 26, 30, 32]
    assert len(corpus.batches(1)) == 32
    corpus.lengths = lengths[:0]
    assert corpus.batches(90) == []
