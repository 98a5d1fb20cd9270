"""The explanation of a document of a run: attributions, votes, collisions, and their page."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mach_ext import data, explain, nn, report
from mach_ext.runs.arguments import spell, takes_text
from mach_ext.runs.dataset import split_of
from mach_ext.runs.files import write
from mach_ext.runs.text_encoders import text_encoder_of


@dataclass(frozen=True)
class Document:
    """A document to explain.

    Attributes:
        X: The features [1, D], SciPy CSR.
        title: Title of the page.
        text: The raw text, or None.
        true_labels: Numbers of its true labels. None: they are not known.
        feature_names, label_names: Names of the dataset, if the model keeps none.
    """

    X: Any
    title: str
    text: str | None = None
    true_labels: list[int] | None = None
    feature_names: Sequence[str] | None = None
    label_names: Sequence[str] | None = None


def document_of_text(text: str, columns: data.Columns) -> Document:
    """Returns a text as a document.

    Raises:
        TypeError: The text is not a string.
        ValueError: The model takes no texts, or knows none of the words.
    """
    if not isinstance(text, str):
        raise TypeError(f"explain: {spell('text')} must be a string, got {type(text).__name__}")
    takes_text(columns, "text")
    (X,) = data.iter_vectors([text], columns)
    if not columns.num_dense and not data.row_features(X).any():
        argument = spell("text")
        raise ValueError(f"{argument}: none of its words is in the model's vocabulary: nothing to explain")
    return Document(X, "Explanation of a text", text)


def document_of_split(model: nn.AnyMACH, dataset: data.Dataset, split: str, number: int) -> Document:
    """Returns a document of a dataset by its number in a split.

    Raises:
        ValueError: The document does not exist or has no features.
    """
    documents, argument = split_of(dataset, split), spell("sample_id")
    if len(documents) == 0:
        raise ValueError(f"{dataset.path}: the {split} split has no document")
    if not 0 <= number < len(documents):
        last = len(documents) - 1
        raise ValueError(f"{argument} must be in 0 ... {last}, the {split} split, got {number}")
    X = _document(documents, number)
    if not model.num_dense and not data.row_features(X).any():
        raise ValueError(f"{argument} {number}: the document has no features: nothing to explain")
    keeps_features = {"vectorizer.json", "features.json"} & set(model.attachments)
    return Document(
        X,
        f"{dataset.name}, {split}, document {number}",
        None if documents.texts is None else documents.texts[number],
        documents.Y[number].indices.tolist(),
        None if keeps_features else dataset.feature_names,
        None if "labels.json" in model.attachments else dataset.label_names,
    )


def _document(split: data.Split, number: int) -> Any:
    """Returns a document of a split. Its text is embedded alone, because the split may be large."""
    dense = split.dense
    if isinstance(dense, data.TextEmbeddings) and "array" not in vars(dense):
        return data.HybridMatrix(split.X[number], dense.encoder.encode([dense.texts[number]]))
    return split.documents[number]


@dataclass(frozen=True)
class RunExplanation:
    r"""Why a document gets its labels, as `mach-ext explain` shows it.

    Attributes:
        document: The document.
        explanation: Attributions of each label's score.
        votes: How the hash functions voted for these labels.
        collisions: Whether each label's score is its own or comes from labels in the same buckets.
        k: Size of the top k.
        features: How many features of each label are removed in turn for the page's last table.
        model, columns: The model of the run and its columns.

    Example:
        >>> from pathlib import Path
        >>> import mach_ext
        >>> Path("pets").mkdir(exist_ok=True)
        >>> lines = '{"text": "a cat", "labels": ["cat"]}\n{"text": "a dog", "labels": ["dog"]}\n'
        >>> for split in ("train", "test"):
        ...     _ = Path(f"pets/{split}.jsonl").write_text(20 * lines)
        >>> run = mach_ext.train("pets", svm=True, overwrite=True, progress=False)
        >>> explanation = run.explain("a cat that sleeps", labels=["cat"])
        >>> explanation.top(1)[0][0], explanation.collisions[0].verdict
        ('cat', 'signal')
    """

    document: Document
    explanation: explain.Explanation
    votes: explain.Votes
    collisions: list[explain.Collisions]
    k: int
    features: int
    model: nn.MACH
    columns: data.Columns

    @functools.cached_property
    def leave_one_out(self) -> explain.LeaveOneOut:
        """The effect of removing a feature on the top k, for the features that matter most for a label.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> run.explain("a cat that sleeps", labels=["cat"]).leave_one_out.feature_names
            ['a', 'cat']
        """
        bars, vectorizer = self.explanation.bars, self.columns.vectorizer
        largest = np.unique(np.argsort(-np.abs(bars.effects), axis=1)[:, : self.features])
        features = bars.features[largest].tolist()
        if isinstance(self.explanation, explain.TokenExplanation):
            encoder, spans = text_encoder_of(self.columns), self.explanation.words.spans[largest]
            if encoder is not None and vectorizer is not None:
                return explain.leave_words_out(
                    self.model,
                    encoder,
                    self.explanation.text or "",
                    [(start, end) for start, end in spans.tolist() if start < end],
                    self.k,
                    vectorizer=vectorizer,
                    label_names=self.document.label_names,
                )
            features = [*self.explanation.features[: -len(self.explanation.tokens)], self.model.num_columns]
        return explain.leave_one_out(
            self.model,
            self.document.X,
            self.k,
            features,
            feature_names=self.document.feature_names,
            label_names=self.document.label_names,
        )

    @functools.cached_property
    def page(self) -> str:
        """The explanation as a self-contained HTML page.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> "<h1>Explanation of a text</h1>" in run.explain("a cat that sleeps").page
            True
        """
        return report.explanation_page(
            self.explanation,
            self.votes,
            self.collisions,
            self.leave_one_out,
            self.columns.vectorizer,
            self.document.title,
            self.document.true_labels,
        )

    def by_dimension(self) -> RunExplanation:
        """Returns the explanation so that charts, tables and pages show each dense feature alone.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> run.explain("a cat that sleeps").by_dimension().explanation.per_dimension
            True
        """
        return replace(self, explanation=self.explanation.by_dimension())

    def top(self, n: int = 10, label: int | None = None) -> list[tuple[str, float]]:
        """Returns the n features of largest absolute attribution, as pairs of a name and an attribution.

        Args:
            n: The number of features.
            label: Number of the label. None: the first label.

        Raises:
            ValueError: The label was not explained.

        Example:
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> [name for name, effect in run.explain("a cat that sleeps", labels=["cat"]).top()]
            ['cat', 'a']
        """
        return self.explanation.top(n, label)

    def to_html(self, file: str | os.PathLike[str]) -> None:
        """Writes the page.

        Args:
            file: The file to write.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> run.explain("a cat that sleeps").to_html("cat.html")
            >>> Path("cat.html").read_text().startswith("<!DOCTYPE html>")
            True
        """
        write(Path(file), self.page.encode())

    def save_parts(self, folder: Path) -> None:
        """Writes `explanation.json` and its chart `explanation.png` into a folder.

        Args:
            folder: The folder. It is created if needed.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> run.explain("a cat that sleeps").save_parts(Path("parts"))
            >>> sorted(file.name for file in Path("parts").iterdir())
            ['explanation.json', 'explanation.png']
        """
        picture = io.BytesIO()
        self.explanation.plot().savefig(picture, dpi=150)
        write(folder / "explanation.json", (self.explanation.to_json() + "\n").encode())
        write(folder / "explanation.png", picture.getvalue())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `explanation.json`, `explanation.png` and `explanation.html` into a folder.

        Args:
            folder: The folder. It is created if needed.

        Example:
            >>> from pathlib import Path
            >>> import mach_ext
            >>> run = mach_ext.Run.open("runs/pets")  # from the example of `RunExplanation`
            >>> run.explain("a cat that sleeps").save("cat")
            >>> sorted(file.name for file in Path("cat").iterdir())
            ['explanation.html', 'explanation.json', 'explanation.png']
        """
        self.save_parts(Path(folder))
        self.to_html(Path(folder) / "explanation.html")


def explain_document(
    model: nn.MACH,
    columns: data.Columns,
    document: Document,
    labels: Sequence[int | str] | int | str | None,
    k: int,
    features: int,
    options: dict[str, Any],
) -> RunExplanation:
    """Explains chosen labels of a document, or its top k.

    Args:
        model: The model of the run.
        columns: The model's columns.
        document: The document.
        labels: Labels by number or name. None: the model's top k.
        k: Size of the top k.
        features: As in `RunExplanation`.
        options: Further arguments of `mach_ext.explain.integrated_gradients`. If the model has a text encoder
            and the text is known, those of `mach_ext.explain.token_attributions`. Then `tokens=False` or
            `method="exact"` explains the embedding as one feature, or by its dimensions.
    """
    X, names = document.X, document.label_names
    if isinstance(labels, (str, int, np.integer)):
        labels = [labels]
    labels = model.predict(X, k)[1][0] if labels is None else list(labels)
    explanation = _attributions(model, columns, document, labels, options)
    votes = explain.votes(model, X, explanation.labels, k=k, label_names=names)
    collisions = [
        explain.collisions(model, X, label, k=k, label_names=names) for label in explanation.labels.tolist()
    ]
    return RunExplanation(document, explanation, votes, collisions, k, features, model, columns)


def _attributions(
    model: nn.MACH, columns: data.Columns, document: Document, labels: Any, options: dict[str, Any]
) -> explain.Explanation:
    """Explains a document by its features, or by its words and tokens."""
    tokens = options.get("tokens", True)
    common = {name: value for name, value in options.items() if name != "tokens"}
    common.update(feature_names=document.feature_names, label_names=document.label_names)
    by_path = common.get("method") in (None, "gausslegendre")
    encoder = text_encoder_of(columns) if tokens and by_path and document.text is not None else None
    if encoder is None or document.text is None:
        return explain.integrated_gradients(model, document.X, labels, text=document.text, **common)
    common.pop("method", None)
    if common.get("n_steps") is None:
        common.pop("n_steps", None)  # the usual steps, because as many as are needed may take minutes
    X, vectorizer = document.X, columns.vectorizer
    return explain.token_attributions(
        model, encoder, document.text, labels, X=X, vectorizer=vectorizer, **common
    )
