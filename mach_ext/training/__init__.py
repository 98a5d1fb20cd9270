"""The training loop: `fit`, with validation, the best epoch kept, checkpoints that a kill can't spoil.

A run is a function of (data, hyper-parameters, thread count): batches and dropout of step t follow from the
seed and t alone, so a run that was killed and resumed ends with the same bits as one that was not.
"""

from mach_ext._deprecation import renamed_names
from mach_ext.training.checkpoint import CHECKPOINT, CHECKPOINT_FORMAT, checkpoint_record, read_checkpoint
from mach_ext.training.defaults import default_sizes
from mach_ext.training.documents import checksum, typical_length
from mach_ext.training.evaluation import answers, evaluate_model
from mach_ext.training.folder import delete_checkpoint, has_checkpoint, lock_run
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
    "default_sizes",
    "delete_checkpoint",
    "evaluate_model",
    "expected_memory",
    "fit",
    "has_checkpoint",
    "lock_run",
    "read_checkpoint",
    "typical_length",
]

__getattr__ = renamed_names(
    __name__,
    checked_data="mach_ext.training.documents.check_documents",
    exclusive="mach_ext.training.lock_run",
    forget="mach_ext.training.delete_checkpoint",
    suggested="mach_ext.training.default_sizes",
)
