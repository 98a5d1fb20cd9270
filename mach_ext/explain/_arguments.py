"""Checks documents, ids and names that users give, and converts them for the computations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mach_ext._dense_features import joined_documents
from mach_ext._model_checks import SCORES as SCORES
from mach_ext._model_checks import values_dtype
from mach_ext.data import HybridMatrix, name_key
from mach_ext.data import attachments as kept
from mach_ext.head import MACHHead
from mach_ext.nn import MACH
from mach_ext.nn import check_model as model_or_head

Labels: TypeAlias = "int | str | Sequence[int | str] | NDArray[Any] | Tensor"
Names: TypeAlias = "Sequence[str] | None"


def check_model(op: str, model: Any) -> MACH:
    """Returns a model. A head becomes the linear MACH that it is on its hidden units.

    Raises:
        TypeError: The argument is neither a `MACH` nor a `MACHHead`.
        ValueError: Each repetition of the head has hidden units of its own.
    """
    if isinstance(model, MACHHead) and model.per_repetition:
        R, H = model.num_repetitions, model.in_features
        raise ValueError(
            f"{op}: model must be a head whose repetitions share their hidden units, got "
            f"per_repetition=True; with encoder=torch.nn.Identity(), X may be [N, R={R}, H={H}]"
        )
    return model_or_head(op, model)


def check_documents(op: str, model: MACH, X: Any, name: str = "X") -> Any:
    """Returns documents as canonical CSR [N, D + E]. A row stores all E dense features and no other zero."""
    X = joined_documents(f"{op}: {name}", model, X)
    if model.num_dense:
        D = model.num_features
        sparse: Any = _without_zeros(X[:, :D])
        return HybridMatrix(sparse, X[:, D:].toarray()).join()
    return _without_zeros(X)


def _without_zeros(X: Any) -> Any:
    """Returns a CSR matrix without stored zeros."""
    if (X.data == 0).any():
        X = X.copy()
        X.eliminate_zeros()
    return X


def block_name(num_dense: int) -> str:
    """Returns how charts and tables call all E dense features together."""
    return f"embedding ({num_dense:,} dimension{'s' * (num_dense != 1)})"


def check_document(op: str, model: MACH, X: Any) -> Any:
    """Checks a single document [1, D] as `check_documents` does."""
    document = check_documents(op, model, X)
    if document.shape[0] != 1:
        raise ValueError(
            f"{op}: X must be one document [1, D], got shape {document.shape}; explain_topk takes many"
        )
    return document


def check_features(op: str, features: NDArray[Any]) -> None:
    """Refuses a document without features, because there is nothing to explain."""
    if not features.size:
        raise ValueError(f"{op}: X: a document must have a feature to be explained, got none")


def values_at(row: Any, features: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns a CSR row's values at the given features. They must include all features of the row."""
    values = np.zeros(len(features), np.float32)
    values[np.searchsorted(features, row.indices)] = row.data
    return values


def document_tensors(model: MACH, X: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values, indices and indptr of documents as tensors on the model's device."""
    device = model.bucket_bias.device
    values = torch.from_numpy(X.data).to(device, values_dtype(model))
    return values, torch.from_numpy(X.indices).to(device), torch.from_numpy(X.indptr).to(device)


def resolve_labels(
    op: str, model: MACH | MACHHead, labels: Labels, names: Sequence[str], documents: int | None = None
) -> NDArray[np.int64]:
    """Returns the numbers of labels that are given by number or name, [m]. With `documents` N also [N, m].

    Raises:
        TypeError: The labels are neither integers nor names.
        ValueError: There is no label, a number is out of range, or a name is unknown or ambiguous.
    """
    ids = resolve_ids(op, "label", labels, model.num_labels, "L", names)
    if ids.ndim == 2 and (documents is None or ids.shape[0] != documents):
        rule = "[m]" if documents is None else f"[m] or [N={documents}, m]"
        raise ValueError(f"{op}: labels must be {rule}, got {list(ids.shape)}")
    return ids


def resolve_ids(
    op: str, kind: str, given: Any, count: int, size: str, names: Sequence[str]
) -> NDArray[np.int64]:
    """Returns the numbers of labels or features that are given by number or name."""
    if isinstance(given, Tensor):
        given = given.cpu().numpy()
    if isinstance(given, (str, int, np.integer)):
        given = [given]
    if isinstance(given, (list, tuple)) and any(isinstance(entry, str) for entry in given):
        given = [_id_of(op, kind, entry, names) if isinstance(entry, str) else entry for entry in given]
    if isinstance(given, np.ndarray) and given.dtype.kind in "UO":
        return resolve_ids(op, kind, given.tolist(), count, size, names)
    if isinstance(given, (list, tuple)):
        for entry in given:
            if isinstance(entry, int) and not 0 <= entry < count:  # the number may not fit int64
                raise ValueError(f"{op}: {kind}s must be in [0, {size}={count}), got {entry}")
    ids = np.asarray(given)
    if ids.size == 0:
        raise ValueError(f"{op}: {kind}s must be at least one, got none")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{op}: {kind}s must be ids (integers) or names, got {ids.dtype}")
    if ids.ndim not in (1, 2):
        raise ValueError(f"{op}: {kind}s must be one list, got shape {list(ids.shape)}")
    wrong = ids[(ids < 0) | (ids >= count)]
    if wrong.size:
        raise ValueError(f"{op}: {kind}s must be in [0, {size}={count}), got {wrong[0]}")
    return ids.astype(np.int64)


def _id_of(op: str, kind: str, name: str, names: Sequence[str]) -> int:
    """Returns the number of a name.

    A name that consists of digits is looked up as a name first, and then taken as a number.
    """
    if isinstance(names, Numbers):
        if name.isdecimal():
            return int(name)
        raise ValueError(f"{op}: the model keeps no {kind} names; give {kind}s by number, got {name!r}")
    matches = [i for i, other in enumerate(names) if other == name]
    if not matches:  # the names may have the same letters in another Unicode form
        matches = [i for i, other in enumerate(names) if name_key(other) == name_key(name)]
    if len(matches) > 1:
        raise ValueError(f"{op}: {kind} {name!r} is the name of {matches}; give the number")
    if not matches and name.isdecimal():  # a name of digits comes before a number
        return int(name)
    if not matches:
        word = re.compile(rf"\b{re.escape(name)}\b")
        close = sorted((other for other in names if word.search(other)), key=len)[:3]
        close = close or (difflib.get_close_matches(name, names, 3) if len(names) < 100_000 else [])
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"{op}: the model has no {kind} {name!r}{hint}")
    return matches[0]


def id_in_words(index: int, names: Sequence[str]) -> str:
    """Returns a number for messages, with its name if there is one."""
    return f"{index}" if isinstance(names, Numbers) else f"{index} ({names[index]!r})"


class Numbers(Sequence[str]):
    """Names of columns that have no names: each number is its own name."""

    def __getitem__(self, index: Any) -> Any:
        """Returns a number as a string."""
        return str(index)

    def __len__(self) -> int:
        """Returns a length that is larger than any number of columns."""
        return 2**31


class _ColumnNumbers(Numbers):
    """Names of columns without names, of which those from column D on are dense features.

    The number D + E stands for all of them.
    """

    def __init__(self, num_features: int, num_dense: int) -> None:
        self._sizes = num_features, num_dense

    def __getitem__(self, index: Any) -> Any:
        """Returns a number as a string, or the name of a dense feature or of all of them."""
        D, E = self._sizes
        if index < D:
            return str(index)
        return block_name(E) if index == D + E else f"dense {index - D}"


def label_names_of(op: str, model: MACH | MACHHead, names: Names) -> Sequence[str]:
    """Returns names of all labels: the given ones, those in the model, or numbers."""
    if names is None:
        names = kept.label_names(model.attachments, model.num_labels)
    return _names(op, "label", names, model.num_labels, "L")


def feature_names_of(op: str, model: MACH, names: Names) -> Sequence[str]:
    """Returns names of all features: the given ones, those in the model, or numbers.

    The E dense features of a model come last. They are called "dense 0", "dense 1", and so on.
    """
    D, E = model.num_features, model.num_dense
    if names is None:
        names = kept.feature_names(model.attachments, D)
    if names is None and E:
        names = _ColumnNumbers(D, E)
    if names is not None and E and not isinstance(names, Numbers) and len(names) == D:
        names = [*names, *(f"dense {e}" for e in range(E))]
    return _names(op, "feature", names, D + E, "D + E" if E else "D")


def _names(op: str, kind: str, names: Names, count: int, size: str) -> Sequence[str]:
    """Checks the number of names. None becomes numbers."""
    if names is None:
        return Numbers()
    if not isinstance(names, Numbers) and len(names) != count:
        raise ValueError(f"{op}: {kind}_names must be {size}={count} names, got {len(names)}")
    return names
