"""Launches of a training step on CUDA, and the bytes of logits that it moves, counted without a GPU.

A step runs on CPU tensors with the CUDA operators of the shim. A dispatch mode counts PyTorch operators that
that would launch a kernel, and the shim counts the launches of this package's kernels. The shapes are small.
The number of repetitions in a group is that of the shape which is named.
"""

import collections

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import NO_SHIM, SHIM
from torch.utils._python_dispatch import TorchDispatchMode

import mach_ext
from mach_ext import _ops, training
from mach_ext.functional import _products
from mach_ext.functional._repetitions import group_size
from mach_ext.training import steps
from mach_ext.training.documents import TrainingData
from mach_ext.training.run import TrainingRun

pytestmark = pytest.mark.skipif(not SHIM.exists(), reason=NO_SHIM)
R, N, B, H, D = 32, 12, 37, 24, 50
NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
NO_LAUNCH |= {"_record_function_enter_new", "_record_function_exit"}
INSIDE = {"feature_order": 2}  # a sort and a cumulative sum of PyTorch's


class Count(TorchDispatchMode):
    """Counts launches, and the bytes of tensors that have as many elements as a group's logits."""

    def __init__(self, library, size):
        super().__init__()
        self.library, self.size, self.bytes = library, size, 0
        self.launches = collections.Counter()

    def totals(self):
        lines = self.library.mach_shim_totals().decode().splitlines()
        return sum(int(line.split()[1]) for line in lines)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, before, name = kwargs or {}, self.totals(), func._schema.name.partition("::")[2]
        out = func(*args, **kwargs)
        if func.namespace != "aten":
            self.launches[name] += self.totals() - before + INSIDE.get(name, 0)
        elif not func.is_view and name not in NO_LAUNCH:
            self.launches[name] += 1
        else:
            return out
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        narrow = name == "bucket_bce" and given.get("out") is not None
        changes = False
        for argument in func._schema.arguments:
            writes = argument.alias_info is not None and not (narrow and argument.name == "logits")
            changes |= writes
            self.note(given.get(argument.name), 2 if writes and argument.name != "out" else 1)
        for t in () if changes else out if isinstance(out, tuple) else (out,):
            self.note(t, 1)
        return out

    def note(self, t, times):
        if isinstance(t, torch.Tensor) and t.numel() in self.size:
            self.bytes += times * t.numel() * t.element_size()


class Once:
    """An operator of the shim, run with one schedule."""

    def __init__(self, op):
        self.default = op

    def __call__(self, *args):
        return self.default(*args)


class Operators:
    """Stands in for torch.ops.mach_ext."""

    def __init__(self, shim_ops):
        self.shim_ops = shim_ops

    def __getattr__(self, name):
        op = getattr(self.shim_ops, name)
        return Once(op.op) if hasattr(op, "written") else op


def batch_of(generator):
    features = scipy.sparse.random(N, D, 0.2, format="csr", dtype=np.float32, rng=generator)
    labels = scipy.sparse.random(N, 300, 0.01, format="csr", dtype=np.float32, rng=generator)
    return features, labels


ARCHITECTURES = {
    "shared": {},
    "independent": {"encoder": "independent"},
    "linear": {"hidden_size": 0},
}


def counted_step(shim_ops, monkeypatch, name, size, form):
    """A second step, with the CUDA operators and the choices that a step makes on CUDA."""
    precision = form.partition(",")[0]
    monkeypatch.setattr(_ops, "has_bucket_forward", lambda device: form == FUSED)
    monkeypatch.setattr(_products, "_is_on_gpu", lambda t: True)
    monkeypatch.setattr(_ops, "_raw", Operators(shim_ops))
    monkeypatch.setattr(steps, "group_size", lambda *_: size)
    sizes = {"num_repetitions": R, "num_buckets": B, "hidden_size": H, **ARCHITECTURES[name]}
    model = mach_ext.MACH(D, 300, **sizes)
    settings = training.Hyperparameters.of(model, batch_size=N, precision=precision)
    run = TrainingRun(model, settings, TrainingData(*batch_of(np.random.default_rng(0))))
    waiting = steps.LossSum.__init__

    def on_a_gpu(self, device):
        waiting(self, device)
        self.waits = True

    monkeypatch.setattr(steps.LossSum, "__init__", on_a_gpu)
    batch = next(run.batches())
    run.step(batch)  # the moments and the memory that steps share are made
    count = Count(shim_ops.library, {N * g * B for g in (size, R % size)} - {0})

    def product(a, b, out):  # a single operator on CUDA, whatever the dtypes
        with torch.utils._python_dispatch._disable_current_modes():
            out.copy_(a.float() @ b.float())
        count.launches["mm"] += 1
        for t in (a, b, out):
            count.note(t, 1)

    def wide_product(a, b, dtype):
        out = torch.empty(*a.shape[:-1], b.shape[-1], dtype=dtype)
        product(a, b, out)
        return out

    monkeypatch.setattr(_products, "product", product)
    monkeypatch.setattr(_products, "_wide_product", wide_product)
    with count:
        run.step(batch)
    return count


def real_group(documents, form):
    """Repetitions in a group of the real shape on a GPU: B=2000, float32 logits or a bfloat16 gradient."""
    return min(R, group_size(documents, 2000, 2 if form == FUSED else 4, torch.device("cuda")))


# The fused operator, from compute capability 8.0 on, keeps the logits out of memory.
FUSED = "bfloat16, fused"
parametrize_form = pytest.mark.parametrize("form", ["float32", "bfloat16", FUSED])


# float32: written by the product; read and written by bucket_bce; read by the two products after it. bfloat16
# writes and reads the gradient in half of the bytes. Fused, nothing but the gradient moves.
BYTES = {"float32": 20, "bfloat16": 14, FUSED: 6}


@parametrize_form
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_few_launches_and_few_bytes(say, shim_ops, monkeypatch, name, form):
    """N=256, R=32, B=2000: all repetitions are one group. A repetition at a time took 416 launches."""
    size = real_group(256, form)
    assert size == R
    count = counted_step(shim_ops, monkeypatch, name, size, form)
    per_logit = count.bytes / (N * R * B)
    say(f"{name}, {form}: {count.launches.total()} launches, {per_logit:.0f} bytes a logit")
    assert count.launches.total() <= 40
    # Linear MACH has one product after the loss, which takes float32.
    assert per_logit == (16 if name == "linear" else BYTES[form])


@parametrize_form
def test_launches_of_several_groups(say, shim_ops, monkeypatch, form):
    """N=2048, R=32, B=2000: eight groups of four repetitions, or four of eight without logits."""
    size = real_group(2048, form)
    assert size == (8 if form == FUSED else 4)
    count = counted_step(shim_ops, monkeypatch, "shared", size, form)
    say(f"{R // size} groups, {form}: {count.launches.total()} launches")
    assert count.launches.total() <= {"float32": 83, "bfloat16": 91, FUSED: 60}[form]
    assert count.bytes == BYTES[form] * N * R * B


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_the_count_sees_each_repetition(shim_ops, monkeypatch, form):
    """The meter itself: a repetition at a time is several launches for each of 32."""
    launches = [counted_step(shim_ops, monkeypatch, "shared", size, form).launches for size in (R, 1)]
    assert launches[1]["bucket_bce"] == R * launches[0]["bucket_bce"] == 2 * R
    assert launches[1].total() > 6 * R
