"""Initial weights of parts: those of the whole model to the bit, without drawing the whole at once."""

import itertools

import pytest
import torch
from helpers import bitwise_equal

from mach_ext import MACH
from mach_ext._dropout import PartOfMasks
from mach_ext._model_folder import parameter_shapes
from mach_ext._model_folder.extents import cut_of
from mach_ext.distributed import Ranks, drawing
from mach_ext.distributed.part import ModelPart, extent_of_rank

pytestmark = pytest.mark.usefixtures("one_thread")
# D, L, R, B, hidden_size, encoder
MODELS = {
    "shared": (37, 20, 6, 8, 12, "shared"),
    "shared, rows of 16": (48, 20, 5, 16, 16, "shared"),
    "shared, fewer than 16 numbers": (2, 5, 5, 2, 5, "shared"),
    "shared, two layers": (53, 30, 7, 9, (11, 5), "shared"),
    "independent": (41, 20, 5, 7, 6, "independent"),
    "independent, fewer than 16 numbers": (1, 3, 5, 2, 1, "independent"),
    "independent, two layers": (23, 20, 6, 5, (4, 3), "independent"),
    "many rows": (100, 3, 5, 2, 5, "shared"),
    "wide": (3, 50, 5, 40, 70, "shared"),
    "linear": (19, 20, 5, 7, 0, "shared"),
}
TWICE_A_BLOCK = 32  # numbers in a piece, unless 16 rows have more


def configuration(name, **options):
    D, L, R, B, hidden_size, encoder = MODELS[name]
    sizes = list(hidden_size) if isinstance(hidden_size, tuple) else [hidden_size] if hidden_size else 0
    return {
        "num_features": D, "num_labels": L, "num_repetitions": R, "num_buckets": B, "hidden_size": sizes,
        "encoder": encoder, "merge": "mean_logit", "seed": 3, "feature_dropout": 0.0, "hidden_dropout": 0.0,
        **options,
    }  # fmt: skip


def whole_weights(given):
    model = MACH(**given)
    return {name.removeprefix("head."): p.detach() for name, p in model.named_parameters()}


def joined(name, parts, given):
    """The whole of a weight, from those of the parts."""
    cut = cut_of(name, given)
    if cut is None:
        assert all(bitwise_equal(part, parts[0]) for part in parts)
        return parts[0]
    return torch.cat(parts, cut[0])


@pytest.mark.parametrize("piece", [1, TWICE_A_BLOCK, 1000, None])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", MODELS)
def test_parts_have_the_weights_of_the_whole(monkeypatch, name, size, piece):
    if piece is not None:
        monkeypatch.setattr(drawing, "_PIECE", piece)
    given = configuration(name)
    expected = whole_weights(given)
    parts = [ModelPart.new(given, Ranks(rank, size)) for rank in range(size)]
    for weight, whole in expected.items():
        owners = [part.model.head if weight.startswith("bucket_") else part.model for part in parts]
        held = [getattr(owner, weight).detach() for owner in owners]
        assert bitwise_equal(joined(weight, held, given), whole), weight
    for part in parts:
        assert part.model.hash.buckets.equal(MACH(**given).hash.buckets[[*part.extent.repetitions]])
        assert part.fingerprint == MACH(**given).hash.fingerprint()


@pytest.mark.parametrize("num_dense", [1, 5])
def test_dense_columns_are_drawn_behind_the_sparse_ones(num_dense):
    given = configuration("shared", num_dense=num_dense)
    expected = whole_weights(given)
    parts = [ModelPart.new(given, Ranks(rank, 3)) for rank in range(3)]
    assert expected["encoder_weight"].shape == (37 + num_dense, 12)
    whole = torch.cat([part.model.encoder_weight.detach() for part in parts], 1)
    assert bitwise_equal(whole, expected["encoder_weight"])


def test_many_pieces_are_drawn(monkeypatch):
    """The meter of the test above: pieces of two blocks of rows, and the last with what is left."""
    monkeypatch.setattr(drawing, "_PIECE", TWICE_A_BLOCK)
    drawn, normal = [], torch.Tensor.normal_

    def count(t, *args, **options):
        drawn.append(len(t))
        return normal(t, *args, **options)

    monkeypatch.setattr(torch.Tensor, "normal_", count)
    drawing._draw(100, 1, 0.1, torch.Generator(), range(40, 60), range(1))
    assert drawn == [32, 32, 36]  # A last piece of 4 rows would be less than a block.


@pytest.mark.parametrize("rows", [*range(1, 50)])
def test_every_number_of_rows(monkeypatch, rows):
    """Whichever numbers PyTorch draws anew at the end of a tensor, they are the same."""
    monkeypatch.setattr(drawing, "_PIECE", 1)
    for columns in (1, 3, 16):
        whole = torch.empty(rows, columns).normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        own = drawing._draw(
            rows, columns, 0.1, generator, range(rows // 3, rows), range(columns // 2, columns)
        )
        assert bitwise_equal(own, whole[rows // 3 :, columns // 2 :])


def test_shapes_that_are_drawn_are_those_of_the_model():
    for name in MODELS:
        given = configuration(name)
        expected = {key: tuple(weight.shape) for key, weight in whole_weights(given).items()}
        assert parameter_shapes(given) == expected


# ------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("size", [1, 2, 3])
def test_masks_of_parts_are_those_of_the_whole(size):
    R, N, H = 5, 7, 3
    whole = torch.empty(N, R, H).bernoulli_(0.7, generator=torch.Generator().manual_seed(2))
    parts = []
    for rank in range(size):
        own = Ranks(rank, size).share(R)
        masks = PartOfMasks(torch.Generator().manual_seed(2), own, R)
        parts.append(masks.draw(torch.empty(N, len(own), H), 0.3))
    assert torch.cat(parts, 1).equal(whole)


@pytest.mark.parametrize("shape", [(9,), (7, 3)])
def test_masks_of_what_all_parts_have_are_the_same(shape):
    """Values of features [nnz], and units of a shared encoder [N, H]."""
    whole = torch.empty(shape).bernoulli_(0.7, generator=torch.Generator().manual_seed(2))
    for rank in range(3):
        masks = PartOfMasks(torch.Generator().manual_seed(2), Ranks(rank, 3).share(5), 5)
        assert masks.draw(torch.empty(shape), 0.3).equal(whole)


# ------------------------------------------------------------------------------------------------- extents


@pytest.mark.parametrize("name", MODELS)
def test_extents_are_everything_once(name):
    given = configuration(name)
    R = given["num_repetitions"]
    copies = R if given["encoder"] == "independent" else 1
    units = copies * given["hidden_size"][0] if given["hidden_size"] else 0
    for size in range(1, 6):
        extents = [extent_of_rank(given, Ranks(rank, size)) for rank in range(size)]
        assert [*itertools.chain(*(extent.repetitions for extent in extents))] == [*range(R)]
        assert [*itertools.chain(*(extent.units for extent in extents))] == [*range(units)]
        assert [extent.is_first for extent in extents] == [True] + [False] * (size - 1)
        if copies == R:  # The units of an encoder stay together.
            each = units // R
            assert all(
                extent.units == range(extent.repetitions.start * each, extent.repetitions.stop * each)
                for extent in extents
            )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_repetitions": 5}, "num_repetitions=5"),
        ({"num_repetitions": 8, "hidden_size": [5]}, "hidden_size=5"),
    ],
)
def test_more_ranks_than_parts_are_refused(changes, said):
    given = configuration("shared", **changes)
    rule = f"train: {said} must be at least the number of processes, which each train a part, got 6 processes"
    for rank in range(6):
        with pytest.raises(ValueError, match=f"^{rule}$"):
            extent_of_rank(given, Ranks(rank, 6))
