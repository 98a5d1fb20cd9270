"""Bucket scores of many distributions and layouts, for the tests of merge_scores and merge_topk."""

import torch
from helpers import FLOATS, random_hash, strided
from hypothesis import strategies as st

MERGES = ("mean", "min", "median")
PATHS = ("auto", "direct", "scan", "lists")  # of merge_topk; the public function takes "auto"


def choice(values):
    """Draws from a few values, so that keys tie."""

    def draw(generator, shape, dtype):
        return torch.tensor(values, dtype=dtype)[torch.randint(len(values), shape, generator=generator)]

    return draw


def normal(generator, shape, dtype):
    return torch.randn(shape, generator=generator, dtype=dtype)


def some_nan(generator, shape, dtype):
    at = torch.rand(shape, generator=generator) < 0.1
    return normal(generator, shape, dtype).masked_fill(at, float("nan"))


def extreme(generator, shape, dtype):
    """The largest finite numbers (sums overflow), the least normal one and denormals."""
    f = torch.finfo(dtype)
    return choice([f.max, f.min, f.max / 2, f.tiny, -f.tiny, f.tiny / 8, -f.tiny / 4, 0.0, 1.0])(
        generator, shape, dtype
    )


def equal_leading_bits(generator, shape, dtype):
    return 1 + torch.randint(64, shape, generator=generator) * torch.tensor(
        torch.finfo(dtype).eps, dtype=dtype
    )


DISTRIBUTIONS = {
    "normal": normal,
    "negative": lambda g, s, d: normal(g, s, d) - 10,
    "peaky": lambda g, s, d: torch.where(torch.rand(s, generator=g) < 0.02, 8.0, -12 + normal(g, s, d)).to(d),
    "few values": choice([-1.0, 0.25, 3.0]),
    "all equal": choice([-2.5]),
    "all zero": choice([0.0]),
    "signed zeros": choice([-0.0, 0.0]),
    "signed zeros among others": choice([-0.0, 0.0, -1.0, 1.0]),
    "infinities": choice([float("inf"), -float("inf"), 0.0, -1.5]),
    "mostly -inf": choice([-float("inf")] * 8 + [1.0]),
    "some NaN": some_nan,
    "all NaN": choice([float("nan")]),
    "NaN and infinities": choice([float("nan"), -float("inf"), float("inf"), -0.0, 2.0, 2.0]),
    "extreme": extreme,
    "equal leading bits": equal_leading_bits,
    "ascending": lambda g, s, d: torch.arange(s[-1], dtype=d).expand(s),
}


def layout(scores, kind):
    """The same [N, R, B] scores in another memory layout."""
    if kind == "repetition-major":  # what bucket_logits returns
        return scores.transpose(0, 1).contiguous().transpose(0, 1)
    return strided(scores) if kind == "strided" else scores


@st.composite
def decodes(draw, num_documents, num_labels, num_repetitions, num_buckets):
    """scores, hash, k, merge, path."""
    N, L, R, B = (
        draw(st.integers(*bounds)) for bounds in (num_documents, num_labels, num_repetitions, num_buckets)
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    distribution = DISTRIBUTIONS[draw(st.sampled_from(sorted(DISTRIBUTIONS)))]
    scores = distribution(generator, (N, R, B), draw(st.sampled_from(FLOATS)))
    scores = layout(scores, draw(st.sampled_from(["contiguous", "repetition-major", "strided"])))
    k = min(L, draw(st.sampled_from([0, 1, L, draw(st.integers(0, L))])))
    path = draw(st.sampled_from(PATHS)) if scores.dtype == torch.float32 else "auto"
    return scores, random_hash(generator, L, B, R), k, draw(st.sampled_from(MERGES)), path
