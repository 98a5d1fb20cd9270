"""signs: the signs of a tile in its place, and how many there are, beside the reference."""

import pytest
import torch
from helpers import FLOATS, bitwise_equal
from hypothesis import given
from hypothesis import strategies as st

from mach_ext import _ops, _reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_signs_match_reference(device, dtype, nonnegative):
    @given(N=st.integers(0, 5), T=st.sampled_from([0, 1, 15, 64, 700]), seed=st.integers(0, 2**32))
    def check(N, T, seed):
        generator = torch.Generator().manual_seed(seed)
        special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, -2.0])
        larger = special[torch.randint(7, (N, T + 3), generator=generator)].to(dtype).to(device)
        ours, theirs = larger[:, :T], larger[:, :T].cpu().clone()
        rest = larger[:, T:].clone()
        counts = _ops.signs(ours, nonnegative)
        assert torch.equal(counts.cpu(), _reference.signs(theirs, nonnegative))
        assert bitwise_equal(ours, theirs)
        assert bitwise_equal(larger[:, T:], rest)

    check()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck_signs(device, generator, dtype):
    tile = torch.randn(3, 20, generator=generator, dtype=dtype).to(device)
    torch.library.opcheck(torch.ops.mach_ext.signs, (tile, False))
    with pytest.raises(RuntimeError, match="contiguous rows"):
        _ops.signs(tile.T, False)
