"""Freely licensed datasets on which defaults of training are chosen and judged.

Each dataset has a module with a function `fetch`, which gets its source files, and a function `build`. Datasets
are built into the data folder, never into the repository. `python -m corpora` lists them, and
`PYTHONPATH=benchmarks python -m corpora NAME ...` builds them.
"""

NAMES = ("debtags", "debdepends", "phonemes", "moby", "icd10", "lemmas", "german")
