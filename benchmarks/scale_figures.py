"""Figures in the prose of docs/explanation/scale.md, as lines of figures.py."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import scale
from cuda_model import CARDS
from frames import RESULTS
from prose import Line
from scale_model import plan

CARD, DEV = "H200", 10_000  # the card of the page, and its dev documents
S = scale.SHARED


def lines(results: Any) -> list[Line]:
    """`results` is figures.Results."""
    return [*sizes(results), *training(results), *prediction(results), *assumptions(), *trust()]


def train(r: Any, gpus: int, layout: str, model: str = "shared", copies: int = 1) -> pd.Series[Any]:
    key = {"gpus": gpus, "layout": layout, "model": model, "copies": copies}
    row: pd.Series[Any] = r.only("scale", work="train", card=CARD, **key)
    return row


def sizes(r: Any) -> list[Line]:
    table = S.repetitions * S.labels
    seconds = table / 1e6 * r.only("scale_measured", part="label hash")["seconds"]
    linear = scale.memory(plan("data parallel", scale.LINEAR, 1))

    def sharing(buckets: int) -> float:
        """Labels that share so many buckets with a label."""
        return S.labels * math.comb(S.repetitions, buckets) / S.buckets**buckets

    return [
        ("With {} of them and", f"{DEV:,}"),
        ("a rank of eight receives {} GB.", f"{scale.dev_received(S, 8, DEV) / 1e9:.0f}"),
        ("one repetition with {} others", f"{sharing(1):,.0f}"),
        ("It shares two buckets with {} and three with {}.", f"{sharing(2):.0f}", f"{sharing(3):.3f}"),
        ("sums of squares, which is {} GB", f"{(linear['weights'] + linear['moments']) / 1e9:,.0f}"),
        (
            "bytes are {} GB. Divided by repetition over 8 GPUs it is {} GB",
            f"{4 * table / 1e9:.0f}",
            f"{4 * table / 8e9:.0f}",
        ),
        ("One core needs {} minutes to compute the whole", f"{seconds / 60:.0f}"),
        ("this is {} GB, whatever the model", f"{10 * table / 1e9:.0f}"),
        ("It can gather them, which is {} MB a document", f"{4 * S.outputs / 1e6:.1f}"),
        ("hidden units, {} KB, and", f"{4 * S.hidden / 1e3:.0f}"),
    ]


def training(r: Any) -> list[Line]:
    alone, unit = train(r, 8, "by repetition", "independent"), train(r, 8, "by unit")
    columns, bucket = train(r, 8, "by unit, columns"), train(r, 512, "by bucket")
    waiting = train(r, 8, "data parallel", copies=8)["exchange_seconds"]
    read = bucket["epoch_read"] / bucket["epoch_seconds"]

    def exchanging(row: pd.Series[Any]) -> float:
        """Percent of a step."""
        return 100 * float(row["exchange_seconds"] / (row["work_seconds"] + row["exchange_seconds"]))

    def megabytes(ranks: int) -> list[str]:
        return [f"{plan(of, S, ranks).received / 1e6:,.0f}" for of in ("by unit", "by unit, columns")]

    return [
        ("has about {} times the speed", f"{CARDS['H100']['hbm_copy'] / CARDS['H200']['hbm_copy']:.2f}"),
        ("no network and take {} hours an epoch", f"{alone['epoch_seconds'] / 3600:.2f}"),
        (
            "by unit takes {} hours, of which the exchanges are {} %",
            f"{unit['epoch_seconds'] / 3600:.1f}",
            f"{exchanging(unit):.1f}",
        ),
        ("wait {} ms in each step", f"{1e3 * waiting:.0f}"),
        ("a shared encoder takes {} hours", f"{train(r, 64, 'by bucket')['epoch_seconds'] / 3600:.2f}"),
        (
            "takes {} minutes, {} times as fast as on 8 GPUs. Exchanges are then {} %",
            f"{bucket['epoch_seconds'] / 60:.1f}",
            f"{columns['epoch_seconds'] / bucket['epoch_seconds']:.0f}",
            f"{exchanging(bucket):.0f}",
        ),
        ("a rank of 8 receives {} MB a step, and by columns {} MB", *megabytes(8)),
        ("With 32 ranks it is {} MB against {} MB", *megabytes(32)),
        ("A billion documents are {} GB", f"{bucket['epoch_read'] / 1e9:.0f}"),
        ("By bucket on 512 GPUs that is {} GB/s", f"{read / 1e9:.1f}"),
        ("on 512 GPUs has {} ms of work", f"{1e3 * bucket['work_seconds']:.2f}"),
    ]


def prediction(r: Any) -> list[Line]:
    row = r.only("scale", work="predict", card=CARD, gpus=8, layout="by label, hidden")
    scores = row["work_seconds"] + row["exchange_seconds"]
    flat, peaky = (S.documents * float(scores + row[f"{way}_seconds"]) for way in ("scan", "lists"))
    return [
        ("take {} days on 8 GPUs", f"{flat / 86400:.0f}"),
        ("With peaky ones they take {} hours", f"{peaky / 3600:.1f}"),
        ("stand out and that {} lists are read", f"{scale.LISTS}"),
    ]


def assumptions() -> list[Line]:
    node = scale.Cluster(CARD)
    near, far = f"{node.near / 1e9:.0f}", f"{node.far / 1e9:.0f}"
    return [
        ("a rank receives {} GB/s, which is {} of NVLink's 450", near, f"{node.near / 450e9:.1f}"),
        ("each GPU has {} GB/s, {} of InfiniBand's 400 Gb/s", far, f"{8 * node.far / 400e9:.1f}"),
        ("Each exchange costs {} us", f"{1e6 * node.latency:.0f}"),
    ]


def trust() -> list[Line]:
    ratios = [predicted / float(row["seconds"]) for row, predicted in scale.against_runs(RESULTS)]
    near = sum(abs(ratio - 1) <= 0.2 for ratio in ratios)
    return [("{} of the {} rows are within a fifth", str(near), str(len(ratios)))]
