"""The memory of training: counted beforehand, said where it is short."""

import pytest
import torch
from training_cases import X, Y, build, options

import mach_ext
from mach_ext import training
from mach_ext.training import memory, steps


def test_out_of_memory_says_what_to_lower(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(steps.HiddenStep, "__call__", full)
    message = (
        r"fit: out of memory on cpu: lower batch_size, .*R=8 repetitions of B=16.*Tried to allocate 20.00 GiB"
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        mach_ext.fit(build(), X, Y, **options)


def test_expected_memory_knows_a_device_by_its_number_too():
    model = mach_ext.MACH(60, 60, num_repetitions=4, num_buckets=16, hidden_size=8)
    on_cuda = training.expected_memory(model, device="cuda")
    assert training.expected_memory(model, device="cuda:0") == on_cuda != training.expected_memory(model)


def test_expected_memory_counts_what_it_says():
    model = build()
    expected = training.expected_memory(model)
    assert expected["weights"] == sum(p.numel() * 4 for p in model.parameters())
    assert expected["label hash"] == 8 * 60 * 4
    assert expected["training, peak"] > expected["predicting, peak"] > expected["weights"]


def test_short_memory_is_said_beforehand(monkeypatch):
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    settings = training.Hyperparameters.of(model)
    assert memory.repetitions_together(model, X, settings, None) == 8
    monkeypatch.setattr(memory, "available_memory", lambda device: 12_000)
    with pytest.warns(ResourceWarning, match="repetitions_at_a_time=1 would fit"):
        memory.repetitions_together(model, X, settings, None)
    with pytest.raises(ValueError, match=r"repetitions_at_a_time must be in 1 ... R=8, got 9"):
        mach_ext.fit(model, X, Y, repetitions_at_a_time=9, **options)
    with pytest.raises(ValueError, match="repetitions_at_a_time is for linear MACH"):
        mach_ext.fit(build(), X, Y, repetitions_at_a_time=1, **options)
    with pytest.raises(ValueError, match="patience needs dev metrics of each epoch"):
        mach_ext.fit(model, X, Y, X, Y, repetitions_at_a_time=1, patience=1, **options)
