"""The training loop: `fit`, with validation, the best epoch kept, and checkpoints that survive a kill.

A run is a function of the data, the hyper-parameters and the thread count. Batches and dropout of step t
depend on the seed and t alone. A run that was killed and resumed therefore ends with the same bits as an
uninterrupted run.

Example:
    >>> from mach_ext import training
    >>> training.OPTIMIZERS, training.SCHEDULES, training.PRECISIONS
    (('adam', 'adagrad'), ('linear', 'constant'), ('float32', 'tf32', 'bfloat16'))
    >>> training.METRICS  # what may pick the best epoch
    ('P@1', 'P@3', 'P@5', 'nDCG@1', 'nDCG@3', 'nDCG@5')
    >>> training.FINETUNING_EPOCHS  # of `finetune`, if none are given
    2
    >>> training.CHECKPOINT, training.CHECKPOINT_FORMAT  # the name of the files, and the number in them
    ('checkpoint', 4)
"""

from mach_ext._deprecation import renamed_names
from mach_ext.training.checkpoint import CHECKPOINT, CHECKPOINT_FORMAT, checkpoint_record, read_checkpoint
from mach_ext.training.defaults import default_sizes
from mach_ext.training.documents import checksum, typical_length
from mach_ext.training.evaluation import answers, evaluate_model
from mach_ext.training.finetuning import FINETUNING_EPOCHS, finetune
from mach_ext.training.folder import delete_checkpoint, has_checkpoint, lock_run
from mach_ext.training.hyperparameters import METRICS, OPTIMIZERS, PRECISIONS, SCHEDULES, Hyperparameters
from mach_ext.training.loop import fit
from mach_ext.training.memory import expected_memory
from mach_ext.training.progress import Progress, TrainingInterrupted
from mach_ext.training.trained_encoder import EncoderSettings

__all__ = [
    "CHECKPOINT",
    "CHECKPOINT_FORMAT",
    "FINETUNING_EPOCHS",
    "METRICS",
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "EncoderSettings",
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
    "finetune",
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
