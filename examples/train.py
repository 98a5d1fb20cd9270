"""Train, evaluate and ask a MACH model from Python: the script to copy.

Run: python examples/train.py [DATASET]     (a name such as wordnet, or a folder; see the README's formats)
"""

import argparse
from pathlib import Path
from typing import Any

import mach_ext
from mach_ext import runs


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?", default="wordnet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--output", default="runs/example")
    args = parser.parse_args()

    dataset = mach_ext.data.load(args.dataset)  # train/dev/test pairs of SciPy CSR matrices, with names
    train, dev, test = dataset.train, dataset.dev, dataset.test
    if dev is None or test is None:
        raise SystemExit(
            f"{args.dataset}: needs a dev and a test split, there are {', '.join(dataset.splits)}"
        )

    model = mach_ext.MACH(
        num_features=dataset.num_features,
        num_labels=dataset.num_labels,
        num_repetitions=8,
        num_buckets=1024,
        hidden_size=512,  # 0: linear MACH
    )
    print(model.hash.diagnostics())
    # What later commands need of the data: names, the vectoriser, how files were read.
    model.attachments = runs.attachments(dataset)
    runs.refuse_to_replace(Path(args.output))
    mach_ext.fit(model, train.X, train.Y, dev.X, dev.Y, epochs=args.epochs, output=args.output)

    scores, labels = model.predict(test.X)  # exact top 5 of all labels, or all where there are fewer
    result = runs.evaluate(model, dataset, "test")
    for name, value in result.items():
        if isinstance(value, float):  # beside the metrics: by label frequency, the constants of PSP
            print(f"{name:<10}{value:.4f}")

    names = dataset.label_names or [str(label) for label in range(dataset.num_labels)]
    for row in range(min(3, len(test))):
        text = test.texts[row] if test.texts else f"document {row}"
        print(
            text,
            "->",
            ", ".join(f"{names[j]} ({s:.2f})" for j, s in zip(labels[row], scores[row], strict=True)),
        )
    print(f"model: mach_ext.load({args.output!r})")  # fit kept the best epoch there
    return result


if __name__ == "__main__":
    main()
