"""Models cut into parts as several processes hold them, and saved by as many threads."""

from distributed_cases import Threads

from mach_ext import LabelHash
from mach_ext._model_folder import named_weights
from mach_ext._model_folder.extents import cut_of
from mach_ext._model_folder.record import scaling_shapes
from mach_ext._model_folder.saving import save_part
from mach_ext.distributed.part import _empty_part, extent_of_rank
from mach_ext.hashing import collisions_known


def part_of(model, ranks):
    """The part of a rank, with the weights of the model."""
    configuration = model.configuration()
    extent = extent_of_rank(configuration, ranks)
    part = _empty_part(configuration, extent, ranks, model.hash.seed or 0)
    if model.hash.seed is None:
        own = model.hash.buckets[extent.repetitions.start : extent.repetitions.stop]
        with collisions_known():  # Labels that collide in a part may be told apart by the whole.
            part.model.head.hash, part.seed = LabelHash.from_buckets(own, model.num_buckets), None
    tensors = tensors_of(model)
    part.model.load_parameters(
        {name: slice_of(name, t, configuration, extent) for name, t in tensors.items()}
    )
    part.model.attachments = model.attachments
    return part


def tensors_of(model):
    """What a folder keeps of a model beside its label hash."""
    tensors = {**named_weights(model), "logit_adjustment": model.logit_adjustment}
    return tensors | {name: getattr(model, name) for name in scaling_shapes(model.configuration())}


def slice_of(name, t, configuration, extent):
    """The values of a tensor that belong to an extent."""
    cut = cut_of(name, configuration)
    if cut is None:
        return t
    own = getattr(extent, cut[1])
    return t.detach().narrow(cut[0], own.start, len(own)).clone()


def save_in_parts(model, folder, size):
    """Save a model as so many processes do."""

    def save(ranks):
        save_part("MACH.save", part_of(model, ranks), folder, ranks.collect)

    Threads(size).on_each(save)
