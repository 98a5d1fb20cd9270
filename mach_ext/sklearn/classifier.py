"""The estimator `MACHClassifier`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from mach_ext._memory import check_memory
from mach_ext.data import HybridMatrix, check_columns
from mach_ext.data.matrices import Csr
from mach_ext.nn import checked_k
from mach_ext.sklearn._decoding import all_scores, best_indicator, check_rule
from mach_ext.sklearn._documents import checked_num_dense, read_documents
from mach_ext.sklearn._targets import (
    CLASSES,
    DENSE,
    Fitted,
    as_rectangle,
    check_weights,
    read_indicator,
    read_target,
)
from mach_ext.sklearn._training import train_model

_MAX_SCORES = 1 << 26  # `decision_function` returns at most so many scores: 256 MiB.


class MACHClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """MACH as a scikit-learn classifier, for one class a document or for many labels.

    `fit` chooses the sizes, the solver and the settings that are None as `mach_ext.train` does. The same data
    and arguments give the same bits. Two defaults differ. `mach_ext.train` holds a tenth of the documents out
    to choose the best epoch, and this estimator trains on all of them, unless `holdout=True`. It may also
    learn from the names of labels, and this estimator does not.

    `y` may have four forms:

    * **Classes** [N]. Each document has one class, of any name. `predict` returns classes.
    * **Lists of labels**. Each document has a list, tuple, set or array of names or numbers, which may be
      empty. `predict` returns a sparse indicator, and `label_lists` turns it into names.
    * **A sparse indicator** [N, L]. An entry is 1 if the document has the label. `predict` returns one, too.
    * **A dense indicator** [N, L] of zeros and ones. `predict` returns a dense one, and that alone takes
      memory for N * L numbers. Equally long lists of two or more zeros and ones count as this form.

    A score is on the scale of the merge of `model_`: a mean logit by default, and a mean log-probability with
    support vector machines. Scores rank labels. They are no calibrated probabilities of labels, so there is
    no `predict_proba`. `fit` takes no sample weights.

    Args:
        num_repetitions: R, the number of hash functions.
        num_buckets: B, the number of buckets of each hash function.
        hidden_size: The number of hidden units. 0: linear MACH. A pair: two layers.
        encoder: "shared" or "independent".
        merge: How the scores of a label's buckets are merged, as in `MACH`.
        feature_dropout: Probability that a non-zero feature is dropped in training.
        hidden_dropout: Probability that a hidden unit is dropped in training.
        num_dense: E, the number of dense features, such as the size of a sentence embedding. They are the
            last E columns of X, as a `FeatureUnion` of a vectorizer and an encoder gives them. They are
            centred and scaled, as `MACH.scale_dense` says. If E is the number of all columns, there are no
            sparse features.
        svm: True: a support vector machine for each bucket instead of gradient training. None: as `choice`
            says, if no argument is given that needs gradient training.
        C: Misclassification cost of each support vector machine. None: 1.
        repetitions_at_a_time: Number of repetitions that are trained together. Linear MACH only. See `fit`.
        holdout: Hold a tenth of the documents out, to keep the epoch that is best on them.
        choice: How the solver and its rates are chosen if they are not given. "race": by trying them on a
            sample, in about a fifth of the training's time, or ten seconds where that is more. With fewer
            than 200 documents to decide, rules choose. "rule": always by rules.
        epochs: As in `mach_ext.training.Hyperparameters`, like all arguments from here to `eps`.
        batch_size: Documents in a step.
        optimizer: "adam" or "adagrad".
        learning_rate: Learning rate of everything but the encoder's rows.
        encoder_learning_rate: Learning rate of the weight that takes the documents.
        encoder_eps: Adam's eps for that weight.
        schedule: "linear" or "constant".
        patience: With `holdout`, stop after so many epochs without a better metric.
        metric: With `holdout`, the metric that picks the best epoch.
        gradient_threshold: Gradients of probabilities below it enter the backward pass together.
        precision: "float32", "tf32" or "bfloat16".
        tau: Strength of the logit adjustment.
        dense_length: Length of typical dense features, as a multiple of the length of the sparse ones.
        dense_learning_rate: Learning rate of the weights that take dense features.
        eps: Adam's eps for everything but the encoder's rows.
        k: Number of labels that `predict` gives each document, and `predict_topk` by default. None: 5, or L
            if there are fewer labels. With a threshold, `predict` gives at most k labels, and None sets no
            limit. Neither k nor the threshold changes the `predict` of classes.
        threshold: `predict` gives the labels whose score is at least this number, on the scale of the scores
            of `predict_topk`. Like them, it is rounded to float32. Buckets of probability 1/2 score 0.0 with
            the merge "mean_logit", -0.693 with "mean_logprob", and 0.5 with the others. With "mean_logit" the
            logit adjustment then shifts each label's score, unless `tau=0.0`. None: `predict` gives the best
            k labels.
        device: "cpu", "cuda" or "cuda:N".
        random_state: Seed of the label hash, the weights and the batches. None or a `RandomState`: the seed
            is drawn, as everywhere in scikit-learn.
        progress: Show progress bars on standard error.

    Attributes:
        classes_: The names of the labels [L], sorted. They are 0 to L - 1 if `y` was an indicator.
        model_: The `mach_ext.MACH`. `model_.save(folder)` writes it without the estimator.
        history_: The record of each epoch, as in `mach_ext.training.Progress`.
        race_: The race that chose: its contenders, their P@k and the winner. None if there was none.
        n_features_in_: D, the number of features, or D + E with dense ones.
        feature_names_in_: The names of the features, if X had names that are strings.

    Example:
        >>> import numpy as np
        >>> from mach_ext.sklearn import MACHClassifier
        >>> X = np.eye(4)[np.arange(40) % 4]
        >>> y = np.array(["cat", "dog", "owl", "eel"])[np.arange(40) % 4]
        >>> classifier = MACHClassifier(hidden_size=32, epochs=30).fit(X, y)
        >>> classifier.predict(X[:2])
        array(['cat', 'dog'], dtype='<U3')
        >>> classifier.score(X, y)
        1.0
    """

    def __init__(
        self,
        *,
        num_repetitions: int | None = None,
        num_buckets: int | None = None,
        hidden_size: int | Sequence[int] | None = None,
        encoder: str | None = None,
        merge: str | None = None,
        feature_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        num_dense: int = 0,
        svm: bool | None = None,
        C: float | None = None,
        repetitions_at_a_time: int | None = None,
        holdout: bool = False,
        choice: str = "race",
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: str | None = None,
        learning_rate: float | None = None,
        encoder_learning_rate: float | None = None,
        encoder_eps: float | None = None,
        schedule: str | None = None,
        patience: int | None = None,
        metric: str | None = None,
        gradient_threshold: float | None = None,
        precision: str | None = None,
        tau: float | None = None,
        dense_length: float | None = None,
        dense_learning_rate: float | None = None,
        eps: float | None = None,
        k: int | None = None,
        threshold: float | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
        progress: bool = False,
    ) -> None:
        self.num_repetitions = num_repetitions
        self.num_buckets = num_buckets
        self.hidden_size = hidden_size
        self.encoder = encoder
        self.merge = merge
        self.feature_dropout = feature_dropout
        self.hidden_dropout = hidden_dropout
        self.num_dense = num_dense
        self.svm = svm
        self.C = C
        self.repetitions_at_a_time = repetitions_at_a_time
        self.holdout = holdout
        self.choice = choice
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.encoder_learning_rate = encoder_learning_rate
        self.encoder_eps = encoder_eps
        self.schedule = schedule
        self.patience = patience
        self.metric = metric
        self.gradient_threshold = gradient_threshold
        self.precision = precision
        self.tau = tau
        self.dense_length = dense_length
        self.dense_learning_rate = dense_learning_rate
        self.eps = eps
        self.k = k
        self.threshold = threshold
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any) -> MACHClassifier:
        """Train a model. What a former fit left is replaced, but only if this fit succeeds.

        Args:
            X: Documents [N, D], SciPy sparse of any format or dense. With `num_dense`, they have D + E
                columns, or are a `mach_ext.data.HybridMatrix`.
            y: The labels of the documents, in one of the four forms.

        Returns:
            The estimator itself.

        Raises:
            TypeError: The data or a parameter has a wrong type.
            ValueError: The data or a parameter is not valid.
            FloatingPointError: The loss became NaN or infinite.
            MemoryError: Memory does not suffice.
            TrainingInterrupted: Ctrl-C was pressed.

        Example:
            >>> import scipy.sparse
            >>> from mach_ext.sklearn import MACHClassifier
            >>> X = scipy.sparse.eye(3, format="csr")
            >>> MACHClassifier(epochs=1).fit(X, [["cat", "pet"], ["dog", "pet"], ["owl"]]).classes_
            array(['cat', 'dog', 'owl', 'pet'], dtype=object)
        """
        former = self.__dict__.copy()
        try:
            self._fit(X, y)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(former)
            raise
        return self

    def _fit(self, X: Any, y: Any) -> None:
        """Implement `fit`, without its care for a failure."""
        X = read_documents(self, X, checked_num_dense(self.num_dense), reset=True)
        target = read_target(y)
        check_consistent_length(X, target.content)
        classes, Y = target.encode()
        if target.form != CLASSES:
            check_rule(self.k, self.threshold, len(classes))
        self.model_, state, race = train_model(self.get_params(deep=False), X, Y)
        self.race_ = None if race is None else race.record()
        self.classes_, self.history_, self._form = classes, state.history, target.form

    def predict(self, X: Any) -> NDArray[Any] | Csr:
        """Return the best class of each document, or its labels as an indicator.

        The indicator has a column for each of `classes_`. Each document gets the best k labels, or the labels
        whose score reaches the threshold. Both are exact. A document without features gets the labels of an
        empty document.

        Args:
            X: Documents [N, D], SciPy sparse of any format or dense.

        Returns:
            Classes [N] if `y` had classes. Otherwise an int64 indicator [N, L]. It is a SciPy CSR matrix,
            or a NumPy array if `y` was a dense indicator.

        Raises:
            NotFittedError: There was no `fit`.
            ValueError: X is not valid, or k or the threshold is out of range.
            MemoryError: Memory does not suffice.

        Example:
            >>> import scipy.sparse
            >>> from mach_ext.sklearn import MACHClassifier
            >>> X = Y = scipy.sparse.eye(3, format="csr")
            >>> classifier = MACHClassifier(k=1, epochs=30).fit(X, Y)
            >>> classifier.predict(X).toarray()
            array([[1, 0, 0],
                   [0, 1, 0],
                   [0, 0, 1]])
        """
        X = self._documents(X)
        if self._form == CLASSES:
            return self.classes_[self.model_.predict(X, 1)[1][:, 0]]
        indicator = best_indicator(self.model_, X, *check_rule(self.k, self.threshold, len(self.classes_)))
        if self._form != DENSE:
            return indicator
        N, L = indicator.shape
        advice = "pass fewer documents, or fit on a sparse indicator"
        check_memory("MACHClassifier.predict: a dense indicator", 8 * N * L, advice, N=N, L=L)
        return indicator.toarray()

    def predict_topk(self, X: Any, k: int | None = None) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return the k best labels of each document with their scores, best first.

        Args:
            X: Documents [N, D], SciPy sparse of any format or dense.
            k: The number of labels, from 1 to L. None: that of the constructor.

        Returns:
            Scores [N, k], on the scale of the model's merge, and labels [N, k] as entries of `classes_`.

        Raises:
            NotFittedError: There was no `fit`.
            ValueError: X is not valid, or k is out of range.
            MemoryError: Memory does not suffice.

        Example:
            >>> import scipy.sparse
            >>> from mach_ext.sklearn import MACHClassifier
            >>> X = scipy.sparse.eye(3, format="csr")
            >>> classifier = MACHClassifier(epochs=30).fit(X, [["cat"], ["dog"], ["owl"]])
            >>> scores, labels = classifier.predict_topk(X, k=2)
            >>> labels[:, 0], bool((scores[:, 0] > scores[:, 1]).all())
            (array(['cat', 'dog', 'owl'], dtype=object), True)
        """
        X = self._documents(X)
        k = checked_k("MACHClassifier", self.k if k is None else k, len(self.classes_))
        scores, labels = self.model_.predict(X, k)
        return scores, self.classes_[labels]

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return the scores of all labels.

        Args:
            X: Documents [N, D], SciPy sparse of any format or dense.

        Returns:
            Scores [N, L], float32, on the scale of the model's merge. If `y` had two classes, the score of
            the second class less that of the first, [N].

        Raises:
            NotFittedError: There was no `fit`.
            ValueError: X is not valid, or N * L is above 2^26. `predict_topk` has no such bound.
            MemoryError: Memory does not suffice.

        Example:
            >>> import scipy.sparse
            >>> from mach_ext.sklearn import MACHClassifier
            >>> X = scipy.sparse.eye(3, format="csr")
            >>> classifier = MACHClassifier(epochs=30).fit(X, ["cat", "dog", "owl"])
            >>> classifier.decision_function(X).argmax(axis=1)
            array([0, 1, 2])
        """
        X = self._documents(X)
        N, L = X.shape[0], len(self.classes_)
        if N * L > _MAX_SCORES:
            raise ValueError(
                f"MACHClassifier.decision_function: N * L must be at most {_MAX_SCORES:,}, because all "
                f"scores are held at once, got {N:,} * {L:,}; use predict_topk"
            )
        scores = all_scores(self.model_, X)
        if self._form == CLASSES and L == 2:
            difference: NDArray[np.float32] = scores[:, 1] - scores[:, 0]
            return difference
        return scores

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return P@1, the share of documents whose best label is one of theirs.

        For classes this is the accuracy. A label that the fit did not have counts as a miss, and so does a
        document without labels.

        Args:
            X: Documents [N, D], SciPy sparse of any format or dense.
            y: Their labels, in one of the four forms.
            sample_weight: The weight of each document, [N]. None: all weigh the same.

        Raises:
            NotFittedError: There was no `fit`.
            TypeError: `y` has a wrong type.
            ValueError: X, `y` or the weights are not valid.

        Example:
            >>> import scipy.sparse
            >>> from mach_ext.sklearn import MACHClassifier
            >>> X = scipy.sparse.eye(3, format="csr")
            >>> classifier = MACHClassifier(epochs=30).fit(X, [["cat"], ["dog"], ["owl"]])
            >>> classifier.score(X, [["cat"], ["dog", "pet"], ["owl", "bird"]])
            1.0
        """
        X = self._documents(X)
        target = read_target(y, Fitted(self._form, self.classes_))
        check_consistent_length(X, target.content, sample_weight)
        weights = check_weights(sample_weight, X.shape[0])
        best = self.model_.predict(X, 1)[1][:, 0]
        return float(np.average(target.hits(self.classes_, best), weights=weights))

    def label_lists(self, indicator: Any) -> list[list[Any]]:
        """Return the names of the labels of each document, in the order of `classes_`.

        Args:
            indicator: [N, L], dense or sparse, such as `predict` returns.

        Raises:
            NotFittedError: There was no `fit`.
            ValueError: It is no indicator of these labels.

        Example:
            >>> import scipy.sparse
            >>> from mach_ext.sklearn import MACHClassifier
            >>> X = scipy.sparse.eye(3, format="csr")
            >>> classifier = MACHClassifier(epochs=1).fit(X, [["cat", "pet"], ["dog", "pet"], ["owl"]])
            >>> classifier.label_lists([[1, 0, 0, 1], [0, 0, 0, 0]])
            [['cat', 'pet'], []]
        """
        check_is_fitted(self, "model_")
        if not scipy.sparse.issparse(indicator):
            indicator = as_rectangle(indicator)
        csr = read_indicator(indicator, "indicator")
        check_columns(csr, "MACHClassifier: indicator", len(self.classes_), "L")
        names = self.classes_[csr.indices].tolist()
        return [names[start:end] for start, end in zip(csr.indptr[:-1], csr.indptr[1:], strict=True)]

    def _documents(self, X: Any) -> Csr | HybridMatrix:
        """Return checked documents for a fitted model."""
        check_is_fitted(self, "model_")
        return read_documents(self, X, self.model_.num_dense)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        """Return the same tags for scikit-learn below 1.6."""
        return {"X_types": ["2darray", "sparse"], "multilabel": True}
