"""`mach-ext train`: trains a model and measures it."""

from __future__ import annotations

import argparse
from typing import Any

from mach_ext import nn, runs, training
from mach_ext.cli.options import (
    add_overwrite,
    add_propensity,
    add_reader_options,
    cost,
    hidden_sizes,
    natural,
    nonempty,
    positive,
    rate,
    share,
    tau,
)
from mach_ext.cli.results import all_done, show_metrics
from mach_ext.runs.trainer import measure, write_training_metrics


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", type=nonempty, required=True, help="a name (wordnet, wiki10, ...) or a folder"
    )
    parser.add_argument(
        "--no-holdout",
        action="store_true",
        default=False,
        help="without a dev split, train on all of train instead of holding a tenth out for validation",
    )
    parser.add_argument("--resume", action="store_true", default=False, help="go on from the last checkpoint")
    add_overwrite(parser)
    add_reader_options(parser)
    add_propensity(parser)
    _add_model_options(parser.add_argument_group("model"))
    _add_solver_options(parser.add_argument_group("a solver in place of the training below"))
    _add_fit_options(parser.add_argument_group("training"))


def _add_model_options(model: Any) -> None:
    model.add_argument("--hash-functions", type=positive, default=None, metavar="R", help="repetitions (8)")
    model.add_argument(
        "--buckets", type=positive, default=None, metavar="B",
        help="per repetition (the power of two next to L/2, within 16 ... 2048)",
    )  # fmt: skip
    model.add_argument(
        "--hidden-size", type=hidden_sizes, default=None, metavar="H[,H2]",
        help="hidden units; 0: linear MACH; two numbers: two layers (256, with independent encoders)",
    )  # fmt: skip
    model.add_argument(
        "--encoder", choices=nn.ENCODERS, default=None,
        help="(independent; where --hidden-size is given, shared)",
    )  # fmt: skip
    model.add_argument(
        "--merge", choices=tuple(nn.MODEL_MERGES), default=None, help="(mean_logit; with --svm mean_logprob)"
    )
    model.add_argument("--dropout", type=share, default=0.0, metavar="P", help="of hidden units (0)")
    model.add_argument("--feature-dropout", type=share, default=0.0, metavar="P", help="of non-zeros (0)")


def _add_solver_options(solver: Any) -> None:
    solver.add_argument(
        "--svm", action=argparse.BooleanOptionalAction, default=None,
        help="linear MACH, a support vector machine for each bucket: no rates, no epochs (where a label has "
        "32 documents or more on average, of 10,000 or more, and no other flag asks for what it has not)",
    )  # fmt: skip
    solver.add_argument("--C", type=cost, default=None, help="of the SVMs: cost of an error (1)")


def _add_fit_options(fit: Any) -> None:
    fit.add_argument("--epochs", type=natural, default=None, help="(225,000 documents, within 5 ... 10)")
    fit.add_argument("--batch-size", type=positive, default=None, help="documents a step (256)")
    fit.add_argument("--optimizer", choices=training.OPTIMIZERS, default=None, help="(adam; linear: adagrad)")
    fit.add_argument("--learning-rate", type=rate, default=None, help="(0.002; linear: 0.5)")
    fit.add_argument("--encoder-learning-rate", type=rate, default=None, help="of the encoder's rows (0.3)")
    fit.add_argument("--encoder-eps", type=rate, default=None, help="Adam's eps for these rows (1e-4)")
    fit.add_argument("--schedule", choices=training.SCHEDULES, default=None, help="(linear)")
    fit.add_argument(
        "--gradient-threshold",
        "--negligible-gradient",
        type=share,
        default=None,
        help="see mach_ext.training (0: exact)",
    )
    fit.add_argument(
        "--precision", choices=training.PRECISIONS, default=None, help="of the products (float32)"
    )
    fit.add_argument("--patience", type=positive, default=None, help="epochs without gain before stopping")
    fit.add_argument(
        "--repetitions-at-a-time",
        type=positive,
        default=None,
        metavar="R",
        help="linear MACH: to save memory",
    )
    fit.add_argument(
        "--tau", type=tau, default=None,
        help="how far frequent labels are ranked down (1 / root of the documents a label has, at most 0.5)",
    )  # fmt: skip
    fit.add_argument(
        "--metric",
        choices=training.METRICS,
        default=None,
        help="dev metric that picks the best epoch, ties by loss (P@1)",
    )


def run(args: Any) -> None:
    """Trains, shows the metrics and writes them."""
    settings = {name: getattr(args, name) for name in training.Hyperparameters.__dataclass_fields__}
    run = runs.train(
        args.dataset,
        output=args.output,
        num_repetitions=args.hash_functions,
        num_buckets=args.buckets,
        hidden_size=args.hidden_size,
        encoder=args.encoder,
        merge=args.merge,
        feature_dropout=args.feature_dropout,
        hidden_dropout=args.dropout,
        svm=args.svm,
        C=args.C,
        repetitions_at_a_time=args.repetitions_at_a_time,
        holdout=not args.no_holdout,
        resume=args.resume,
        overwrite=args.overwrite,
        svmlight_base=args.svmlight_base,
        propensity=args.propensity,
        device=args.device,
        progress=not args.quiet,
        evaluate=False,
        **settings,
    )
    results = measure(run)
    with all_done() as then:
        for name, result in results.items():
            then(show_metrics, name, result)
        then(write_training_metrics, run, results)
