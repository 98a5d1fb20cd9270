"""The memory of a head's training step, to the byte, and of making a head."""

import subprocess
import sys
import textwrap

import pytest
import torch
from head_cases import build, csr_of, hidden_of, leaves, random_labels
from torch.autograd.profiler import profile

from mach_ext.functional._repetitions import group_size

pytestmark = pytest.mark.usefixtures("one_thread")

# Sizes of a head -> whether a group has a single repetition, as those of large heads have.
SIZES = {
    "large": ({"num_labels": 5000, "num_repetitions": 6, "num_buckets": 2500, "in_features": 48}, 128),
    "small": ({"num_labels": 500, "num_repetitions": 24, "num_buckets": 256, "in_features": 48}, 64),
    "one repetition": ({"num_labels": 500, "num_repetitions": 1, "num_buckets": 4096, "in_features": 8}, 16),
}


def peak_bytes(call):
    """The most bytes that a call takes of PyTorch's allocator at a time, and those that it leaves."""
    with profile(profile_memory=True) as measured:
        call()
    events = [event for event in measured.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, held


@pytest.mark.parametrize("per_repetition", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_a_step_holds_its_gradients_and_one_group_of_logits(name, per_repetition, say):
    sizes, N = SIZES[name]
    head = build(**sizes, per_repetition=per_repetition)
    hidden = hidden_of(head, N)
    pair = csr_of(random_labels(torch.Generator().manual_seed(0), N, head.num_labels))

    def step():
        for leaf in leaves(head, hidden):
            leaf.grad = None
        head.loss(hidden, pair).backward()

    step()
    for leaf in leaves(head, hidden):
        leaf.grad = None
    peak, held = peak_bytes(step)
    gradients = sum(leaf.nbytes for leaf in leaves(head, hidden))
    R, B = head.num_repetitions, head.num_buckets
    G = min(R, group_size(N, B, 4, torch.device("cpu")))
    group = 4 * N * G * B
    assert (G == 1) == (name != "small")
    assert gradients <= held < gradients + 4096
    # Besides the logits: the losses of the documents, and the gradients to hidden of a group of several.
    rest = 64 * N + 4096 + (4 * N * (G + 1) * head.in_features if G > 1 else 0)
    assert peak - gradients <= group + rest
    assert peak - gradients <= 2 * group
    say(
        f"{name} head, per_repetition={per_repetition}: {peak - gradients:,} bytes beyond the gradients of "
        f"{gradients:,}, {group:,} of them logits of {G} of {R} repetitions"
    )


def test_a_loss_without_gradients_holds_one_group_of_logits():
    sizes, N = SIZES["large"]
    head = build(**sizes)
    hidden = hidden_of(head, N).detach()
    pair = csr_of(random_labels(torch.Generator().manual_seed(0), N, head.num_labels))
    with torch.no_grad():
        head.loss(hidden, pair)
        peak, held = peak_bytes(lambda: head.loss(hidden, pair))
    assert peak <= 4 * N * head.num_buckets + 64 * N + 4096
    assert held < 4096


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_making_a_head_takes_its_weights_and_its_hash(dtype):
    script = f"""
        import torch, mach_ext
        def memory(key):
            return 1024 * next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
        def make(H, L, R, B):
            return mach_ext.MACHHead(H, L, R, B, dtype=torch.{dtype})
        make(8, 100_000, 8, 64)  # warm up
        before = memory("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")  # restart the peak
        head = make(128, 1_000_000, 8, 8192)
        held = sum(t.nbytes for t in (*head.parameters(), *head.buffers(), head.hash.buckets))
        print(memory("VmHWM") - before - held, held)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    beyond, held = map(int, run.stdout.split())
    assert held > 60 * 2**20
    assert beyond < 4 * 2**20
