"""Memory that does not suffice: known beforehand from sizes, said in one form, never a crash."""

import errno
import json
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import TESTS
from safetensors import SafetensorError
from stress import memory

import mach_ext
from mach_ext import _memory, cli, data, nn
from mach_ext import functional as F
from mach_ext._memory import available
from mach_ext._model_folder import tensors

GIB = 1 << 30
ONE_LINE = r"^{}: not enough memory: [^\n]*(KiB|MiB|GiB|TiB|PiB|bytes)[^\n]* can be had; [^\n]+$"


def words(op):
    return ONE_LINE.format(op.replace(".", r"\."))


@pytest.fixture
def little(monkeypatch):
    """A machine with 64 MiB left."""
    monkeypatch.setattr(available, "free_in_heap", lambda: 0)
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: 64 << 20)


# --------------------------------------------------------------------------------------- what can be had


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")
    return folder


def test_a_control_group_leaves_its_limit_less_what_is_used_but_for_page_cache(tmp_path):
    stat = "anon 700\ninactive_file 100\nactive_file 20\nslab_reclaimable 3\nshmem 5"
    group = write(tmp_path / "v2", memory__max=1000, memory__current=900, memory__stat=stat)
    assert available._left_by_group(group, 0) == [1000 - 900 + 123]
    assert available._left_by_group(group, 50) == [223 + 50]
    write(group, **{"memory.swap.max": 40, "memory.swap.current": 10})
    assert available._left_by_group(group, 50) == [223 + 30]
    assert available._left_by_group(write(group, memory__max="max"), 50) == []
    assert available._left_by_group(tmp_path / "none", 50) == []


def test_a_control_group_of_the_first_version_also_limits_memory_and_swap_together(tmp_path):
    stat = "cache 90\ntotal_inactive_file 100\ntotal_active_file 20"
    limit = {"memory.limit_in_bytes": 1000, "memory.usage_in_bytes": 900, "memory.stat": stat}
    group = write(tmp_path / "v1", **limit)
    assert available._left_by_old_group(group, 50) == [220 + 50]
    write(group, **{"memory.memsw.limit_in_bytes": 1010, "memory.memsw.usage_in_bytes": 905})
    assert min(available._left_by_old_group(group, 50)) == 1010 - 905 + 120


@pytest.mark.parametrize(
    ("kind", "line", "mount", "expected"),
    [
        ("cgroup2", "0::/a/b", "31 1 0:1 / /sys rw - cgroup2 cgroup2 rw", ["/sys/a/b", "/sys/a", "/sys"]),
        ("cgroup2", "0::/", "31 1 0:1 / /sys rw shared:4 - cgroup2 none rw", ["/sys"]),
        ("cgroup2", "0::/host/x", "31 1 0:1 /other /sys rw - cgroup2 none rw", ["/sys"]),
        ("cgroup", "4:cpu,memory:/d/x", "3 1 0:1 /d /m rw - cgroup cgroup rw,memory", ["/m/x", "/m"]),
        ("cgroup", "4:cpu:/d", "3 1 0:1 /d /m rw - cgroup cgroup rw,memory", []),
        ("cgroup", "4:memory:/d", "3 1 0:1 /d /m rw - cgroup cgroup rw,cpu", []),
    ],
)
def test_groups_are_found_where_they_are_mounted(tmp_path, kind, line, mount, expected):
    write(tmp_path, cgroup=line, mountinfo=mount)
    assert available._groups(kind, tmp_path) == [Path(path) for path in expected]


def test_a_limit_of_the_process_counts():
    resource = pytest.importorskip("resource")
    size = 1024 * available._numbers(Path("/proc/self/status"))["VmSize"]
    former = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size + 300 * 2**20, former[1]))
        assert 200 * 2**20 < _memory.available_memory() <= 300 * 2**20
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


def test_only_what_cannot_succeed_is_refused(monkeypatch):
    left = {False: GIB, True: 2 * GIB}
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: left[swap])
    monkeypatch.setattr(available, "free_in_heap", lambda: 1 << 20)
    _memory.check_memory("MACH: the weights", GIB, "lower hidden_size")
    short = r"MACH: memory is short: 2.0 GiB for the weights \(D=1,000\), 1.0 GiB"
    with pytest.warns(ResourceWarning, match=short):
        _memory.check_memory("MACH: the weights", 2 * GIB + (1 << 20), "lower hidden_size", D=1000)
    with pytest.raises(MemoryError) as refused:
        _memory.check_memory("MACH: the weights", 5 * 2**40, "lower hidden_size", D=1_000_000, sizes="4,5")
    assert str(refused.value) == (
        "MACH: not enough memory: 5.0 TiB for the weights (D=1,000,000, sizes=4,5), 2.0 GiB can be had; "
        "lower hidden_size"
    )
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


# ------------------------------------------------------------------------------------ sizes, beforehand

HUGE = 10**11


def small_model(**options):
    return mach_ext.MACH(30, 40, **{"num_repetitions": 4, "num_buckets": 16, "hidden_size": 8, **options})


@pytest.mark.parametrize(
    ("op", "named", "call"),
    [
        ("MACH", "hidden_size=100,000,000,000", lambda: mach_ext.MACH(10, 20, hidden_size=HUGE)),
        ("MACH", "hidden_size=8,100,000,000,000", lambda: mach_ext.MACH(10, 20, hidden_size=(8, HUGE))),
        ("MACH", "num_features=100,000,000,000", lambda: mach_ext.MACH(HUGE, 20)),
        ("MACH", "num_buckets=2,000,000,000", lambda: mach_ext.MACH(10, 20, num_buckets=2 * 10**9)),
        ("LabelHash", "num_repetitions=100,000,000,000", lambda: mach_ext.LabelHash(10, 50, HUGE)),
        ("LabelHash", "num_labels=2,000,000,000", lambda: mach_ext.LabelHash(2 * 10**9, 50, 1000)),
        ("label_counts", "L=100,000,000,000", lambda: mach_ext.metrics.label_frequency_bands(
            scipy.sparse.csr_array(([1.0], [5], [0, 1]), shape=(1, HUGE)))),
    ],
)  # fmt: skip
def test_sizes_that_no_machine_has_are_refused_at_once(op, named, call):
    with pytest.raises(MemoryError, match=words(op)) as refused:
        call()
    assert named in str(refused.value)


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_a_model_without_memory_of_its_own_may_have_any_size(default):
    with torch.device(default):
        if default == "meta":
            assert mach_ext.MACH(10**6, 20, hidden_size=10**6).encoder_weight.is_meta
        else:
            with pytest.raises(MemoryError):
                mach_ext.MACH(10**6, 20, hidden_size=10**6)


def rows(count, columns, ones=1):
    at = np.arange(count * ones) % columns
    parts = np.ones(len(at), np.float32), at, np.arange(count + 1) * ones
    return scipy.sparse.csr_matrix(parts, (count, columns))


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("MACH.predict", lambda: small_model().predict(rows(200_000, 30), k=40)),
        ("MACH.predict", lambda: small_model(num_buckets=5000).predict(rows(1000, 30), batch_size=1000)),
        ("LabelHash", lambda: mach_ext.LabelHash(2_000_000, 100, 16)),
        ("LabelHash.diagnostics", lambda: mach_ext.LabelHash(2_000_000, 2**31 - 1, 6).diagnostics()),
        ("fit", lambda: mach_ext.fit(
            mach_ext.MACH(50_000, 40, 4, 64, 200), rows(9, 50_000), rows(9, 40), progress=False)),
        ("fit_svm", lambda: mach_ext.fit_svm(
            small_model(hidden_size=0), rows(1_200_000, 30), rows(1_200_000, 40), progress=False)),
        ("Neighbors", lambda: mach_ext.Neighbors(rows(500_000, 30, 10), rows(500_000, 40))),
        ("integrated_gradients", lambda: mach_ext.explain.integrated_gradients(
            small_model(), rows(1, 30, 5), [0], n_steps=10**7)),
        ("captum_inputs", lambda: mach_ext.explain.captum_inputs(
            small_model(), rows(500_000, 30), labels=list(range(40)))),
        ("FGSM.perturb", lambda: mach_ext.attack.FGSM(
            small_model(num_buckets=2000, hidden_size=0), "dense").perturb(rows(3000, 30), rows(3000, 40))),
        ("certify", lambda: mach_ext.certify.certify(
            small_model(), rows(50_000, 30), rows(50_000, 40), np.arange(1, 50) / 100)),
    ],
)  # fmt: skip
def test_sizes_are_compared_with_what_can_be_had_before_anything_is_done(little, op, call):
    with pytest.raises(MemoryError, match=words(op)):
        call()


# ----------------------------------------------------------------------------------------- errors in words


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (MemoryError(), ""),
        (MemoryError("std::bad_alloc"), ""),
        (RuntimeError("std::bad_alloc"), ""),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                      "4294967296 bytes. Error code 12 (Cannot allocate memory)"), "4.0 GiB"),
        (RuntimeError("merge_topk: not enough memory: 2048 bytes for keys"), "2.0 KiB for keys"),
        (RuntimeError("bucket_svm: out of memory: each thread takes 1024 bytes"), "1.0 KiB"),
        (RuntimeError("unable to mmap 3072 bytes from file <x>: Cannot allocate memory (12)"), "3.0 KiB"),
        (RuntimeError('torch_call_dispatcher("aten::empty", "", stack, 0) API call failed at x'), ""),
        (RuntimeError("aoti_torch_empty_strided(\n  size.size(), &ret) API call failed at ops.h"), ""),
        (RuntimeError("torch_parallel_for(begin, end, grain, f, &task) API call failed at parallel.h"), ""),
        (RuntimeError("Storage size calculation overflowed with sizes=[10000000000, 10000000000]"), ""),
        (RuntimeError("can't start new thread"), ""),
        (SafetensorError("Error while serializing: I/O error: Cannot allocate memory (os error 12)"), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (ImportError("libx.so: failed to map segment from shared object"), ""),
        (zlib.error("Error -4 while decompressing data"), ""),
        (ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum"), ""),
        (RuntimeError("CUDA error: out of memory"), None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "Cannot allocate memory"), None),
        (ValueError("labels.txt: 'Cannot allocate memory' is no label"), None),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), None),
        (zlib.error("Error -3 while decompressing data: incorrect header check"), None),
    ],
    ids=str,
)  # fmt: skip
def test_every_way_of_saying_it_is_recognised(error, shortage):
    assert _memory.memory_shortage(error) == shortage


def test_numpy_says_the_array():
    with pytest.raises(MemoryError) as error:
        np.empty(2**55, np.uint8)
    assert _memory.memory_shortage(error.value).startswith("32.0 PiB for an array with shape")


def test_what_may_be_something_else_counts_only_where_little_is_left(little, monkeypatch):
    errors = SystemError("error return without exception set"), RuntimeError("could not create a primitive")
    assert [_memory.memory_shortage(error) for error in errors] == [None, None]  # 64 MiB are enough for both
    monkeypatch.setattr(available, "available_memory", lambda device="cpu", swap=False: 1 << 20)
    assert [_memory.memory_shortage(error) for error in errors] == ["", ""]


def test_the_function_that_was_called_gives_the_advice():
    @_memory.memory_errors("lower n")
    def inner():
        raise RuntimeError("gather: not enough memory: 1024 bytes for rows")

    @_memory.memory_errors("lower k", "outer")
    def outer():
        inner()

    with pytest.raises(MemoryError, match=r"outer: not enough memory: 1.0 KiB for rows, .*; lower k$"):
        outer()

    @_memory.memory_errors("lower k", "outer")
    def checks():
        _memory.check_memory("inner: a table", 2**60, "lower D")

    with pytest.raises(MemoryError, match=r"inner: .*; lower D$"):  # which knows better
        checks()

    @_memory.memory_errors("lower k", "numbers")
    def numbers():
        yield 1
        raise MemoryError

    with pytest.raises(MemoryError, match=r"numbers: .*; lower k$"):
        list(numbers())


def test_other_errors_pass_unchanged():
    @_memory.memory_errors("lower k")
    def fail(error):
        raise error

    for error in (ValueError("k"), RuntimeError("odd"), KeyboardInterrupt(), torch.OutOfMemoryError("x")):
        with pytest.raises(type(error)) as raised:
            fail(error)
        assert raised.value is error


def step(model, X, Y):
    optimizer = mach_ext.optim.SparseAdam(model.parameters())
    tensors = map(torch.from_numpy, (X.data, X.indices, X.indptr, Y.indices, Y.indptr))
    model.loss(*tensors, sparse_grad=True).backward()
    mach_ext.optim.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def too_much(*_, **__):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1073741824 bytes.")


@pytest.mark.parametrize(
    ("op", "where", "call"),
    [
        ("sparse_linear", "_ops.sparse_linear_now", lambda X, Y: F.sparse_linear(
            torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1]), torch.ones(1, 2))),
        ("MACH.predict", "functional.merge_topk", lambda X, Y: small_model().predict(X)),
        ("MACH.topk", "functional.merge_topk", lambda X, Y: small_model().topk(
            *map(torch.from_numpy, (X.data, X.indices, X.indptr)), 3)),
        ("MACH.save", "_model_folder.tensors._write_tensors", lambda X, Y: small_model().save("new")),
        ("fit", "training.steps.HiddenStep.__call__", lambda X, Y: mach_ext.fit(
            small_model(), X, Y, progress=False)),
        ("votes", "functional.bucket_logits", lambda X, Y: mach_ext.explain.votes(small_model(), X[0], 1)),
        ("PGD.perturb", "_ops.sparse_linear", lambda X, Y: mach_ext.attack.PGD(small_model()).perturb(X, Y)),
        ("SparseAdam.step", "optim.SparseAdam._row_op", lambda X, Y: step(small_model(), X, Y)),
        ("clip_grad_norm_", "optim._with_unique_rows", lambda X, Y: step(small_model(), X, Y)),
        ("evaluate", "_metrics_ranking.check_truth", lambda X, Y: mach_ext.metrics.evaluate(
            Y, np.zeros((9, 1), int), [1])),
    ],
)  # fmt: skip
def test_public_functions_raise_memory_error_and_nothing_else(tmp_path, monkeypatch, op, where, call):
    monkeypatch.chdir(tmp_path)
    X, Y = rows(9, 30, 3), rows(9, 40)
    monkeypatch.setattr(f"mach_ext.{where}", too_much)
    with pytest.raises(MemoryError, match=words(op)) as raised:
        call(X, Y)
    assert "1.0 GiB" in str(raised.value)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_shortage_is_not_taken_for_damage(tmp_path, monkeypatch):
    """What readers say of a file that could not be read for want of memory."""
    model = small_model()
    model.save(tmp_path)
    scipy.sparse.save_npz(tmp_path / "X.npz", rows(9, 30))
    data.write_xmc(tmp_path / "train.txt.gz", rows(9, 30), rows(9, 40))

    def full(*_, **__):
        raise SafetensorError("Error while deserializing: Cannot allocate memory (os error 12)")

    def short(*_, **__):
        raise MemoryError

    monkeypatch.setattr(tensors, "safe_open", full)
    with pytest.raises(MemoryError, match=words("load")):
        mach_ext.load(tmp_path)
    monkeypatch.setattr(tensors, "_write_tensors", full)
    with pytest.raises(MemoryError, match=words("MACH.save")):
        model.save(tmp_path)
    monkeypatch.setattr(np.lib.format, "read_array", short)
    with pytest.raises(MemoryError, match=words(str(tmp_path / "X.npz"))):
        data.read_matrix(tmp_path / "X.npz")
    monkeypatch.setattr("gzip.GzipFile.read", short)
    with pytest.raises(MemoryError, match=words(str(tmp_path / "train.txt.gz"))):
        data.read_xmc(tmp_path / "train.txt.gz")


def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    small_model().save(tmp_path)
    asked = ["info", "--model-path", str(tmp_path)]
    for error in (
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("x.so: failed to map segment from shared object"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(nn, "load", fail)
        assert cli.main(asked) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert memory.SHORTAGE.search(line)
        assert line.startswith("mach-ext: not enough memory: ")
    monkeypatch.setattr(nn, "load", lambda *_: 1 / 0)
    assert cli.main(asked) == 1  # a fault of the program is no shortage
    assert "internal error, ZeroDivisionError" in capsys.readouterr().err


def test_train_refuses_sizes_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    data.write_xmc(tmp_path / "words" / "train.txt", rows(20, 30, 2), rows(20, 40))
    train = ["train", "--dataset", "words", "--no-holdout", "--quiet"]
    for flags, named in (
        (["--hidden-size", "2000000000"], "hidden_size"),
        (["--buckets", "2000000000"], "num_buckets"),
        (["--hash-functions", "2000000000"], "num_repetitions"),
    ):
        assert cli.main([*train, *flags]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert memory.SHORTAGE.search(line)
        assert f"{named}={int(flags[1]):,}" in line
    assert not (tmp_path / "runs").exists()
    few = ["--epochs", "1", "--hash-functions", "8", "--buckets", "8", "--hidden-size", "4"]
    assert cli.main([*train, "--batch-size", "2" + "0" * 9, *few]) == 0  # no more than there are documents


# -------------------------------------------------------------------------------------- for real


PEAKS = """
import ctypes, json, sys, warnings, numpy as np, scipy.sparse, mach_ext
from mach_ext import training

warnings.simplefilter("ignore")

def memory(key):
    return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))

def random(columns, density):
    matrix = scipy.sparse.random(600, columns, density, "csr", np.float32, random_state=0)
    matrix.data[:] = 1
    return matrix

X, Y = random(4000, 0.025), random(20_000, 0.0002)
def work(name, model, **options):
    if name == "predicting, peak":
        model.predict(X, 5)
    else:
        mach_ext.fit(model, X, Y, epochs=1, progress=False, **options)

ratios = {}
for name, sizes, options in json.loads(sys.argv[1]):
    work(name, mach_ext.MACH(4000, 20_000, **sizes), **options)  # libraries load code and caches of their own
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    model = mach_ext.MACH(4000, 20_000, **sizes)
    open("/proc/self/clear_refs", "w").write("5")  # restart the peak
    work(name, model, **options)
    expected = training.expected_memory(model, 256, 100, **options)[name]
    ratios[f"{name} {sizes} {options}"] = (memory("VmHWM") - before) / expected
    del model
print(json.dumps(ratios))
"""


def test_expected_memory_is_what_is_taken(say):
    """Each tensor is a mapping of its own, given back when it is freed: the allocator's habits do not show.

    As glibc has it, what it keeps and how that is cut into pieces made a third of a run's peak come and go.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(64 << 10)}
    wide = {"num_repetitions": 16, "num_buckets": 4000, "hidden_size": 64}
    linear = {"num_repetitions": 4, "num_buckets": 2000, "hidden_size": 0}
    cases = [
        ("predicting, peak", wide, {}),
        ("predicting, peak", {**wide, "merge": "mean_prob"}, {}),
        ("predicting, peak", {**wide, "merge": "mean_logprob"}, {}),
        ("training, peak", wide, {}),
        ("training, peak", wide, {"precision": "bfloat16"}),
        ("training, peak", linear, {}),
    ]
    command = [sys.executable, "-c", PEAKS, json.dumps(cases)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr
    ratios = json.loads(run.stdout)
    say("measured / expected memory: " + ", ".join(f"{ratio:.2f}" for ratio in ratios.values()))
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values()), ratios


def test_operations_at_their_limits():
    """Some of them, at a few limits; `make stress` takes all."""
    few = ["predict split", "load small", "MACH.save small", "data info"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "stress.memory", "--limits", "3", *few],
        capture_output=True, text=True, timeout=600, cwd=TESTS, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].endswith(" 0 other")


def test_faults_at_limits_are_seen(tmp_path):
    """The meter itself: a crash, a traceback, silence, another exit code, a file that stays."""
    crash = memory.outcome(11, "Fatal Python error: Segmentation fault", tmp_path)
    assert crash.startswith("SIGSEGV")
    assert memory.outcome(None, "", tmp_path).startswith("stands still")
    line = "mach-ext: fit: not enough memory: 1.0 GiB can be had; lower batch_size"
    assert memory.outcome(1 << 8, f"remark\n{line}\n", tmp_path) == "short of memory"
    for err in ("", f"{line}\nmore", "Traceback\n" + line, f"{line}\n{line}", "mach-ext: no model"):
        assert memory.outcome(1 << 8, err, tmp_path).startswith("exit 1")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".model.json.1.tmp").touch()
    assert memory.outcome(0, "", tmp_path).startswith("half-written")
