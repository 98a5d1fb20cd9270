"""Texts of every script in reports and through the command line, and documents of which nothing is known."""

import html.parser
import io
import json
import math
import sys
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import scipy.sparse
from data_cases import SENTENCES, TEXTS
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

import mach_ext
from mach_ext import _page, cli, data, explain, report
from mach_ext.data import Vectorizer
from mach_ext.explain import _charts, _report


class Document(html.parser.HTMLParser):
    """The shaded text of a page: pairs of a span's text and title; None between spans."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.pieces, self.inside, self.title = [], False, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.inside |= (tag, attrs.get("class")) == ("div", "document")
        self.title = attrs.get("title") if tag == "span" else None

    def handle_endtag(self, tag):
        self.inside &= tag != "div"
        self.title = None

    def handle_data(self, text):
        if self.inside:
            self.pieces.append((text, self.title))


def explained(vectorizer, text, label=1):
    model = mach_ext.MACH(len(vectorizer.vocabulary), 5, 3, 4, hidden_size=4, seed=1)
    return explain.integrated_gradients(model, vectorizer.transform([text]), label, text=text)


def test_overlapping_pairs_share_their_effect():
    vectorizer = Vectorizer(["東", "東京", "京都", "<b>", "cat"], [1.0] * 5)
    text = "<b>東京都 & cat"
    result = explained(vectorizer, text)
    effect = dict(
        zip((vectorizer.vocabulary[i] for i in result.features), result.attributions[0], strict=True)
    )
    pieces = Document(result.to_html(vectorizer=vectorizer)).pieces
    assert "".join(piece for piece, _ in pieces) == text
    shown = {piece: title for piece, title in pieces if title is not None}
    assert shown == {
        "東": f"東 {effect['東']:+.4f}, 東京 {effect['東京']:+.4f}",
        "京": f"東京 {effect['東京']:+.4f}, 京都 {effect['京都']:+.4f}",
        "都": f"{effect['京都']:+.4f}",
        "cat": f"{effect['cat']:+.4f}",
    }
    words = [(0, 2, 4.0), (1, 2, -1.0), (1, 3, 2.0)]
    scales = [_charts.shade(share, 5.0) for share in (2.0, 2.0 - 1.0 + 1.0, 1.0)]
    assert [piece.style for piece in _report._shaded("東京都", words, 5.0)] == scales


@pytest.mark.parametrize(("language", "text"), TEXTS)
def test_no_mark_is_cut_from_its_letter(language, text):
    vectorizer = Vectorizer.fit([text], min_df=1)
    result = explained(vectorizer, text)
    pieces = Document(result.to_html(vectorizer=vectorizer)).pieces
    assert "".join(piece for piece, _ in pieces) == text
    assert not any(unicodedata.category(piece[0])[0] == "M" for piece, _ in pieces)
    for piece, title in pieces:  # all words are known
        assert (title is None) == (not any(c.isalnum() for c in piece))


def test_names_are_cut_between_letters_and_fill_their_columns():
    assert report.shortened("a  b\nc", 5) == "a b c"
    assert report.shortened("abcdef", 5) == "abcd…"
    assert report.shortened("e\u0301" * 6, 6) == "e\u0301" * 6
    assert report.shortened("e\u0301" * 6, 5) == "e\u0301" * 4 + "…"
    assert report.shortened("हिन्दी हिन्दी", 4) == "हिन्दी…"
    assert report.shortened("東京都庁", 7) == "東京都…"
    assert report.shortened("東京都庁", 6) == "東京…"
    assert report.shortened("a" * 10**6, 300) == "a" * 299 + "…"
    vectorizer = Vectorizer(["東京", "हिन्दी", "word"], [1.0] * 3)
    lines = report.attribution_lines(explained(vectorizer, "東京 हिन्दी word"), 1)
    assert len({_page.text_width(line.partition("|")[0]) for line in lines}) == 1


def test_charts_of_scripts_without_a_font(tmp_path, monkeypatch):
    """No warning for each letter; the chart says that it lacks them. A font removed since is passed over."""
    gone = font_manager.FontEntry(fname=str(tmp_path / "gone.ttf"), name="A Font", weight=400, style="normal")
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    ours = [
        font_manager.ttfFontProperty(FT2Font(fonts / f"{name}.ttf")) for name in ("DejaVuSans", "STIXGeneral")
    ]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [gone, *ours])
    name = "\U000107ff word \u2316"  # no character; and one that only the second font has
    model = mach_ext.MACH(1, 2, 2, 4, hidden_size=0)
    found = explain.integrated_gradients(
        model, scipy.sparse.eye(1, format="csr"), 0, feature_names=[name], label_names=["ab", name]
    )
    figure = found.plot()
    figure.savefig(tmp_path / "plot.png")
    axes = figure.axes[0]
    assert axes.get_yticklabels()[0].get_text() == "\ufffd word \u2316"
    assert "no font here has this letter" in axes.get_xlabel()


def test_half_characters_do_not_stop_a_report(tmp_path):
    vectorizer = Vectorizer(["cat"], [1.0])
    result = explained(vectorizer, "cat \ud83d")
    result.to_html(tmp_path / "page.html", vectorizer=vectorizer)
    assert "cat</span> \ufffd" in (tmp_path / "page.html").read_text(encoding="utf-8")
    result.to_json(tmp_path / "page.json")
    assert json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))["text"] == "cat \ud83d"


NAMES = ["tab\there", "line\u2028end", "half \ud83d", "हिन्दी", "next\x85line"]


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": t, "labels": [x]}) + "\n" for x, t in documents))


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """A folder with a model of six languages, and what training said."""
    folder = tmp_path_factory.mktemp("languages")
    odd = [(name, f"{some} odd{i}") for i, name in enumerate(NAMES) for some in ("some", "other")]
    for split, without in (("train", ["?!", ""]), ("dev", []), ("test", ["…"])):
        write_jsonl(folder / f"{split}.jsonl", TEXTS + odd + [("none", text) for text in without])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", io.StringIO())
        run = ["train", "--dataset", folder, "--output", folder / "run", "--epochs", "30", "--quiet",
               "--hidden-size", "16", "--hash-functions", "4", "--buckets", "16", "--learning-rate", "0.02",
               "--batch-size", "8"]  # fmt: skip
        assert cli.main([str(a) for a in run]) == 0
        return folder, sys.stderr.getvalue()


@pytest.fixture
def mach(languages, capsys):
    """Runs a command on the model: exit code, output, remarks."""

    def run(command, *argv):
        code = cli.main([command, "--model-path", str(languages[0] / "run"), *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def test_training_says_how_many_documents_have_no_features(languages):
    folder, said = languages
    assert "mach-ext: train: 2 of 42 documents (4.8%) have no features" in said
    assert "mach-ext: test: 1 of 41 documents (2.4%) have no features" in said
    assert "dev: " not in said
    splits = data.load(str(folder)).info()["splits"]
    assert [splits[name]["without_features"] for name in ("train", "dev", "test")] == [2, 0, 1]


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_through_predict(mach, language):
    texts = SENTENCES[language]
    code, out, said = mach("predict", "--k", "1", *(a for text in texts for a in ("--text", text)))
    assert (code, said) == (0, "")
    assert [line.split("\t")[0] for line in out.splitlines()] == [language] * 5


@pytest.mark.parametrize(("language", "text"), TEXTS)
def test_the_words_explained_are_those_counted(mach, languages, language, text):
    code, out, _ = mach("explain", "--text", text, "--k", "1", "--show", "1000")
    assert code == 0
    vectorizer = Vectorizer.from_json(mach_ext.load(languages[0] / "run").attachments["vectorizer.json"])
    row = vectorizer.transform([text])
    counted = {vectorizer.vocabulary[column] for column in row.indices}
    assert row.nnz > 0
    assert {line.split()[0] for line in out.splitlines() if "|" in line} == counted
    shown = {column for _, _, column in vectorizer.words(text)} - {None}
    assert {vectorizer.vocabulary[column] for column in shown} == counted


def test_explain_writes_pages_of_every_script(mach, tmp_path):
    for language, texts in SENTENCES.items():
        code, _, said = mach("explain", "--text", texts[1], "--k", "1", "--output", tmp_path / language)
        assert (code, "warning" in said) == (0, False)
        page = (tmp_path / language / "explanation.html").read_text(encoding="utf-8")
        assert "".join(piece for piece, _ in Document(page).pieces) == texts[1]


@pytest.mark.parametrize("text", ["xyzzy qwrt", "", "  \t", "!?…", "😀", "\u200d\u0301", "x" * 40])
def test_a_text_of_which_nothing_is_known_is_marked(mach, text):
    given = ["--text", "हिन्दी भारत", "--text", text, "--k", "2"]
    code, out, said = mach("predict", *given)
    assert code == 0
    known, unknown = (line.split("\t") for line in out.splitlines())
    assert len(known) == len(unknown) == 4
    assert all(math.isfinite(float(score)) for score in known[1::2])
    assert unknown[1::2] == ["nan", "nan"]
    assert said == (
        "mach-ext: 1 of 2 documents (50.0%) have no features that the model knows. Their labels are those of "
        "an empty document, without scores\n"
    )
    code, out, again = mach("predict", "--format", "jsonl", *given)
    known, unknown = map(json.loads, out.splitlines())
    assert again == said
    assert (known["features"], unknown["features"]) == (2, 0)
    assert all(isinstance(label["score"], float) for label in known["labels"])
    assert [label["score"] for label in unknown["labels"]] == [None, None]
    assert mach("explain", "--text", text)[0] == 1


def test_documents_without_features_are_marked_from_every_source(mach, languages, tmp_path, monkeypatch):
    folder, _ = languages
    width = mach_ext.load(folder / "run").num_features
    X = scipy.sparse.csr_matrix((np.float32([0, 1]), [0, 1], [0, 1, 2, 2]), (3, width))
    scipy.sparse.save_npz(tmp_path / "x.npz", X)
    (tmp_path / "x.txt").write_text(f"3 {width} 1\n 0:0\n 1:1\n \n")
    (tmp_path / "x.svm").write_text("0 0:0\n0 1:1\n0\n")
    write_jsonl(tmp_path / "x.jsonl", [("", "xyzzy"), ("", "हिन्दी"), ("", "")])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("xyzzy\nहिन्दी\r\n\n".encode())))
    sources = [["--input", tmp_path / f"x.{end}"] for end in ("npz", "txt", "svm", "jsonl")]
    for source in ([], *sources):
        code, out, said = mach("predict", "--k", "1", *source)
        assert code == 0
        assert [line.endswith("\tnan") for line in out.splitlines()] == [True, False, True], source
        assert "2 of 3 documents (66.7%) have no features" in said
    code, out, said = mach("predict", "--split", "test", "--k", "1", "--output", tmp_path)
    assert code == 0
    lines = (tmp_path / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.endswith("\tnan") for line in lines] == [False] * 40 + [True]
    assert "1 of 41 documents" in said


def test_names_of_labels_stay_in_their_cells_and_lines(mach, tmp_path):
    given = [argument for i in range(len(NAMES)) for argument in ("--text", f"some odd{i}")]
    shown = ["tab here", "line end", r"half \ud83d", "हिन्दी", "next line"]
    for output in ([], ["--output", tmp_path]):
        code, out, _ = mach("predict", "--k", "1", *given, *output)
        out = (tmp_path / "predictions.tsv").read_text(encoding="utf-8") if output else out
        assert code == 0
        assert [line.split("\t")[0] for line in out.splitlines()] == shown
        code, out, _ = mach("predict", "--k", "1", "--format", "jsonl", *given, *output)
        out = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8") if output else out
        assert code == 0
        assert [json.loads(line)["labels"][0]["label"] for line in out.splitlines()] == NAMES


def test_names_that_the_terminal_lacks(mach, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert mach("predict", "--k", "1", "--text", "some odd3")[0] == 0
    sys.stdout.flush()
    assert raw.getvalue().startswith("हिन्दी".encode("ascii", "backslashreplace"))


def test_text_that_is_not_utf8_is_refused(mach, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ncaf\xe9\n"), "utf-8"))
    code, _, said = mach("predict")
    assert code == 1
    where = "text must be UTF-8, got byte 0xe9, byte 4 of the line"
    assert said == f"mach-ext: standard input, line 2: {where}\n"
    for command in ("predict", "explain"):
        code, _, said = mach(command, "--text", "caf\udce9")
        assert code == 1
        assert said == f"mach-ext: --text 1: {where}\n"
