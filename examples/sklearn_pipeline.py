"""MACH in a scikit-learn pipeline: raw texts in, names of labels out.

Run: python examples/sklearn_pipeline.py
"""

import random

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline

from mach_ext.sklearn import MACHClassifier

WORDS = {
    "cat": "purrs whiskers kitten claws", "dog": "barks leash puppy bone", "owl": "hoots feathers night nest",
    "eagle": "soars feathers talons nest", "shark": "swims fins teeth ocean",
}  # fmt: skip
GROUPS = {"cat": "pet", "dog": "pet", "owl": "bird", "eagle": "bird", "shark": "fish"}


def main() -> float:
    rng = random.Random(0)
    animals = rng.choices([*WORDS], k=300)
    texts = [" ".join(rng.sample(WORDS[animal].split(), 2)) for animal in animals]
    labels = [[animal, GROUPS[animal]] for animal in animals]  # two names for each text

    pipeline = make_pipeline(TfidfVectorizer(), MACHClassifier(hidden_size=32, epochs=20, batch_size=16, k=2))
    scores = cross_val_score(pipeline, texts, labels, cv=KFold(3))  # a plain number does not suit lists
    print(f"P@1 {scores.mean():.3f}")

    pipeline.fit(texts, labels)
    classifier, asked = pipeline[-1], ["a puppy that barks", "talons and a nest"]
    best_scores, best = classifier.predict_topk(pipeline[:-1].transform(asked))
    for text, names, numbers in zip(asked, best, best_scores, strict=True):
        print(text, "->", ", ".join(f"{name} ({x:.2f})" for name, x in zip(names, numbers, strict=True)))
    assert classifier.label_lists(pipeline.predict(asked)) == [["dog", "pet"], ["bird", "eagle"]]
    return float(scores.mean())


if __name__ == "__main__":
    main()
