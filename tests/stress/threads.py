"""Threads that predict beside one that trains, and processes that fork: python -m stress.threads, in tests/.

What tests/test_threads.py does a few times, many times.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from test_threads import SHAPES, WIDE, X, build, forked, same, trained_beside, wide_model


def predict_beside_training(name: str, threads: int, predicts: int) -> tuple[int, int]:
    """Wrong answers, and steps that the training took meanwhile."""
    model = build(name)
    expected = build(name).eval().predict(X, 5)

    def wrong_answers(_: int) -> int:
        return sum(not same(model.predict(X, 5), expected) for _ in range(predicts))

    with trained_beside(model) as losses, ThreadPoolExecutor(threads) as pool:
        wrong = sum(pool.map(wrong_answers, range(threads)))
    assert all(module.training for module in model.modules()), "the mode has changed"
    assert len(set(losses)) > 1, "dropout was not alive"
    return wrong, len(losses)


def predict_after_forks(forks: int) -> int:
    """How many children did not give the parent's answers within a minute."""
    model = wide_model()
    labels = model.predict(WIDE, 5)[1]

    def work() -> None:
        assert torch.get_num_threads() == 2
        assert (model.predict(WIDE, 5)[1] == labels).all()

    return sum(forked(work) != 0 for _ in range(forks))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predicts", type=int, default=2000, help="of each of 8 threads")
    parser.add_argument("--forks", type=int, default=100)
    args = parser.parse_args()
    failed = 0
    torch.set_num_threads(1)
    for name in SHAPES:
        started = time.monotonic()
        wrong, steps = predict_beside_training(name, 8, args.predicts)
        failed += wrong
        print(
            f"threads, {name}: 8 x {args.predicts:,} predicts beside {steps:,} steps, {wrong} wrong, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    torch.set_num_threads(2)
    started = time.monotonic()
    hung = predict_after_forks(args.forks)
    print(f"forks: {args.forks} children, {hung} failed, {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed or hung else 0


if __name__ == "__main__":
    raise SystemExit(main())
