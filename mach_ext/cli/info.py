"""`mach-ext info`: the shape, memory and training of a run."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from mach_ext._terminal import escaped, one_line, show
from mach_ext.cli.options import NEWEST_RUN, ModelPath, switch

EXAMPLE = "mach-ext info --json"

Json = Annotated[bool, switch("--json", panel="Output", help="Print JSON.")]


def run(model_path: ModelPath = NEWEST_RUN, json_only: Json = False) -> None:
    """Show what a run is: its shape, parameters, memory, label collisions and training record."""
    from mach_ext import runs
    from mach_ext.runs import race
    from mach_ext.runs.summary import stored_weights

    opened = runs.Run.open(model_path)
    record, model = opened.info(), opened.model
    if json_only:
        show(json.dumps(record, indent=2))
        return
    show(f"{escaped(str(opened.folder))}\n{model}")
    if (encoder := record["text_encoder"]) is not None:
        show(
            f"\ntext encoder  {one_line(encoder['name'])}: {encoder['num_dense']} dense features of at most "
            f"{encoder['max_length']} tokens\n  digest      {encoder['digest']}"
        )
    weights = stored_weights(model)
    total = sum(p.numel() for p in weights.values())
    show(f"\nparameters  {total:,}")
    for name, parameter in weights.items():
        show(f"  {name:<16}{list(parameter.shape)!s:<24}{parameter.numel():>16,}  {parameter.dtype}")
    memory = record["memory"]
    show(f"\n{'memory, batches of 256 documents':<42}" + "".join(f"{name.upper():>12}" for name in memory))
    for name in memory["cpu"]:
        show(f"  {name:<40}" + "".join(f"{_size(each[name]):>12}" for each in memory.values()))
    show(f"\nlabel hash\n{model.hash.diagnostics()}")
    operators = record["operators"]
    show(f"\noperators: CPU {operators['cpu']}; CUDA: {operators['cuda']}")
    if record["race"] is not None:
        show("\n" + "\n".join(race.table(record["race"])))
    for line in _training_lines(record["training"]) if record["training"] is not None else ():
        show(line)


def _training_lines(record: dict[str, Any]) -> list[str]:
    """Returns lines about the training, from the record that `read_checkpoint` returns."""
    state, settings = record["progress"], dict(record["hyperparameters"])
    chosen = [entry["tau"] for entry in state["history"] if "tau" in entry]
    settings |= {"tau": f"{chosen[-1]:g} (chosen on dev)"} if chosen else {}
    lines = [
        f"\ntraining: {state['epoch']} of {settings['epochs']} epochs, {state['seconds']:.0f} s",
        "  " + ", ".join(f"{k} {v}" for k, v in settings.items() if k != "epochs"),
    ]
    for entry in state["history"]:
        if "loss" in entry:  # the last entry of repetitions that are trained in turn has no loss
            scores = entry.get("dev", {}).items()
            dev = "  ".join(f"{k} {math.nan if v is None else v:.4f}" for k, v in scores if k[0] == "P")
            lines.append(f"  epoch {entry['epoch']}: loss {entry['loss']:.4f}  {dev}")
    return lines


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}"
