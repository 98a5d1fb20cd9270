"""Memory at scale: merge_topk of 10 million labels, a model of as many, steps of many repetitions."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np, torch
from mach_ext import _ops

def peak_mb():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024

N, L, R, B, k = 8, 10_000_000, 16, 20_000, 5
generator = torch.Generator().manual_seed(0)
buckets = torch.randint(0, B, (R, L), dtype=torch.int32, generator=generator)
scores = torch.randn(N, R, B, generator=generator)
scores[4:] = scores[4:].round()  # many equal keys: the order among ties counts
index = _ops.label_index(buckets, B)
_ops.merge_topk(scores[:, :, :10], buckets[:, :100] % 10, None, k, "mean")  # thread pool and allocator warm

open("/proc/self/clear_refs", "w").write("5")  # restart the peak
before = peak_mb()
values, labels = _ops.merge_topk(scores, buckets, index, k, "mean")
print(f"peak memory {peak_mb() - before:.1f} MB beyond the inputs; N x L floats: {N * L * 4 / 2**20:.0f} MB")
assert peak_mb() - before < N * L * 4 / 2**20 / 10

control = torch.ones(L)  # the meter sees one float a label, so it would have seen N x L
assert peak_mb() - before > L * 4 / 2**20 / 2
del control

for path in ("direct", "scan", "lists"):
    for a, b in zip(_ops.merge_topk(scores, buckets, index, k, "mean", path), (values, labels)):
        assert torch.equal(a, b), path
for n in range(N):  # the definition: fp32 sum in the order r = 0 ... R-1, one division; ties by label
    key = np.zeros(L, np.float32)
    for r in range(R):
        row = scores[n, r].numpy()[buckets[r].numpy()]
        key = row if r == 0 else key + row
    key = key / np.float32(R)
    # every label that could be among the first k, then the exact order
    kth = np.partition(key, L - k)[L - k]
    candidates = np.flatnonzero(key >= kth)
    best = candidates[np.lexsort((candidates, -key[candidates]))][:k]
    assert (labels[n].numpy() == best).all(), (n, labels[n], best)
    assert (values[n].numpy().view(np.int32) == key[best].view(np.int32)).all()
print("bitwise equal for", N, "documents")
"""


def test_merge_topk_of_ten_million_labels(say):
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600)
    say(f"merge_topk L=10M R=16 N=8: {run.stdout.strip()}")
    assert run.returncode == 0, run.stderr
    assert "bitwise equal" in run.stdout


MODEL = """
import sys, time, numpy as np, scipy.sparse, mach_ext

def memory_mb(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024

base, started = memory_mb("VmRSS"), time.time()
model = mach_ext.MACH(num_features=50_000, num_labels=10_000_000, num_repetitions=16, num_buckets=20_000,
                      hidden_size=64)
model.save(sys.argv[1])
created = time.time() - started
del model
started = time.time()
model = mach_ext.load(sys.argv[1])
loaded = time.time() - started
X = scipy.sparse.random(8, 50_000, density=0.001, format="csr", dtype=np.float32, random_state=0)
started = time.time()
scores, labels = model.predict(X, k=5)
print(f"created and saved in {created:.1f} s, loaded in {loaded:.1f} s, top-5 of 8 documents in "
      f"{time.time() - started:.1f} s; peak memory {memory_mb('VmHWM'):.0f} MB, of it {base:.0f} MB Python "
      f"and torch, {model.hash.buckets.numel() * 4 / 2**20:.0f} MB the hash's table")
assert labels.shape == (8, 5) and (np.diff(scores) <= 0).all()
assert memory_mb("VmHWM") < 4000
"""


def test_ten_million_label_model_is_saved_loaded_and_asked(tmp_path, say):
    run = subprocess.run(
        [sys.executable, "-c", MODEL, str(tmp_path / "model")], capture_output=True, text=True, timeout=900
    )
    say(f"model L=10M R=16 B=20,000: {run.stdout.strip()}")
    assert run.returncode == 0, run.stderr


STEP = """
import sys, torch, numpy as np, scipy.sparse, mach_ext
from mach_ext import training
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

def memory_mb(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024

N, B = 1024, 2000
X = scipy.sparse.random(N, 3000, density=0.01, format="csr", dtype=np.float32, random_state=0)
Y = scipy.sparse.random(N, 500, density=0.01, format="csr", dtype=np.float32, random_state=1)

def run(R, B):
    model = mach_ext.MACH(3000, 500, num_repetitions=R, num_buckets=B, hidden_size=64)
    settings = training.Hyperparameters.of(model, batch_size=N, gradient_threshold=float(sys.argv[1]))
    model.train()
    return TrainingRun(model, settings, TrainingData(X, Y))

def steps(run, count):
    for _ in range(count):
        run.state.batch = 0
        run.step(next(run.batches()))

steps(run(8, 50), 2)  # threads, libraries and allocators warm
for R in (4, 32):
    before = memory_mb("VmRSS")
    big = run(R, B)
    steps(big, 1)  # the moments are there
    open("/proc/self/clear_refs", "w").write("5")  # restart the peak
    steps(big, 2)
    weights = sum(p.numel() * 4 for p in big.model.parameters()) / 2**20
    print(memory_mb("VmHWM") - before - 3 * weights)
    del big
"""


@pytest.mark.parametrize("negligible", ["0", "0.5"])  # 0.5: none but the positives' gradients are kept
def test_a_training_step_holds_one_repetition(negligible, say):
    """Beyond weights and moments (gradients of the classifiers it does not even hold), R 4 -> 32.

    Each tensor is a mapping of its own, given back when it is freed: else what glibc keeps would count.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(64 << 10)}
    command = [sys.executable, "-c", STEP, negligible]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr
    few, many = map(float, run.stdout.split())
    say(f"training step N=1024 B=2000 H=64, negligible {negligible}, MB beyond weights and moments: "
        f"{few:.1f} at R=4, {many:.1f} at R=32")  # fmt: skip
    assert few > 1024 * 2000 * 4 / 2**20 * 0.9  # the meter sees the logits [N, B]
    assert many < 1.2 * few
