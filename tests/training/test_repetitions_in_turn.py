"""Linear MACH by a few repetitions at a time: the bits of all together, resumed where it was."""

import pytest
from training_cases import X, Y, options, same_bits, weights

import mach_ext
from mach_ext.training.run import TrainingRun


@pytest.mark.parametrize("together", [1, 4])
def test_linear_repetitions_in_turn_are_the_repetitions_together(tmp_path, together):
    settings = {**options, "learning_rate": 0.5, "epochs": 3, "tau": 0.1}  # else it is chosen on dev, too
    whole, parts = (mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0) for _ in range(2))
    mach_ext.fit(whole, X, Y, **settings)  # no dev data: both end with their last epoch
    record = mach_ext.fit(parts, X, Y, X, Y, output=tmp_path, repetitions_at_a_time=together, **settings)
    assert same_bits(weights(whole), weights(parts))  # to the bit where together / R is a power of two
    assert "P@1" in record.history[-1]["dev"]
    assert same_bits(weights(mach_ext.load(tmp_path)), weights(parts))
    assert not list(tmp_path.glob("repetitions-*"))
    again = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    mach_ext.fit(again, X, Y, X, Y, output=tmp_path, resume=True, repetitions_at_a_time=together, **settings)
    assert same_bits(weights(again), weights(parts))


def test_linear_repetitions_in_turn_resume_where_they_were(tmp_path, monkeypatch):
    settings = {**options, "learning_rate": 0.5, "epochs": 2, "repetitions_at_a_time": 2, "output": tmp_path}

    def build():
        return mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)

    taken, original = [], TrainingRun.step

    def step(run, batch):
        taken.append(0)
        if len(taken) == 100:  # in the third pair of repetitions
            raise KeyboardInterrupt
        original(run, batch)

    monkeypatch.setattr(TrainingRun, "step", step)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit(build(), X, Y, **settings)
    model = build()
    mach_ext.fit(model, X, Y, resume=True, **settings)
    assert len(taken) < 100 + 8 * 19  # the first two pairs were not trained again
    fresh = build()
    mach_ext.fit(fresh, X, Y, **{**settings, "output": None})
    assert same_bits(weights(model), weights(fresh))


def test_a_checkpoint_of_all_repetitions_is_not_resumed_in_turn(tmp_path, monkeypatch):
    settings = {**options, "learning_rate": 0.5, "epochs": 2, "output": tmp_path}
    taken, original = [], TrainingRun.step

    def step(run, batch):
        taken.append(0)
        if len(taken) == 25:
            raise KeyboardInterrupt
        original(run, batch)

    monkeypatch.setattr(TrainingRun, "step", step)
    model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=0)
    with pytest.raises(KeyboardInterrupt):
        mach_ext.fit(model, X, Y, **settings)
    with pytest.raises(ValueError, match="resume it without repetitions_at_a_time"):
        mach_ext.fit(model, X, Y, resume=True, repetitions_at_a_time=2, **settings)
