"""What can be attacked: a model, a head on its hidden units, or a head behind an encoder of the user's."""

from __future__ import annotations

from typing import Any

from mach_ext._user_encoder import check_encoder
from mach_ext.attack.threats import ThreatModel, threat_model
from mach_ext.head import MACHHead
from mach_ext.nn import MACH, check_model, linear_model


def attacked_model(op: str, model: Any, encoder: Any = None) -> Any:
    """Returns the model or, with an encoder, the head. A head alone is linear MACH on its hidden units."""
    if not isinstance(model, (MACH, MACHHead)):
        check_model(op, model)  # which refuses it
    if encoder is not None:
        if not (isinstance(model, MACH) and model.num_dense and callable(encoder)):
            check_encoder(op, model, encoder)
        return model
    if isinstance(model, MACH):
        return model
    if model.per_repetition:
        raise ValueError(
            f"{op}: a head of per_repetition=True must have an encoder=, because its hidden units are no "
            "matrix [N, H]"
        )
    return linear_model(model)


def threat_of(model: Any, threat: str | ThreatModel) -> ThreatModel:
    """Returns the threat model of a name. For a head and behind an encoder, a name allows negative values.

    Words have weights of at least 0. Hidden units and embeddings have both signs.
    """
    has_signs = model is None or isinstance(model, MACHHead)
    return threat_model(threat, nonnegative=False if has_signs else None)
