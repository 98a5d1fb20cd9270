"""Train, evaluate and ask a MACH model from Python: the script to copy.

Run: python examples/train.py [DATASET]     (a name such as wordnet, or a folder; see the README's formats)
"""

import argparse
from typing import Any

import mach_ext


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", nargs="?", default="wordnet")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--output", default="runs/example")
    args = parser.parse_args()

    # The same defaults, files and bits as `mach-ext train`; args.output now answers `mach-ext predict`, too.
    run = mach_ext.train(args.dataset, output=args.output, epochs=args.epochs)

    result = run.metrics.get("test", {})  # of the test split, where there is one; kept in metrics.json
    for name, value in result.items():
        if isinstance(value, float):  # beside the metrics: by label frequency, the constants of PSP
            print(f"{name:<10}{value:.4f}")
    dataset = run.dataset()
    documents = dataset.test or dataset.train
    for row, labels in enumerate(run.predict(X=documents.X[:3])):
        text = documents.texts[row] if documents.texts else f"document {row}"
        print(text, "->", ", ".join(f"{label} ({score:.2f})" for label, score, _ in labels))
    return result


if __name__ == "__main__":
    main()
