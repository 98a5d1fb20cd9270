"""How often labels occur in training: what propensities and frequency bands are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach_ext import data, metrics, nn
from mach_ext.data import attachments as kept
from mach_ext.runs.arguments import as_propensity
from mach_ext.runs.record import record_of


@dataclass(frozen=True)
class TrainingLabels:
    """How often labels occur in training: what propensities and frequency bands are made of."""

    counts: NDArray[np.integer[Any]]  # [L]
    documents: int
    A: float
    B: float

    @classmethod
    def of(
        cls, model: nn.MACH, dataset: data.Dataset, propensity: tuple[float, float] | None = None
    ) -> TrainingLabels:
        """As the model keeps them, all of train; a model of before that kept them has the dataset's.

        Args:
            model: the model.
            dataset: what it is asked about.
            propensity: A and B; None: those that the run keeps, else the field's for the dataset's name.
        """
        record = record_of(model)
        name = record.get("name", dataset.name)
        A, B = as_propensity(propensity) or record.get("propensity") or metrics.propensity_constants(name)
        counts = kept.label_counts(model.attachments, model.num_labels)
        if counts is not None and "train_documents" in record:
            return cls(counts, record["train_documents"], A, B)
        labels = dataset.all_train_labels
        return cls(metrics.label_counts(labels), labels.shape[0], A, B)

    def inverse_propensity(self, unseen: int = 0) -> NDArray[np.float64] | None:
        """[L + unseen]; None with fewer than 3 documents, for which the model's constant has no value."""
        if self.documents < 3:
            return None
        counts = np.pad(self.counts, (0, unseen))
        return metrics.inverse_propensity_of_counts(counts, self.documents, self.A, self.B)

    def bands(self, unseen: int = 0) -> dict[str, NDArray[np.bool_]]:
        """Frequency bands of the labels, [L + unseen] each; none where no training document is known."""
        if self.documents == 0:
            return {}
        return metrics.frequency_bands_of_counts(np.pad(self.counts, (0, unseen)))

    def as_dict(self) -> dict[str, Any]:
        """The constants and the number of documents, ready for JSON."""
        return {"A": self.A, "B": self.B, "documents": self.documents}
