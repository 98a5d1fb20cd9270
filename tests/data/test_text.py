"""Texts of every script: what a word is, where it is shown, and documents of which nothing is known."""
# ruff: noqa: RUF001 (letters that look like others are the point here)

import collections
import html.parser
import io
import itertools
import json
import math
import sys
import unicodedata

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

import mach_ext
from mach_ext import cli, data, explain, report
from mach_ext.data import Vectorizer

# Five sentences of each language, as people write them.
SENTENCES = {
    "Hindi": [
        "आज मौसम बहुत अच्छा है और हम पार्क में घूम रहे हैं।",
        "हिन्दी भारत में बोली जाने वाली एक प्रमुख भाषा है।",
        "बच्चे पार्क में क्रिकेट खेल रहे हैं।",
        "दिल्ली भारत की राजधानी है और यहाँ बहुत लोग रहते हैं।",
        "मुझे हिन्दी की किताबें पढ़ना बहुत पसंद है।",
    ],
    "Thai": [
        "วันนี้อากาศดีมากเราจึงไปเดินเล่นในสวน",
        "กรุงเทพฯเป็นเมืองหลวงของประเทศไทย",
        "ฉันชอบกินข้าวผัดกับน้ำส้ม",
        "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
        "เด็กๆกำลังเล่นน้ำในวันสงกรานต์๒๕๖๗",
    ],
    "Chinese": [
        "今天天气很好，我们去公园散步。",
        "北京是中国的首都，有很多人住在那里。",
        "我喜欢看中文书，也喜欢听音乐。",
        "孩子们在公园里踢足球。",
        "中文的词与词之间没有空格因此不能按空格把句子分成词而要用别的办法来处理这样的文字才行",
    ],
    "Arabic": [
        "الطقس جميل اليوم ونحن نمشي في الحديقة.",
        "القاهرة هي عاصمة مصر ويعيش فيها كثير من الناس.",
        "أُحِبُّ قراءة الكتب في الحديقة كل يوم.",
        "يلعب الأطفال كرة القدم في الحديقة.",
        "اللغة العربية من أجمل اللغات في العالم.",
    ],
    "French": [
        unicodedata.normalize("NFD", text)
        for text in [
            "Il fait très beau aujourd'hui et nous allons à la forêt.",
            "Les élèves étudient le français à l'école.",
            "Où est passée la clé de la fenêtre ?",
            "Le garçon a mangé un gâteau très sucré à la fête.",
            "La forêt près de l'école est très belle en été.",
        ]
    ],
    "Turkish": [
        "İstanbul çok büyük ve güzel bir şehir.",
        "Bugün hava çok güzel, parka gidiyoruz.",
        "IŞIK ÇOK PARLAK, ışık çok güzel.",
        "Çocuklar parkta büyük bir ağacın altında oynuyor.",
        "Istanbul'da bir gün daha kalmak istiyorum.",
    ],
}
TEXTS = [(language, text) for language, texts in SENTENCES.items() for text in texts]

# Letters, marks and everything that composes, folds, joins or separates in some way of its own.
ODD = (
    "aAiIıİſßẞςΣσΌé \n'_-.0٣๒²½\u0000\ud83d\udc00\u0301\u0307\u0323\u0345\u0316\u034f\u00ad\u200b\u200c\u200d"
    "\u200f\ufeff\ufe0f\u3164ﬁŀǅŉﷺﻻﺍ\u064eहिन्दी\u093c\u09c7\u09be한각ᄀ\u1161\u11a8ﾡￂ東京々〇ー\U00020000\ufa30"
    "\U000e0100かがカﾞｶﾟ\u3099กำ้เແຳខ្មែမြန်\U0001d15e≮Å\u1e9b\u0344\u0f73\U00011131\U00011127😀\u20e3"
)
texts = st.text(st.one_of(st.sampled_from(ODD), st.characters()), max_size=40)


def tokens(text):
    """What is counted, through the public way."""
    fitted = Vectorizer.fit([text, "filler"], min_df=1).vocabulary
    return [token for token in fitted if token != "filler"]


def row_of(vectorizer, text):
    """The row that the words make: 1 + ln tf, of length 1."""
    counts = collections.Counter(column for _, _, column in vectorizer.words(text) if column is not None)
    row = np.zeros(len(vectorizer.vocabulary))
    for column, count in counts.items():
        row[column] = (1 + math.log(count)) * vectorizer.idf[column]
    return row / (np.linalg.norm(row) or 1)


# ---------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("क्\u200dष क्\u200cष", ["क्ष"]),  # joiners are invisible
        ("می\u200cخواهم", ["میخواهم"]),
        ("français", ["français"]),
        ("franc\u0327ais", ["français"]),
        ("İstanbul istanbul I\u0307STANBUL", ["istanbul"]),
        ("ışık IŞIK", ["işik", "ışık"]),  # without regard to the language
        ("Straße STRASSE STRAẞE", ["strasse"]),
        ("ὈΔΥΣΣΕΎΣ ὀδυσσεύς", ["ὀδυσσεύσ"]),
        ("Σ'α", ["α", "σ"]),  # lower() looks beyond the word
        ("ﬁn ﬀ", ["ff", "fin"]),
        ("ＡＢＣ１２ abc12", ["abc12"]),
        ("ﻻ لا", ["لا"]),
        ("co\u00adoperate \ufeffword\u200f", ["cooperate", "word"]),
        ("one\u200btwo", ["one", "two"]),
        ("don't l'été a_b x-y", ["a", "b", "don", "l", "t", "x", "y", "été"]),
        ("١٢٣ २०२४ 3a", ["3a", "١٢٣", "२०२४"]),
        ("한국어 " + unicodedata.normalize("NFD", "한국어"), ["한국어"]),
        ("བོད་སྐད་", ["བོད", "སྐད"]),
        ("東京", ["京", "東", "東京"]),
        ("東 京", ["京", "東"]),
        ("二〇年2024年", ["2024", "〇", "〇年", "二", "二〇", "年"]),
        ("ｶﾞガか\u3099", ["が", "ガ", "ガが", "ガガ"]),
        ("ラーメン", ["ラ", "ラー", "ー", "ーメ", "メ", "メン", "ン"]),
        ("น้ำดี", ["ดี", "น้ํา", "น้ําดี"]),  # NFKC takes "am" apart
        ("iPhoneรุ่น๑๕", ["iphone", "น", "รุ่", "รุ่น", "๑๕"]),
        ("葛\U000e0100", ["葛"]),
        ("x" * 39 + " " + "y" * 40, ["x" * 39]),
        ("é" * 39 + " " + "e\u0301" * 39 + " " + "é" * 40, ["é" * 39]),
        ("", []),
        (" \n\t\u3000", []),
        ("!?… — «»、。।", []),
        ("😀👩\u200d👧❤\ufe0f", []),
        ("\u0301\u093f\u200d\ufeff\u3164\u115f", []),  # marks without a letter
        ("\ud83d\udc00 \x00", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == sorted(expected)


@pytest.mark.parametrize(
    "letters",
    [
        "中文字",
        "ひらがな",
        "カタカナ",
        "ไทย",
        "ລາວ",
        "ខ្មែរ",
        "မြန်မာ",
        "ꆈꌠ",
        "ꦗꦮ",
        "ᬩᬮᬶ",
        "ᥖᥭᥰ",
        "ᦅᦷᦑ",
        "ᨲ᩠ᩅᩫ",
        "ㄅㄆㄇ",
        "𠀀𪛖",
        "ｶﾀｶﾅ",
    ],
)
def test_writing_without_spaces_does_not_vanish(letters):
    assert 3 < len(tokens(letters * 40)) < 20
    assert all(len(token) < 12 for token in tokens(letters * 40))


def test_words_overlap_where_letters_do():
    vectorizer = Vectorizer(["東", "東京", "京", "2024", "น้ําดี"], [1.0] * 5)
    assert list(vectorizer.words("東京2024 東")) == [(0, 1, 0), (0, 2, 1), (1, 2, 2), (2, 6, 3), (7, 8, 0)]
    assert list(vectorizer.words("น้ำดี")) == [(0, 3, None), (0, 5, 4), (3, 5, None)]
    assert list(Vectorizer(["istanbul"], [1.0]).words("I\u0307STANBUL!")) == [(0, 9, 0)]


@given(st.lists(texts, min_size=1, max_size=4), st.sampled_from(["words-1", "words-2"]))
def test_the_words_are_those_that_transform_counts(some, rule):
    found = sorted({token for text in some for token in tokens(text)})
    vectorizer = Vectorizer(found or ["a"], [1.5] * max(1, len(found)), tokens=rule)
    expected = [row_of(vectorizer, text) for text in some]
    np.testing.assert_allclose(vectorizer.transform(some).toarray(), expected, rtol=1e-5)


@given(texts)
def test_the_place_of_a_word_is_the_word(text):
    found = tokens(text)
    vectorizer = Vectorizer(found or ["a"], [1.0] * max(1, len(found)))
    words = list(vectorizer.words(text))
    assert {column for _, _, column in words} == set(range(len(found)))
    assert [word[:2] for word in words] == sorted(word[:2] for word in words)
    for start, end, column in words:
        assert 0 <= start < end <= len(text)
        assert (0, end - start, column) in list(vectorizer.words(text[start:end]))
        assert len(found[column]) < 40
        assert not any(c.isspace() for c in found[column])
        assert end == len(text) or unicodedata.category(text[end])[0] != "M"


@given(texts)
def test_composed_and_decomposed_text_is_one(text):
    assert tokens(unicodedata.normalize("NFC", text)) == tokens(unicodedata.normalize("NFD", text))


def test_every_character_decomposed_is_the_same_word():
    """All that Unicode composes, in the neighbourhoods that could make a difference."""
    composed = [c for c in map(chr, range(0x110000)) if unicodedata.decomposition(c)[:1] not in ("", "<")]
    assert len(composed) > 2000
    words = data.words.folded_words
    for around in ("{}", "a{}b", "क{}", "東{}東", "か{}\u3099"):
        for c in [*composed, *"가각힣"]:
            text, apart = around.format(c), around.format(unicodedata.normalize("NFD", c))
            assert [w for *_, w in words(text)] == [w for *_, w in words(apart)], (text, hex(ord(c)))


def test_folding_twice_changes_nothing():
    fold = data.words._fold
    for c in map(chr, itertools.chain(range(0x3000), range(0xA000, 0xABFF), range(0xF900, 0x1F000))):
        assert fold(fold(c)) == fold(c), hex(ord(c))


@pytest.mark.parametrize(
    "text",
    ["a" * 2**20, "é" * 2**20, "a\u0301" * 2**19, "a" + "\u0301\u0316" * 2**19, "\u0316\u0301" * 2**19,
     "é" + "\u200d" * 2**20, "क्षि" * 2**18, "東" + "\u0301\u0316" * 2**19, "\ud800\x00" * 2**19,
     "東京" * 2**15, "न้ำ" * 2**15, "é " * 2**16],
    ids=lambda text: ascii(text[:3]),
)  # fmt: skip
def test_long_texts_take_time_in_proportion(text):
    """Each would take hours where a step is quadratic."""
    vectorizer = Vectorizer(["東京", "é"], [1.0, 1.0])
    assert vectorizer.transform([text]).shape == (1, 2)


@given(st.lists(st.text(st.characters(max_codepoint=127), max_size=60), max_size=4))
def test_ascii_rows_are_those_of_before(some):
    before = TfidfVectorizer(
        token_pattern=r"(?<![^\W_])[^\W_]{1,39}(?![^\W_])", sublinear_tf=True, dtype=np.float32, min_df=1
    )
    some = [*some, "a word", "x" * 40]
    vectorizer = Vectorizer.fit(some, min_df=1)
    before.fit(some)
    assert vectorizer.vocabulary == before.get_feature_names_out().tolist()
    before.idf_ = vectorizer.idf  # float32
    X, expected = vectorizer.transform(some), before.transform(some)
    for part in ("indptr", "indices", "data"):
        assert getattr(X, part).tobytes() == getattr(expected, part).tobytes()


# ------------------------------------------------------------------------------ rules of older models

OLD = (
    '{"type": "tfidf", "vocabulary": ["i", "stanbul", "द", "strasse", "ς"], "idf": [1.0, 2.0, 1.5, 1.0, 1.0]}'
)


def test_older_vectorisers_keep_their_rule():
    vectorizer = Vectorizer.from_json(OLD)
    assert vectorizer.tokens == "words-1"
    assert vectorizer.to_json() == OLD
    before = TfidfVectorizer(
        token_pattern=r"(?<![^\W_])[^\W_]{1,39}(?![^\W_])", sublinear_tf=True, dtype=np.float32,
        vocabulary=vectorizer.vocabulary,
    )  # fmt: skip
    before.idf_ = vectorizer.idf
    some = ["İstanbul हिन्दी", "STRASSE straße ΟΔΟΣ Σ", "İİ i", *(text for _, text in TEXTS)]
    X, expected = vectorizer.transform(some), before.transform(some)
    assert X.data.tobytes() == expected.data.tobytes()
    assert X.indices.tobytes() == expected.indices.tobytes()
    assert list(vectorizer.words("Ah, İstanbul")) == [(0, 2, None), (4, 5, 0), (5, 12, 1)]
    assert [column for _, _, column in vectorizer.words("हिन्दी")] == [None, None, 2]


def test_a_new_vectoriser_names_its_rule():
    vectorizer = Vectorizer.fit(["हिन्दी", "हिन्दी"])
    assert json.loads(vectorizer.to_json()) == {
        "type": "tfidf", "tokens": "words-2", "vocabulary": ["हिन्दी"], "idf": [1.0],
    }  # fmt: skip
    again = Vectorizer.from_json(vectorizer.to_json().encode())
    assert again.tokens == "words-2"
    assert again.to_json() == vectorizer.to_json()
    assert again.transform(["हिन्दी"]).nnz == 1


@pytest.mark.parametrize("rule", ['"words-3"', "null", "2"])
def test_an_unknown_rule_is_refused(rule):
    text = f'{{"type": "tfidf", "tokens": {rule}, "vocabulary": ["a"], "idf": [1]}}'
    with pytest.raises(ValueError, match=r"v.json: .*tokens must be one of words-1, words-2, got "):
        Vectorizer.from_json(text, source="v.json")


# ----------------------------------------------------------------------------------------- reports


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
    scales = [report._shade(share, 5.0) for share in (2.0, 2.0 - 1.0 + 1.0, 1.0)]
    assert [piece.style for piece in report._shaded("東京都", words, 5.0)] == scales


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
    assert len({report._width(line.partition("|")[0]) for line in lines}) == 1


def test_charts_of_scripts_without_a_font(tmp_path):
    """No warning for each letter; the chart says that it lacks them."""
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


def test_json_lines_are_lines():
    record = {"é\u2028": "\ud800\x85\u2029\n हिन्दी"}
    line = data.json_line(record)
    assert line.splitlines() == [line]
    assert "हिन्दी" in line
    line.encode()
    assert json.loads(line) == record


# ------------------------------------------------------------------------------------ command line


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


def test_a_stored_zero_is_no_feature():
    X = scipy.sparse.csr_matrix((np.float32([0, 2, 0]), [0, 1, 1], [0, 1, 2, 3]), (3, 2))
    assert data.row_features(X).tolist() == [0, 1, 0]
    assert X.nnz == 3
    split = data.Split(X, scipy.sparse.csr_matrix((3, 2), dtype=np.float32))
    assert split.without_features == 2


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
