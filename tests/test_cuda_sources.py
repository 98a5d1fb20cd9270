"""What is said of the CUDA sources, in their README and in their comments, is so."""

import re

import pytest
from helpers import ROOT

CUDA = ROOT / "csrc" / "cuda"
README = (CUDA / "README.md").read_text()
SOURCES = sorted(path for path in CUDA.rglob("*.*") if path.suffix in {".cu", ".cuh", ".cpp", ".h"})


def test_constants_of_the_readme_stand_in_the_sources():
    rows = re.findall(r"^\| `(k\w+)` \| `([^`]+)` \| (\S+) \|", README, re.MULTILINE)
    assert len(rows) >= 20
    for name, value, file in rows:
        source = (CUDA / file).read_text()
        assert re.search(rf"\bconstexpr \w+ {name} = {re.escape(value)}[;,]", source), (name, value, file)


def test_names_of_the_readme_stand_in_the_sources():
    text = "".join(path.read_text() for path in SOURCES)
    for name in set(re.findall(r"`(?:candidates\.)?(\w*[a-zA-Z_]\w*)`", README)):
        assert re.search(rf"\b{name}\b", text), name


def test_launches_of_the_readme_are_those_of_the_decode():
    """In this order, in the file that it names."""
    rows = re.findall(r"^\| (\w+) \| (merge_\w+\.cu) \|", README, re.MULTILINE)
    assert [name for name, _ in rows] == [
        "extremes", "lists", "sample", "plan", "table", "scan", "parts", "merge_topk",
    ]  # fmt: skip
    for name, file in rows:
        assert re.search(rf"\b{name}_kernel\(", (CUDA / file).read_text()), (name, file)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_files_that_comments_cite_are_there(path):
    comments = re.findall(r"//(.*)", path.read_text())
    for cited in re.findall(r"[\w/]+\.(?:cuh|cu|cpp|hpp|h|md|py)\b", "\n".join(comments)):
        folders = (path.parent, CUDA, CUDA.parent, CUDA.parent / "cpu", ROOT, ROOT / "tests/cuda_shim")
        places = [folder / cited for folder in folders]
        assert any(place.exists() for place in places), cited


def test_functions_in_headers_are_used():
    """A function of select.cuh or merge_key.cuh that no other line names is dead."""
    text = "".join(path.read_text() for path in SOURCES)
    for header in ("select.cuh", "merge_key.cuh", "device.cuh", "columns.cuh", "csr.cuh"):
        source = (CUDA / header).read_text()
        for name in re.findall(
            r"^(?:__\w+__ |inline |constexpr |static )+[\w<>:]+ (\w+)\(", source, re.MULTILINE
        ):
            assert len(re.findall(rf"\b{name}\b", text)) > 1, (header, name)
