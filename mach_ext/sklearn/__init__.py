"""MACH as a scikit-learn estimator: `MACHClassifier`.

It works in pipelines, cross-validation and grid search. `y` may hold one class a document, lists of label
names, or an indicator matrix. All of these may have millions of labels.

Example:
    >>> from sklearn.feature_extraction.text import TfidfVectorizer
    >>> from sklearn.pipeline import make_pipeline
    >>> from mach_ext.sklearn import MACHClassifier
    >>> texts = ["a cat purrs", "a dog barks", "a cat sleeps", "a dog runs"]
    >>> labels = [["cat", "pet"], ["dog", "pet"], ["cat", "pet"], ["dog", "pet"]]
    >>> pipeline = make_pipeline(TfidfVectorizer(), MACHClassifier(epochs=30, k=2))
    >>> indicator = pipeline.fit(texts, labels).predict(["my cat", "your dog"])
    >>> pipeline[-1].label_lists(indicator)
    [['cat', 'pet'], ['dog', 'pet']]
"""

from mach_ext.sklearn.classifier import MACHClassifier

__all__ = ["MACHClassifier"]
