"""Freely licensed datasets on which defaults of training are chosen and judged.

Each dataset has a module. Its function `fetch` gets the source files, `build` builds the dataset, and `SIZES`
are the expected numbers of training documents, test documents, features and labels. Datasets are built into
the data folder, never into the repository. `PYTHONPATH=benchmarks python -m corpora` lists them, and with
names it builds them. Then `mach_ext.data.load(NAME)` loads them.
"""

NAMES = ("debtags", "debdepends", "phonemes", "moby", "icd10", "lemmas", "german")
