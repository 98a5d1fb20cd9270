"""Reads Debian's list of packages: descriptions, tags and what a package needs.

The descriptions are under the licences of their packages. All of these are free by Debian's guidelines.
A point release of Debian can change a few packages, and so the sizes of the datasets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mach_ext.data.parsing import quote

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class Package(NamedTuple):
    """A package of the list."""

    name: str
    source: str  # the source package: packages of one source have similar descriptions
    text: str  # its short and long descriptions
    tags: list[str]
    needs: list[str]  # the packages that it depends on or recommends


def read_packages(folder: Path) -> list[Package]:
    """Reads the files `Packages` and `Translation-en` of a folder."""
    texts = {fields["Package"]: _description(fields) for fields in _records(folder / "Translation-en")}
    packages = {}
    for fields in _records(folder / "Packages"):
        name = fields["Package"]
        packages[name] = Package(
            name=name,
            source=fields.get("Source", name).split()[0],
            text=texts.get(name, fields.get("Description", "")),
            tags=_tags(fields.get("Tag", "")),
            needs=_needs(fields),
        )
    return [*packages.values()]


def _records(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs `Field: value` of a file. Further lines of a value start with a space."""
    record: dict[str, str] = {}
    field = ""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip("\n")
            if not line:
                if record:
                    yield record
                record = {}
            elif line[0] in " \t" and record:
                record[field] += "\n" + line[1:]
            else:
                field, colon, value = line.partition(":")
                if not colon or not (record or field == "Package"):
                    rule = "must be `Field: value`, and `Package: NAME` at first"
                    raise ValueError(f"{path}, line {number}: {rule}, got {quote(line)}")
                record[field] = value.strip()
    if record:
        yield record


def _description(fields: dict[str, str]) -> str:
    lines = fields.get("Description-en", "").split("\n")
    return " ".join(line.strip() for line in lines if line.strip() != ".")


def _tags(value: str) -> list[str]:
    """The tags of a field such as `role::program, use::{editing,viewing}`."""
    tags = []
    for facet, many, single in re.findall(r"([^\s,{}]+::)(?:\{([^}]*)\}|([^\s,{}]+))", value):
        tags += [facet + tag.strip() for tag in (many or single).split(",")]
    return sorted({*tags})


def _needs(fields: dict[str, str]) -> list[str]:
    """The names in the fields Pre-Depends, Depends and Recommends. Of alternatives, the first counts."""
    value = ",".join(fields.get(field, "") for field in ("Pre-Depends", "Depends", "Recommends"))
    names = (_NAME.match(need.strip()) for need in value.split(","))
    return sorted({name[0] for name in names if name})
