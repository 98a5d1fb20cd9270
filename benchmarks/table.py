"""The tables, charts and figures of README and docs/: `python benchmarks/table.py` writes them.

All come from the kept results. A table stands wherever its markers do, `<!-- NAME: written by `make
bench-table` -->` and `<!-- /NAME -->`. Charts go into docs/images/. The module prose writes the figures in
prose, which the module figures names. `--check` writes nothing. It prints what is not as the results give it.
`--cuda FILE` prints the tables of the CUDA results in FILE, a CSV file or the summary.json of gpu.sh.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import charts
import figures
import prose
from frames import RESULTS
from prose import ROOT
from tables import TABLES
from tables.cuda import cuda, load

TABLE = re.compile(r"(<!-- (\w+): written by `make bench-table` -->\n)(.*?)(?=<!-- /\2 -->)", re.DOTALL)


def rewrite(text: str, lines: list[prose.Line]) -> str:
    """A file's text with the tables and figures of the results."""
    return TABLE.sub(lambda match: match[1] + table(match[2]), prose.write_figures(text, lines))


@functools.cache
def table(name: str) -> str:
    return TABLES[name](RESULTS)


def faults(texts: dict[str, str], lines: list[prose.Line]) -> Iterator[str]:
    """What in the files is not as the results give it."""
    for name, text in texts.items():
        pairs = zip_longest(text.split("\n"), rewrite(text, lines).split("\n"), fillvalue="")
        if wrong := next(((i, new) for i, (old, new) in enumerate(pairs, 1) if old != new), None):
            yield f"{name}, line {wrong[0]}: must be {wrong[1].strip()!r}; `make bench-table` writes it"
        if name.endswith(".md"):
            yield from (f"{name}, {fault}" for fault in prose.faults(text, lines))
    everything = "\n".join(texts.values())
    for piece, *_ in lines:
        if not prose.pattern(piece).search(everything):
            yield f"figures.py: no file has {piece!r}"
    for name in TABLES.keys() - {match[2] for match in TABLE.finditer(everything)}:
        yield f"table.py: no file has the table {name!r}"
    for name in charts.CHARTS:
        if not (charts.FOLDER / f"{name}.png").exists():
            yield f"docs/images/{name}.png is missing; `make bench-table` draws it"
        if f"images/{name}.png" not in everything:
            yield f"charts: no file shows docs/images/{name}.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--cuda", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.cuda is not None:
        print(cuda(load(args.cuda)))
        return
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in prose.sources()}
    lines = figures.lines()
    if args.check and (wrong := list(faults(texts, lines))):
        raise SystemExit("\n".join(wrong))
    for name, text in texts.items():
        if (new := rewrite(text, lines)) != text and not args.check:
            (ROOT / name).write_text(new, encoding="utf-8")
    if not args.check:
        charts.draw()


if __name__ == "__main__":
    main()
