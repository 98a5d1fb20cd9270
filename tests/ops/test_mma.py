"""The tensor-core instructions as the shim emulates them: every lane and register against plain loops."""

import subprocess

import pytest
from helpers import NO_SHIM, SHIM


@pytest.mark.parametrize("program", ["mma", "mma_asan"])
@pytest.mark.parametrize(("case", "seeds"), [("units", 2), ("products", 8), ("loads", 8)])
def test_emulated_instructions_are_what_the_isa_says(program, case, seeds):
    """`units` multiplies all pairs of unit matrices, `loads` reads numbered matrices out of shared memory."""
    path = SHIM.with_name(program)
    if not path.exists():
        pytest.skip(NO_SHIM)
    done = subprocess.run([path, case, str(seeds)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["right"] * seeds
