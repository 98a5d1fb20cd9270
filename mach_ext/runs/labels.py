"""How often labels occur in training. Propensities and frequency bands follow from these counts."""

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
    """How often labels occur in training, and the constants of the propensity model.

    Attributes:
        counts: Number of training documents of each label [L].
        documents: Number of training documents.
        A, B: Constants of the propensity model (Jain et al. 2016).

    Example:
        >>> import numpy as np
        >>> from mach_ext.runs import TrainingLabels
        >>> labels = TrainingLabels(np.array([500, 50, 5]), documents=1000, A=0.55, B=1.5)
        >>> labels.inverse_propensity().round(2)  # rare labels count more
        array([1.32, 2.12, 4.49])
    """

    counts: NDArray[np.integer[Any]]  # [L]
    documents: int
    A: float
    B: float

    @classmethod
    def of(
        cls, model: nn.AnyMACH, dataset: data.Dataset, propensity: tuple[float, float] | None = None
    ) -> TrainingLabels:
        r"""Returns the counts that the model keeps. An old model without counts gets those of the dataset.

        Args:
            model: The model.
            dataset: The dataset that the model is used on.
            propensity: A and B. None: those that the run keeps, or those of the field for the dataset's name.

        Raises:
            ValueError: A and B are not two numbers.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> Path("pets").mkdir(exist_ok=True)
            >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
            >>> for split in ("train", "test"):
            ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
            >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
            >>> from mach_ext.runs import TrainingLabels
            >>> labels = TrainingLabels.of(run.model, run.dataset())
            >>> labels.counts.tolist(), labels.documents
            ([20, 20], 40)
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
        """Returns inverse propensities [L + unseen], or None if there are fewer than 3 documents.

        The propensity model has no constant for so few documents.

        Args:
            unseen: Number of labels without training documents that follow the L labels.

        Example:
            >>> import numpy as np
            >>> from mach_ext.runs import TrainingLabels
            >>> labels = TrainingLabels(np.array([500, 5]), documents=1000, A=0.55, B=1.5)
            >>> labels.inverse_propensity(unseen=1).round(2)
            array([1.32, 4.49, 8.82])
        """
        if self.documents < 3:
            return None
        counts = np.pad(self.counts, (0, unseen))
        return metrics.inverse_propensity_of_counts(counts, self.documents, self.A, self.B)

    def bands(self, unseen: int = 0) -> dict[str, NDArray[np.bool_]]:
        """Returns frequency bands of the labels: booleans [L + unseen] by name.

        There are no bands if there are no training documents.

        Args:
            unseen: Number of labels without training documents that follow the L labels.

        Example:
            >>> import numpy as np
            >>> from mach_ext.runs import TrainingLabels
            >>> labels = TrainingLabels(np.array([500, 50, 5]), documents=1000, A=0.55, B=1.5)
            >>> {name: band.tolist() for name, band in labels.bands().items()}
            {'head': [True, False, False], 'torso': [False, True, False], 'tail': [False, False, True]}
        """
        if self.documents == 0:
            return {}
        return metrics.frequency_bands_of_counts(np.pad(self.counts, (0, unseen)))

    def as_dict(self) -> dict[str, Any]:
        """Returns the constants and the number of documents, ready for JSON.

        Example:
            >>> import numpy as np
            >>> from mach_ext.runs import TrainingLabels
            >>> TrainingLabels(np.array([500, 5]), documents=1000, A=0.55, B=1.5).as_dict()
            {'A': 0.55, 'B': 1.5, 'documents': 1000}
        """
        return {"A": self.A, "B": self.B, "documents": self.documents}
