"""The formats: how a damaged case is drawn, what the naive reader says, and which real readers there are."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from mach_ext import data
from mach_ext.data import attachments
from mach_ext.data import formats as real

from . import corpus, folders, mutate, mutate_npz
from .naive import Table, json_lines, matrices, npz, records, texts, unpack
from .naive.records import value_of

Files = dict[str, bytes]
Options = dict[str, Any]
Readers = dict[str, Callable[[], Any]]  # by what they are called in a report


class Format(NamedTuple):
    draw: Callable[[random.Random], tuple[Files, Options]]
    naive: Callable[[Files, Options], Any]
    readers: Callable[[dict[str, Path], Options], Readers]
    is_text: bool = True
    most: int = 10**9  # files: few where each takes long
    is_damaged: bool = True  # else every file is to be accepted


def table(split: data.Split) -> Table:
    """A split as the naive readers give it; its structure is checked on the way."""
    X, Y = split.X, split.Y
    for matrix in (X, Y):
        assert matrix.format == "csr"
        assert matrix.dtype == np.float32
        assert matrix.indptr[0] == 0
        assert matrix.indptr[-1] == matrix.indices.size == matrix.data.size
    assert X.shape[0] == Y.shape[0]
    assert (Y.data == 1).all()
    return Table(rows(X), [set(row) for row in rows(Y)], X.shape[1], Y.shape[1])


def rows(matrix: Any) -> list[dict[int, int]]:
    bits = matrix.data.view(np.uint32).tolist()
    indices, indptr = matrix.indices.tolist(), matrix.indptr.tolist()
    found = []
    for start, end in itertools.pairwise(indptr):
        assert indices[start:end] == sorted(set(indices[start:end]))
        found.append(dict(zip(indices[start:end], bits[start:end], strict=True)))
    return found


def unpacked(read: Callable[[bytes], Any]) -> Callable[[Files, Options], Any]:
    """A naive reader of one file, which may be compressed."""
    return lambda files, options: read(*(unpack(name, content) for name, content in files.items()))


def all_unpacked(files: Files) -> Files:
    return {name: unpack(name, content) for name, content in files.items()}


def drawn(make: Callable[[random.Random], Files], *, steps: Any = None, **options: Any) -> Any:
    """Draws files, damages one, compresses one in eight; an option is a choice of values."""

    def draw(rng: random.Random) -> tuple[Files, Options]:
        files = make(rng)
        name = rng.choice(list(files))
        files[name] = mutate.text(rng, files[name], steps) if steps else mutate.text(rng, files[name])
        if rng.random() < 0.125:
            packed_name, packed = mutate.compressed(rng, name, files[name])
            files = {packed_name if old == name else old: content for old, content in files.items()}
            files[packed_name] = packed
        return files, {option: rng.choice(values) for option, values in options.items()}

    return draw


def mutated(rng: random.Random, files: Files, steps: Any) -> Files:
    return {name: mutate.text(rng, content, steps) for name, content in files.items()}


# ------------------------------------------------------------------------------------------- readers


def xmc_readers(paths: dict[str, Path], options: Options) -> Readers:
    (path,) = paths.values()

    def by_blocks() -> Table:
        blocks = [table(block) for block in data.iter_xmc(path, block_bytes=options["block"], num_threads=1)]
        if not blocks:
            whole = table(data.read_xmc(path))
            assert not whole.rows
            return whole
        assert len({(block.columns, block.num_labels) for block in blocks}) == 1
        documents = [document for block in blocks for document in block.rows]
        marked = [found for block in blocks for found in block.labels]
        return Table(documents, marked, blocks[0].columns, blocks[0].num_labels)

    return {
        "read_xmc": lambda: table(data.read_xmc(path, num_threads=1)),
        "read_xmc, threads": lambda: table(data.read_xmc(path, num_threads=options["threads"])),
        "iter_xmc": by_blocks,
    }


def svmlight_readers(paths: dict[str, Path], options: Options) -> Readers:
    based = {None: "auto", 0: True, 1: False}[options["base"]]

    def read(threads: int) -> list[Table]:
        return [
            table(split)
            for split in data.read_svmlight(list(paths.values()), zero_based=based, num_threads=threads)
        ]

    return {"read_svmlight": lambda: read(1), "read_svmlight, threads": lambda: read(options["threads"])}


def deepxml_readers(paths: dict[str, Path], options: Options) -> Readers:
    folder = next(iter(paths.values())).parent
    return {"read_folder (deepxml)": lambda: table(data.read_folder(folder).train)}


def filter_pairs_readers(paths: dict[str, Path], options: Options) -> Readers:
    shape = (corpus.PAIR_ROWS, corpus.PAIR_COLUMNS)

    def read(path: Path) -> list[set[int]]:
        matrix = real.read_pairs(path, shape)
        assert matrix.shape == shape
        assert (matrix.data == 1).all()
        return [set(row) for row in rows(matrix)]

    return {"read_pairs": lambda: read(*paths.values())}


def jsonl_naive(files: Files, options: Options) -> Any:
    (content,) = all_unpacked(files).values()
    documents = json_lines.read_jsonl(content, options["all labelled"])
    return (list(map(list, zip(*documents, strict=True)))) if options["all labelled"] else documents


def jsonl_readers(paths: dict[str, Path], options: Options) -> Readers:
    (path,) = paths.values()
    if options["all labelled"]:
        return {"read_jsonl": lambda: list(data.read_jsonl(path))}
    return {"iter_jsonl": lambda: list(data.iter_jsonl(path))}


def written_names_readers(paths: dict[str, Path], options: Options) -> Readers:
    """Names of columns, written as a folder and read again."""
    (path,) = paths.values()

    def through(form: str) -> list[str]:
        names = value_of(path.read_bytes())
        matrix = sparse.csr_matrix((1, len(names)), dtype=np.float32)
        dataset = data.Dataset("a", path, data.Split(matrix, matrix), label_names=names, feature_names=names)
        with tempfile.TemporaryDirectory() as folder:
            data.write_folder(Path(folder) / "a", dataset, format=form)
            again = data.read_folder(Path(folder) / "a")
        assert again.label_names == again.feature_names
        return list(again.label_names)

    return {"npz": lambda: through("npz"), "xmc": lambda: through("xmc")}


def vectorizer_of(path: Path) -> tuple[list[str], list[int], str]:
    vectorizer = data.Vectorizer.from_json(path.read_bytes(), source=str(path))
    return vectorizer.vocabulary, vectorizer.idf.view(np.uint32).tolist(), vectorizer.tokens


def contents(paths: dict[str, Path]) -> Files:
    return {name: path.read_bytes() for name, path in paths.items()}


def names_readers(paths: dict[str, Path], options: Options) -> Readers:
    (path,) = paths.values()
    if options["count"] is None:
        return {"read_names": lambda: real.read_names(path)}
    return {"label_names": lambda: attachments.label_names(contents(paths), options["count"])}


JSON_STEPS = (
    mutate.flip_bit,
    mutate.set_byte,
    mutate.truncate,
    *mutate.JSON,
    *mutate.JSON,
    mutate.json_number,
)

FORMATS = {
    "xmc": Format(
        drawn(corpus.xmc, threads=(2, 3, 4), block=(1, 7, 30, 90, 1 << 20)),
        unpacked(matrices.read_xmc),
        xmc_readers,
    ),
    "svmlight": Format(
        drawn(corpus.svmlight, threads=(2, 3, 4), base=(None, None, 0, 1)),
        lambda files, options: matrices.read_svmlight(all_unpacked(files), options["base"]),
        svmlight_readers,
    ),
    "npz": Format(
        lambda rng: (mutate_npz.pair(rng), {}),
        lambda files, options: npz.read_npz(files),
        lambda paths, options: {"read_npz": lambda: table(data.read_npz(*paths.values()))},
        is_text=False,
    ),
    "jsonl": Format(
        drawn(corpus.jsonl, steps=(*mutate.BYTES, *mutate.JSON), **{"all labelled": (False, True)}),
        jsonl_naive,
        jsonl_readers,
    ),
    "names": Format(
        drawn(corpus.names, count=(None, None, None, 1, 2, 3, 4, 5)),
        lambda files, options: texts.read_names(*all_unpacked(files).values(), options["count"]),
        lambda paths, options: {"read_names": lambda: real.read_names(*paths.values(), options["count"])},
    ),
    "texts": Format(
        drawn(corpus.texts, steps=mutate.BYTES),
        unpacked(texts.read_lines),
        lambda paths, options: {"read_lines": lambda: real.read_lines(*paths.values())},
    ),
    "deepxml": Format(
        drawn(corpus.deepxml),
        lambda files, options: matrices.read_deepxml(all_unpacked(files)),
        deepxml_readers,
    ),
    "filter-pairs": Format(
        drawn(corpus.filter_pairs),
        unpacked(lambda content: texts.read_filter_pairs(content, corpus.PAIR_ROWS, corpus.PAIR_COLUMNS)),
        filter_pairs_readers,
    ),
    "model": Format(
        lambda rng: folders.draw(folders.models(), tuple(folders.models()), rng),
        folders.naive_model,
        lambda paths, options: folders.readers(folders.load, paths, options),
        is_text=False,
        most=5000,
    ),
    "checkpoint": Format(
        lambda rng: folders.draw(folders.runs(), ("stopped", "ended"), rng),
        folders.naive_run,
        lambda paths, options: folders.readers(folders.resume, paths, options),
        is_text=False,
        most=1000,
    ),
    "vectorizer": Format(
        lambda rng: (mutated(rng, corpus.vectorizer(rng), JSON_STEPS), {}),
        lambda files, options: records.read_vectorizer(*files.values()),
        lambda paths, options: {"from_json": lambda: vectorizer_of(*paths.values())},
    ),
    "json-names": Format(
        lambda rng: (
            mutated(rng, corpus.json_names(rng), JSON_STEPS),
            {"count": rng.choice((None, None, 1, 2, 3, 4))},
        ),
        lambda files, options: records.read_names(*files.values(), options["count"]),
        names_readers,
    ),
    "written-names": Format(
        lambda rng: (corpus.written_names(rng), {}),
        lambda files, options: records.read_names(*files.values(), None),
        written_names_readers,
        is_damaged=False,
    ),
    "run-record": Format(
        lambda rng: (mutated(rng, corpus.run_record(rng), JSON_STEPS), {}),
        lambda files, options: records.read_run(*files.values()),
        lambda paths, options: {"run_record": lambda: repr(attachments.run_record(contents(paths)))},
    ),
    "label-counts": Format(
        lambda rng: (mutate_npz.counts(rng, corpus.LABELS), {}),
        lambda files, options: records.read_counts(*files.values(), corpus.LABELS),
        lambda paths, options: {
            "label_counts": lambda: attachments.label_counts(contents(paths), corpus.LABELS).tolist()
        },
        is_text=False,
    ),
}
