"""A rank of two dies at random moments of a training, again and again: python -m stress.deaths, in tests/.

What tests/distributed/test_training_together.py does a few times, more often. Forks die one after the other,
and a launch of `torchrun` starts its processes anew.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from pathlib import Path

import torch
from helpers import bitwise_equal
from launch_cases import forked, on_ranks
from together_cases import (
    FINISHED,
    count_moments,
    die,
    die_again,
    draw_plan,
    files_of,
    train,
    weights_of,
)

import mach_ext

KINDS = ("independent, dropout", "linear")


def is_same(folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    """Whether a run has ended with these bits, and nothing else is left in its folder."""
    found = weights_of(folder)
    return files_of(folder) == FINISHED and all(
        bitwise_equal(found[name], expected[name]) for name in expected
    )


def count(name: str, folder: Path) -> int:
    """The number of moments of a training that nothing ends."""
    assert [each.code for each in forked(2, count_moments, folder, name, folder)] == [0, 0]
    return min(int((folder / f"moments {rank}").read_text()) for rank in range(2))


def deaths_in_a_row(name: str, folder: Path, plan: list[tuple[int, int]]) -> int:
    """Start a training anew after each death, then end it alone. Return how often it had died."""
    died = 0
    for number, (victim, moment) in enumerate(plan):
        ended = forked(2, die, folder / f"streams {number}", name, folder, victim, moment, True)
        died += ended[victim].code != 0
        assert ended[victim].code in (0, -9), ended[victim].err
        assert len(ended[1 - victim].said) == (ended[victim].code != 0), ended[1 - victim].err
        if (folder / "run" / "model.json").exists():
            mach_ext.load(folder / "run")
    train(name, folder / "run", resume=True)
    return died


def deaths_of_a_launch(name: str, folder: Path, plan: list[tuple[int, int]]) -> int:
    """Let `torchrun` start the processes anew after each death. Return how often that was."""
    on_ranks(2, die_again, folder, name, plan, restarts=len(plan), seconds=60 + 30 * len(plan))
    return len([*folder.glob("found *")]) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deaths", type=int, default=10, help="of each kind of model and of each way")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    wrong = 0
    for name in KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            train(name, folder / "whole")
            expected, moments = weights_of(folder / "whole"), count(name, folder / "counted")
            for way in (deaths_in_a_row, deaths_of_a_launch):
                # So many moments lie before the end of the training that most attempts do not reach it.
                plan = draw_plan(args.seed, args.deaths, 2, max(1, 3 * moments // args.deaths))
                (folder / way.__name__).mkdir()
                started = time.monotonic()
                died = way(name, folder / way.__name__, plan)
                good = is_same(folder / way.__name__ / "run", expected)
                wrong += not good
                print(
                    f"{way.__name__}, {name}: seed {args.seed}, {died} deaths, "
                    f"{'the same bits' if good else 'OTHER BITS'}, {time.monotonic() - started:.0f} s",
                    flush=True,
                )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
