"""The model folder: its record, its digests, its tensor files, and how a model is saved and loaded.

`model.json` names the files of the model. Their names carry digests of their contents. A new model therefore
never overwrites the files of the former model. `model.json` is replaced in one step. A lock on the folder
admits one writer at a time. Readers take no lock. They start again if `model.json` was replaced while they
read.
"""

from mach_ext._model_folder.extents import Shape
from mach_ext._model_folder.journal import delete, lock
from mach_ext._model_folder.loading import load
from mach_ext._model_folder.record import (
    MODEL_SCHEMA,
    files_of,
    is_compressed,
    parameter_shapes,
    read_model_record,
)
from mach_ext._model_folder.saving import STEP, save, save_quantized
from mach_ext._model_folder.tensors import (
    Header,
    named_weights,
    read_tensors,
    safetensors_dtype,
    save_tensors,
    tensors_digest,
)

__all__ = [
    "MODEL_SCHEMA",
    "STEP",
    "Header",
    "Shape",
    "delete",
    "files_of",
    "is_compressed",
    "load",
    "lock",
    "named_weights",
    "parameter_shapes",
    "read_model_record",
    "read_tensors",
    "safetensors_dtype",
    "save",
    "save_quantized",
    "save_tensors",
    "tensors_digest",
]
