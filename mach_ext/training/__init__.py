"""The training loop: `fit`, with validation, the best epoch kept, checkpoints that a kill can't spoil.

A run is a function of (data, hyper-parameters, thread count): batches and dropout of step t follow from the
seed and t alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from mach_ext.training.checkpoint import CHECKPOINT, CHECKPOINT_FORMAT, checkpoint_record, read_checkpoint
from mach_ext.training.defaults import suggested
from mach_ext.training.documents import checksum, typical_length
from mach_ext.training.evaluation import answers, evaluate_model
from mach_ext.training.folder import exclusive, forget, has_checkpoint
from mach_ext.training.hyperparameters import METRICS, OPTIMIZERS, PRECISIONS, SCHEDULES, Hyperparameters
from mach_ext.training.loop import fit
from mach_ext.training.memory import expected_memory
from mach_ext.training.progress import Progress, TrainingInterrupted

__all__ = [
    "CHECKPOINT",
    "CHECKPOINT_FORMAT",
    "METRICS",
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "Hyperparameters",
    "Progress",
    "TrainingInterrupted",
    "answers",
    "checkpoint_record",
    "checksum",
    "evaluate_model",
    "exclusive",
    "expected_memory",
    "fit",
    "forget",
    "has_checkpoint",
    "read_checkpoint",
    "suggested",
    "typical_length",
]
