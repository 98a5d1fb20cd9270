"""`mach-ext train`: trains a model and measures it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mach_ext._terminal import say
from mach_ext.cli import values
from mach_ext.cli.options import (
    DATASETS,
    Device,
    Output,
    Overwrite,
    Propensity,
    Quiet,
    Seed,
    SvmlightBase,
    choice,
    option,
    switch,
    words,
)
from mach_ext.cli.values import derived

EXAMPLE = "mach-ext train --dataset wordnet"

ENCODERS = ("shared", "independent")
MERGES = ("mean_logit", "mean_prob", "mean_logprob", "min_prob", "median_prob")
OPTIMIZERS = ("adam", "adagrad")
SCHEDULES = ("linear", "constant")
PRECISIONS = ("float32", "tf32", "bfloat16")
CHOICES = ("race", "rule")
METRICS = ("P@1", "P@3", "P@5", "nDCG@1", "nDCG@3", "nDCG@5")

Dataset = Annotated[
    str,
    option(
        "--dataset", parse=values.nonempty, metavar="DATA",
        complete=words(DATASETS),
        help="The dataset: a name, such as wordnet, or a folder with your own files.",
    ),
]  # fmt: skip
NoHoldout = Annotated[
    bool,
    switch(
        "--no-holdout", panel="Data",
        help="Train on all of train. Otherwise a tenth is held out for validation if there is no dev split.",
    ),
]  # fmt: skip
Resume = Annotated[
    bool, switch("--resume", panel="Output", help="Continue from the last checkpoint in the folder.")
]
TextEncoder = Annotated[
    str | None,
    option(
        "--text-encoder", parse=values.nonempty, metavar="ENCODER", panel="Model",
        help="A sentence encoder, whose embeddings of the texts stand beside their words: a folder, an "
        "installed package, or a name on the Hugging Face hub.",
    ),
]  # fmt: skip
Finetune = Annotated[
    bool,
    switch(
        "--finetune", panel="Model",
        help="Then train the sentence encoder with the model, and keep the encoder in the run folder.",
    ),
]  # fmt: skip
FinetuneEpochs = Annotated[
    int | None,
    option(
        "--finetune-epochs", parse=values.positive, metavar="N", panel="Training",
        help="Passes over the documents while the sentence encoder is trained.",
    ),
]  # fmt: skip
TextLearningRate = Annotated[
    float | None,
    option(
        "--text-learning-rate", parse=values.rate, metavar="RATE", panel="Training",
        help="The learning rate of the sentence encoder.",
    ),
]  # fmt: skip
DenseLearningRate = Annotated[
    float | None,
    option(
        "--dense-learning-rate", parse=values.rate, metavar="RATE", panel="Training",
        help="The learning rate of the weights that take dense features.",
    ),
]  # fmt: skip
DenseLength = Annotated[
    float | None,
    option(
        "--dense-length", parse=values.above_0, metavar="X", panel="Training",
        help="The length of a document's centred dense features, relative to its sparse features.",
    ),
]  # fmt: skip
HashFunctions = Annotated[
    int | None,
    option(
        "--hash-functions", parse=values.positive, metavar="R", panel="Model",
        help="The number of hash functions, each with a classifier of its own.",
    ),
]  # fmt: skip
Buckets = Annotated[
    int | None,
    option(
        "--buckets", parse=values.positive, metavar="B", panel="Model",
        help="The number of buckets into which a hash function puts the labels.",
    ),
]  # fmt: skip
HiddenSize = Annotated[
    Any,
    option(
        "--hidden-size", parse=values.hidden_sizes, metavar="H[,H2]", panel="Model",
        help="The number of hidden units. Two numbers give two layers, and 0 gives a linear model.",
    ),
]  # fmt: skip
Encoder = Annotated[
    str | None,
    choice(
        "--encoder", choices=ENCODERS, metavar="ENCODER", panel="Model",
        help="Whether the hash functions have a shared encoder or independent ones.",
    ),
]  # fmt: skip
Merge = Annotated[
    str | None,
    choice(
        "--merge", choices=MERGES, metavar="MERGE", panel="Model",
        help="How the hash functions' answers become a score: mean_logit, mean_prob, mean_logprob, min_prob "
        "or median_prob.",
    ),
]  # fmt: skip
Dropout = Annotated[
    float,
    option(
        "--dropout", parse=values.share, metavar="P", panel="Model",
        help="The probability that a hidden unit is dropped in a training step.",
    ),
]  # fmt: skip
FeatureDropout = Annotated[
    float,
    option(
        "--feature-dropout", parse=values.share, metavar="P", panel="Model",
        help="The probability that a feature of a document is dropped in a training step.",
    ),
]  # fmt: skip
Svm = Annotated[
    bool | None,
    typer.Option(
        "--svm/--no-svm", rich_help_panel="Solver", show_default="by the race",
        help="Train a support vector machine for each bucket, without learning rates or epochs.",
    ),
]  # fmt: skip
Cost = Annotated[
    float | None,
    option(
        "--C", parse=values.cost, metavar="C", panel="Solver",
        help="The misclassification cost of each support vector machine.",
    ),
]  # fmt: skip
Step = Annotated[
    float | None,
    option(
        "--step", parse=values.above_0, metavar="STEP", panel="Solver",
        help="Save support vector machines with weights rounded to multiples of this step, which makes the "
        "file many times smaller. For hidden layers see mach-ext compress.",
    ),
]  # fmt: skip
LabelNames = Annotated[
    bool | None,
    typer.Option(
        "--label-names/--no-label-names", rich_help_panel="Data",
        show_default="by the words of the documents, and by the race",
        help="Learn from the names of labels that have few documents, as if they were documents.",
    ),
]  # fmt: skip
Choice = Annotated[
    str,
    choice(
        "--choice", choices=CHOICES, metavar="HOW", panel="Solver",
        help="How solver and rates are chosen where no flag says it: race, which tries them on a sample, or "
        "rule.",
    ),
]  # fmt: skip
Epochs = Annotated[
    int | None,
    option(
        "--epochs", parse=values.natural, metavar="N", panel="Training", help="Passes over the documents."
    ),
]
BatchSize = Annotated[
    int | None,
    option("--batch-size", parse=values.positive, metavar="N", panel="Training", help="Documents in a step."),
]
Optimizer = Annotated[
    str | None,
    choice(
        "--optimizer", choices=OPTIMIZERS, metavar="NAME", panel="Training",
        help="The optimizer: adam or adagrad.",
    ),
]  # fmt: skip
LearningRate = Annotated[
    float | None,
    option("--learning-rate", parse=values.rate, metavar="RATE", panel="Training", help="The learning rate."),
]
EncoderLearningRate = Annotated[
    float | None,
    option(
        "--encoder-learning-rate", parse=values.rate, metavar="RATE", panel="Training",
        help="The learning rate of the encoder's weights.",
    ),
]  # fmt: skip
EncoderEps = Annotated[
    float | None,
    option(
        "--encoder-eps", parse=values.eps, metavar="EPS", panel="Training",
        help="The eps of Adam for the encoder's weights.",
    ),
]  # fmt: skip
Eps = Annotated[
    float | None,
    option(
        "--eps", parse=values.eps, metavar="EPS", panel="Training",
        help="The eps of Adam for all other weights.",
    ),
]  # fmt: skip
Schedule = Annotated[
    str | None,
    choice(
        "--schedule", choices=SCHEDULES, metavar="NAME", panel="Training",
        help="How the learning rate changes: linear, which falls to 0, or constant.",
    ),
]  # fmt: skip
GradientThreshold = Annotated[
    float | None,
    option(
        "--gradient-threshold", parse=values.share, metavar="P", panel="Training",
        help="Combine the gradients of buckets whose probability is below this number, which saves time.",
    ),
]  # fmt: skip
NegligibleGradient = Annotated[
    float | None,
    option(
        "--negligible-gradient", parse=values.share, metavar="P", panel="Training", hidden=True,
        help="The former name of --gradient-threshold.",
    ),
]  # fmt: skip
Precision = Annotated[
    str | None,
    choice(
        "--precision", choices=PRECISIONS, metavar="TYPE", panel="Training",
        help="The number type of the matrix products: float32, tf32 on a GPU, or bfloat16.",
    ),
]  # fmt: skip
Patience = Annotated[
    int | None,
    option(
        "--patience", parse=values.positive, metavar="N", panel="Training",
        help="Stop after this many epochs without a better result on dev.",
    ),
]  # fmt: skip
RepetitionsAtATime = Annotated[
    int | None,
    option(
        "--repetitions-at-a-time", parse=values.positive, metavar="R", panel="Training",
        help="Train this many classifiers of a linear model at a time. Fewer need less memory.",
    ),
]  # fmt: skip
Tau = Annotated[
    float | None,
    option(
        "--tau", parse=values.tau, metavar="TAU", panel="Training",
        help="How far frequent labels are ranked down. 0 leaves the ranking as it is.",
    ),
]  # fmt: skip
Metric = Annotated[
    str | None,
    choice(
        "--metric", choices=METRICS, metavar="METRIC", panel="Training",
        help="The metric on dev that picks the best epoch: P or nDCG, at 1, 3 or 5. Ties go by the loss.",
    ),
]  # fmt: skip


def run(
    ctx: typer.Context,
    dataset: Dataset,
    no_holdout: NoHoldout = False,
    svmlight_base: SvmlightBase = derived("1 if no file has a feature 0"),
    propensity: Propensity = derived("by the dataset's name"),
    num_repetitions: HashFunctions = derived("8, 16 or 32, by the data's size"),
    num_buckets: Buckets = derived("the power of two next to half the labels, 16 to 2048"),
    hidden_size: HiddenSize = derived("256, 128 or 512, by the data's size"),
    encoder: Encoder = derived("independent, or shared with --hidden-size"),
    text_encoder: TextEncoder = None,
    finetune: Finetune = False,
    merge: Merge = derived("mean_logit, or mean_logprob with --svm"),
    hidden_dropout: Dropout = 0.0,
    feature_dropout: FeatureDropout = 0.0,
    svm: Svm = None,
    C: Cost = derived("1"),
    quantization_step: Step = derived("weights as they are"),
    choice: Choice = "race",
    label_names: LabelNames = None,
    epochs: Epochs = derived("5 to 10, fewer for more documents"),
    batch_size: BatchSize = derived("256"),
    optimizer: Optimizer = derived("adam, or adagrad for linear models"),
    learning_rate: LearningRate = derived("0.002, or 0.5 for linear models"),
    encoder_learning_rate: EncoderLearningRate = derived("0.3"),
    encoder_eps: EncoderEps = derived("0.0001"),
    eps: Eps = derived("0.00000001"),
    dense_learning_rate: DenseLearningRate = derived("0.3, or 0.5 for linear models"),
    dense_length: DenseLength = derived("1"),
    finetune_epochs: FinetuneEpochs = derived("2 with --finetune"),
    text_learning_rate: TextLearningRate = derived("0.00005"),
    schedule: Schedule = derived("linear"),
    gradient_threshold: GradientThreshold = derived("0, which is exact"),
    negligible_gradient: NegligibleGradient = None,
    precision: Precision = derived("float32"),
    patience: Patience = derived("never"),
    repetitions_at_a_time: RepetitionsAtATime = derived("all"),
    tau: Tau = derived("1 / the root of the documents a label has, at most 0.5"),
    metric: Metric = derived("P@1"),
    output: Output = derived("runs/<dataset>"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a model on a dataset, measure it, and keep everything in a run folder."""
    from mach_ext import runs
    from mach_ext.cli.results import all_done, show_metrics
    from mach_ext.runs.trainer import measure, write_training_metrics

    given = dict(ctx.params)  # three of them have other names in runs.train
    options: dict[str, Any] = {"holdout": not given.pop("no_holdout"), "progress": not given.pop("quiet")}
    _take_former_name(given)
    trained = runs.train(given.pop("dataset"), evaluate=False, **options, **given)
    results = measure(trained)
    with all_done() as then:
        for name, result in results.items():
            then(show_metrics, name, result)
        then(write_training_metrics, trained, results)


def _take_former_name(given: dict[str, Any]) -> None:
    """Takes --negligible-gradient for --gradient-threshold, if that is not given."""
    if (former := given.pop("negligible_gradient")) is not None:
        say("warning: --negligible-gradient is now called --gradient-threshold")
        if given["gradient_threshold"] is None:
            given["gradient_threshold"] = former
