"""The XMC text format against a naive parser: values, errors, blocks, writing, and both readers alike."""

import functools
import gzip
import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from mach_ext import _C, data
from mach_ext.data import iter_xmc, read_xmc, write_xmc
from mach_ext.data.sources import read_input


def test_write_xmc_refuses_unequal_rows(tmp_path):
    with pytest.raises(ValueError, match="X and Y: must have as many rows, got 3 and 2 documents"):
        write_xmc(tmp_path / "a.txt", sparse.eye(3), sparse.eye(2))
    assert not list(tmp_path.iterdir())


def test_eurlex57k_same_as_scikit_learn(shared_data):
    from sklearn.datasets import load_svmlight_file

    path = shared_data / "eurlex57k" / "dev.txt.xz"
    one, two = read_xmc(path, num_threads=1), read_xmc(path, num_threads=2)
    text = read_input(path)
    body = io.BytesIO(text[text.index(b"\n") + 1 :])
    X, labels = load_svmlight_file(body, n_features=56758, multilabel=True, zero_based=True, dtype=np.float32)
    for split in (one, two):
        np.testing.assert_array_equal(split.X.indptr, X.indptr)
        np.testing.assert_array_equal(split.X.indices, X.indices)
        np.testing.assert_array_equal(split.X.data, X.data)
        assert [tuple(map(float, row.indices)) for row in split.Y] == labels


HEADERS = [
    "1 2 3", "01 002 0003", "+1 2 3", "-1 2 3", "1 0 3", "1 2 0", "0 2 3", "1 2147483647 2147483647",
    "1 2147483648 3", "1 2 2147483648", "2147483647 2 3", "9223372036854775807 2 3",
    "18446744073709551616 2 3",
    "1e0 2 3", "1 2 3 4", "\u0661 2 3", "1\u00a02 3", "", " ", "1 2 3\r", "\ufeff1 2 3", "\ufeff", "1\v2\f3",
    "1.0 2 3", "0x1 2 3", "1,2,3",
]  # fmt: skip
BODIES = ["0 1:1\n", "0 1:1", "0 1:1\r\n", "\n", "", "\n\n\n", "0 1:1\n\n \n\t\n", "0 1:1\n\n0 1:1\n"]
BODIES += ["\n\n0 1:1\n\n", "0 2147483646:1\n", "0 2147483647:1\n", "2147483647 0:1\n", "0 1:1\n0 5:1\n"]


def verdict(read):
    try:
        blocks = read()
    except ValueError as error:
        return str(error)
    X, Y = (sparse.vstack([getattr(block, part) for block in blocks]) for part in "XY")
    return [X.toarray().tolist() if X.shape[1] < 99 else X.indices.tolist(), X.shape, Y.shape, Y.nnz]


def by_blocks(path, size):
    return list(data.iter_xmc(path, block_bytes=size)) or [
        data.read_xmc(path)
    ]  # without a document, no block


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("head", HEADERS, ids=range(len(HEADERS)))
def test_both_readers_of_xmc_text_say_the_same(tmp_path, head, suffix):
    path = tmp_path / f"a.txt{suffix}"
    for body in BODIES:
        content = f"{head}\n{body}".encode()
        path.write_bytes(gzip.compress(content, 0) if suffix else content)
        whole = verdict(lambda: [data.read_xmc(path)])
        assert whole == verdict(lambda: [data.read_xmc(path, num_threads=3)])
        for size in (1, 5, 1 << 20):
            assert whole == verdict(functools.partial(by_blocks, path, size)), (head, body, size)


@pytest.mark.parametrize("zeros", [1, 17, 18, 40])
def test_leading_zeros_are_the_same_number_in_every_header(tmp_path, zeros):
    (tmp_path / "a.txt").write_text(f"{'0' * zeros}1 2 {'0' * zeros}3\n0 1:1\n")
    (tmp_path / "trn_X_Xf.txt").write_text(f"{'0' * zeros}1 {'0' * zeros}2\n1:1\n")
    assert data.read_xmc(tmp_path / "a.txt").Y.shape == (1, 3)
    assert data.formats.read_sparse_text(tmp_path / "trn_X_Xf.txt").shape == (1, 2)


FLOAT32_MAX = Fraction(float(np.finfo(np.float32).max))


def nearest_float32(text):
    """The correctly rounded float32 of a decimal text, by exact arithmetic; None where it is too large."""
    digits, _, exponent = text.lower().partition("e")
    if len(exponent) > 8:  # an integer that Fraction could not hold
        return np.float32(0) if Fraction(digits) == 0 else None
    exact = Fraction(text)
    if abs(exact) >= FLOAT32_MAX + Fraction(2) ** 103:  # half a unit above the largest
        return None
    with np.errstate(over="ignore", under="ignore"):
        guess = np.clip(np.float32(float(exact)), -np.finfo(np.float32).max, np.finfo(np.float32).max)
        around = [np.nextafter(guess, np.float32(s * np.inf)) for s in (-1, 1)]
    candidates = [x for x in (guess, *around) if np.isfinite(x)]
    return min(candidates, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


def naive_parse(text):
    """The format, one line after another, without any check."""
    lines = text.replace("\r", "").split("\n")
    documents, features, labels = map(int, lines[0].split())
    X = np.zeros((documents, features))
    Y = np.zeros((documents, labels), np.float32)
    for row, line in enumerate(lines[1 : documents + 1]):
        for i, token in enumerate(line.split()):
            if i == 0 and ":" not in token:
                Y[row, [int(label) for label in token.split(",")]] = 1
            else:
                index, value = token.split(":")
                X[row, int(index)] += float(nearest_float32(value))
    return X.astype(np.float32), Y


def parse(text, threads=1):
    """XMC text -> (X, Y) as SciPy CSR with the parser's own arrays, structure checked."""
    label_indptr, labels, indptr, indices, values, n, d, num_labels = _C.parse_xmc(text, threads, "some.txt")
    X = sparse.csr_matrix((values, indices, indptr), shape=(n, d))
    Y = sparse.csr_matrix((np.ones(labels.size, np.float32), labels, label_indptr), shape=(n, num_labels))
    for matrix in (X, Y):
        matrix.check_format(full_check=True)
        assert matrix.has_canonical_format
    return X, Y


NUMBERS = st.one_of(
    st.from_regex(r"[+-]?[0-9]{1,4}\.[0-9]{1,8}", fullmatch=True),
    st.sampled_from(["0", "-0", "1", ".5", "5.", "1e3", "+2E-2", "0.10000000149011612", "16777217"]),
)


@st.composite
def xmc_texts(draw):
    """Valid texts with all that is allowed: blanks, CRLF, empty lines, unsorted and duplicate indices."""
    D, L = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    end = draw(st.sampled_from(["\n", "\r\n", " \n", "\t\r\n"]))
    lines = []
    for _ in range(draw(st.integers(0, 8))):
        labels = draw(st.lists(st.integers(0, L - 1), max_size=4))
        pairs = draw(st.lists(st.tuples(st.integers(0, D - 1), NUMBERS), max_size=6))
        blank = draw(st.sampled_from([" ", "  ", "\t"]))
        tokens = [f"{index}:{value}" for index, value in pairs]
        lines.append(blank.join([",".join(map(str, labels)), *tokens]))
    text = f"{len(lines)} {D} {L}{end}" + "".join(line + end for line in lines)
    return text + draw(st.sampled_from(["", "\n", " \n\n"]))


@settings(max_examples=150, deadline=None)
@given(xmc_texts(), st.integers(2, 7))
@example("2 2 2\n\n\n\n", 4)
@example("1 2 2\n1,1,0,1 1:1 0:2 1:3", 2)
def test_same_as_naive_parser_for_any_thread_count(text, threads):
    X, Y = parse(text.encode())
    expected_X, expected_Y = naive_parse(text)
    np.testing.assert_array_equal(X.toarray(), expected_X)
    np.testing.assert_array_equal(Y.toarray(), expected_Y)
    X_threads, Y_threads = parse(text.encode(), threads)
    for one, other in ((X, X_threads), (Y, Y_threads)):
        np.testing.assert_array_equal(one.indptr, other.indptr)
        np.testing.assert_array_equal(one.indices, other.indices)
        assert one.data.tobytes() == other.data.tobytes()


def midpoints(pair):
    """Decimal text of the point midway between two neighbouring floats, exactly or just beside it."""
    bits, nudge = pair
    low = np.uint32(bits).view(np.float32)
    middle = (Fraction(float(low)) + Fraction(float(np.nextafter(low, np.float32(np.inf))))) / 2
    digits = 160  # more than such a number has
    scaled = middle * 10**digits
    assert scaled.denominator == 1
    return f"{int(scaled) + nudge}e-{digits}"


def near_midpoint(pair):
    """The same in 15 or 16 digits: its double is often the point itself, which lost the side it was on."""
    bits, digits = pair
    low = np.uint32(bits).view(np.float32)
    middle = (float(low) + float(np.nextafter(low, np.float32(np.inf)))) / 2  # exact in double
    return f"{middle:.{digits - 1}e}"


@settings(max_examples=1000, deadline=None)
@given(
    st.one_of(
        st.from_regex(r"[+-]?[0-9]{1,25}(\.[0-9]{0,25})?([eE][+-]?[0-9]{1,2})?", fullmatch=True),
        st.from_regex(r"-?\.[0-9]{1,50}(e-?[0-9]{1,2})?", fullmatch=True),
        st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
        st.tuples(st.integers(1, 0x7F000000), st.sampled_from([-1, 0, 1])).map(midpoints),
        st.tuples(st.integers(0x34000000, 0x60000000), st.sampled_from([15, 16])).map(near_midpoint),
    )
)
@example("16777217")  # midway between two floats
@example("16777217.0000000000000000000000000001")
@example("1.000000178813934326171875")  # midway, the even one is above
@example("1.00000017881393432617187500000001")
@example("1.00000017881393432617187499999999")  # rounds to the midway double first
@example("4.951303999405354e-04")  # its double is midway between two floats, the number itself is not
@example("1.513450555989948e-07")
@example("9007199254740993")
@example("1e-45")
@example("7.006492321624085e-46")  # half the smallest float, nearly
@example("7.1e-46")
@example("1e-400")
@example("0." + "0" * 400 + "1")
@example("0" * 400 + "1")
@example("0e999999999999")
@example("1" + "0" * 50 + "e-50")
@example("3.4028235e38")
@example("3.40282356e38")
@example("3.4028235677973366e38")  # half a unit above the largest: too large
@example("1e999999999999999999999")
@example("-1e39")
def test_values_are_correctly_rounded(text):
    expected = nearest_float32(text)
    line = f"1 1 1\n 0:{text}".encode()
    if expected is None:
        with pytest.raises(ValueError, match="line 2: a value must be finite and fit float32"):
            _C.parse_xmc(line)
        return
    value = _C.parse_xmc(line)[4]
    assert value.dtype == np.float32
    assert value[0] == expected
    assert np.signbit(value[0]) == text.startswith("-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"some.txt: the file must not be empty, got '0 bytes"),
        (" \r\n\n", r"some.txt: the file must not be empty, got '4 bytes"),
        ("2 3\n", r"some.txt, line 1: the header must be three counts 'N D L' .*, got '2 3'"),
        ("1 2 3 4\n", r"line 1: the header must be three counts .*, got '1 2 3 4'"),
        ("1 -2 3\n", r"line 1: the header must be three counts .*, got '1 -2 3'"),
        ("0,1 2:0.5 3:1\n", r"line 1: the header must be three counts .*, got '0,1 2:0.5 3:1'"),
        ("1 2147483648 3\n 0:1", r"line 1: the header's D and L must be below 2\^31, got '1 2147483648 3'"),
        ("2 3 4\n0 0:1\n", r"line 1: the header's N = 2 must be the number of documents, got '1 documents'"),
        ("1 3 4\n0 0:1\n1 1:1", r"line 1: the header's N = 1 must be .*, got '2 documents'"),
        ("1 3 4\n\n1 1:1", r"line 1: the header's N = 1 must be .*, got '2 documents'"),
        ("1 3 4\n4 0:1\n", r"line 2: a label must be below L = 4 \(the header's\), got '4'"),
        ("1 3 4\n1,99999999999999999999 0:1\n", r"line 2: a label must be below L = 4 .*, got '99999999999"),
        ("1 3 4\n0 3:1\n", r"line 2: a feature must be below D = 3 \(the header's\), got '3:1'"),
        (
            "1 3 4\n0 18446744073709551616:1",
            r"line 2: a feature must be below D = 3 .*, got '184467440737095",
        ),
        ("2 3 4\n1 1:1\n-1 0:1\n", r"line 3: a label must be a non-negative integer, got '-1'"),
        ("1 3 4\n1,x 0:1\n", r"line 2: a label must be a non-negative integer, got 'x'"),
        ("1 3 4\n1.0 0:1\n", r"line 2: a label must be a non-negative integer, got '1.0'"),
        ("1 3 4\n1, 0:1\n", r"line 2: a label must be a non-negative integer, got '1,'"),
        ("1 3 4\n,1 0:1\n", r"line 2: a label must be a non-negative integer, got ',1'"),
        (
            "1 3 4\n0 -1:1\n",
            r"line 2: a feature must be idx:value with a non-negative integer idx, got '-1:1'",
        ),
        ("1 3 4\n0 a:1\n", r"line 2: a feature must be idx:value with a non-negative .*, got 'a:1'"),
        ("1 3 4\n -1:1\n", r"line 2: a feature must be idx:value with a non-negative .*, got '-1:1'"),
        ("1 3 4\n0 # 1:1\n", r"line 2: a feature must be idx:value with a non-negative .*, got '#'"),
        ("1 3 4\n0 qid:1 1:1\n", r"line 2: a feature must be idx:value with a non-negative .*, got 'qid:1'"),
        ("1 3 4\n0 1:\n", r"line 2: a feature must be idx:value, the value is missing, got '1:'"),
        ("1 3 4\n0 1: 2:1\n", r"line 2: a feature must be idx:value, the value is missing, got '1:'"),
        ("1 3 4\n0 1\n", r"line 2: a feature must be idx:value, the colon is missing, got '1'"),
        ("1 3 4\n 1\n", r"line 2: a feature must be idx:value, the colon is missing, got '1'"),
        ("1 3 4\n0 1:nan\n", r"line 2: a value must be finite and fit float32, got '1:nan'"),
        ("1 3 4\n0 1:-Infinity\n", r"line 2: a value must be finite and fit float32, got '1:-Infinity'"),
        ("1 3 4\n0 1:3.5e38\n", r"line 2: a value must be finite and fit float32, got '1:3.5e38'"),
        ("1 3 4\n0 1:x\n", r"line 2: a value must be a decimal number, got '1:x'"),
        ("1 3 4\n0 1:.\n", r"line 2: a value must be a decimal number, got '1:.'"),
        ("1 3 4\n0 1:+-5\n", r"line 2: a value must be a decimal number, got '1:\+-5'"),
        ("1 3 4\n0 1:1e\n", r"line 2: a value must be a decimal number, got '1:1e'"),
        ("1 3 4\n0 1:0x1p3\n", r"line 2: a value must be a decimal number, got '1:0x1p3'"),
        ("1 3 4\n0 1:0.5:2\n", r"line 2: a value must be a decimal number, got '1:0.5:2'"),
        ("1 3 4\n0 1:1,5\n", r"line 2: a value must be a decimal number, got '1:1,5'"),
        ("1 3 4\n0 1:\x00\xff\n", r"line 2: a value must be a decimal number, got '1:\\x00\\xff'"),
        (
            "1 3 4\n0 1:3e38 1:3e38\n",
            r"line 2: the sum of a feature's values must fit float32, got 'feature 1'",
        ),
        *(
            (
                f"2 3 4\n 0:1\n{line}",
                f"line 3: a line must begin with its labels, or with a blank .*, got '{got}'",
            )
            for line, got in {
                "1:0.5 2:1": "1:0.5",  # labels with weights, or a blank forgotten
                "1:2": "1:2",
                "-1:1\n": "-1:1",
                "1,2:0.5 0:1": "1,2:0.5",
                "x: 0:1": "x:",
                ":": ":",
            }.items()
        ),
        ("1 3 4\n" + "7" * 50, r"line 2: a label must be below L = 4 .*, got '7{40}\.\.\.'"),
    ],
)
def test_errors_name_file_line_rule_and_what_came(text, message):
    with pytest.raises(ValueError, match=message):
        _C.parse_xmc(text.encode("latin-1"), 1, "some.txt")


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 64])
def test_of_several_errors_the_first_line_is_reported(threads):
    lines = ["0 1:1"] * 100
    for line in (37, 38, 61, 99):
        lines[line] = f"0 1:bad{line}"
    text = "\n".join(["100 3 4", *lines]).encode()
    with pytest.raises(ValueError, match=r"line 39: .* got '1:bad37'"):
        _C.parse_xmc(text, threads)


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf2 3 4\n1,3 0:1 2:0.5\n 1:2\n",  # byte order mark
        b"2 3 4\r\n3,1 2:.5 0:1\r\n 1:2\r\n",  # CRLF, unsorted
        b" 2\t3  4 \n1,3,1\t0:1   2:0.25\t2:0.25 \n\t1:2",  # blanks, duplicates, no line end
        b"2 3 4\n1,3 0:1 2:0.5\n 1:2\n\n \r\n\n",  # empty lines at the end
    ],
)
def test_variants_that_mean_the_same(text):
    X, Y = parse(text)
    np.testing.assert_array_equal(X.toarray(), np.array([[1, 0, 0.5], [0, 2, 0]], np.float32))
    np.testing.assert_array_equal(Y.toarray(), [[0, 1, 0, 1], [0, 0, 0, 0]])


def test_documents_without_labels_or_features():
    X, Y = parse(b"4 2 2\n1\n 0:1\n\n0,1 1:1\n")
    assert np.diff(X.indptr).tolist() == [0, 1, 0, 1]
    assert np.diff(Y.indptr).tolist() == [1, 0, 0, 2]
    assert parse(b"0 2 3\n")[1].shape == (0, 3)


def test_stored_zeros_stay():
    X, _ = parse(b"1 3 1\n 0:0 1:-0.0 2:1\n")
    assert X.nnz == 3
    assert np.signbit(X.data).tolist() == [False, True, False]
    unsorted, _ = parse(b"1 3 1\n 2:1 1:-0.0 0:0\n")
    assert np.signbit(unsorted.data).tolist() == [False, True, False]


def test_duplicates_are_summed_in_double_precision():
    X, _ = parse(b"1 1 1\n 0:16777216 0:1 0:1\n")  # in float32 the ones would get lost
    assert X.data.tolist() == [16777218.0]


def test_buffers():
    text = b"1 2 2\n1 0:1\n"
    for buffer in (text, bytearray(text), memoryview(text), np.frombuffer(text, np.uint8)):
        assert _C.parse_xmc(buffer)[5:] == (1, 2, 2)
    with pytest.raises(TypeError, match="the buffer must be contiguous bytes"):
        _C.parse_xmc(memoryview(text)[::2])
    with pytest.raises(TypeError, match="the buffer must be contiguous bytes"):
        _C.parse_xmc(np.zeros(8))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.parse_xmc("1 2 2\n")


def test_build_info():
    info = _C.build_info()
    assert info["cxx_standard"] >= 201703
    assert info["compiler"].split()[0] in ("g++", "clang")


FLOAT32_BITS = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOAT32_BITS.filter(np.isfinite), max_size=30), st.integers(1, 5), st.data())
def test_write_and_read_is_exact(tmp_path_factory, values, width, data):
    rows = -(-len(values) // width)
    indptr = np.minimum(np.arange(rows + 1) * width, len(values))
    indices = np.concatenate([np.arange(size) for size in np.diff(indptr)] or [[]]).astype(np.int32)
    X = sparse.csr_matrix((np.array(values, np.float32), indices, indptr), shape=(rows, width))
    Y = sparse.csr_matrix(
        data.draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=rows, max_size=rows))
        or np.zeros((0, 3))
    )
    path = tmp_path_factory.mktemp("exact") / "file.txt"
    write_xmc(path, X, Y)
    split = read_xmc(path)
    assert split.X.shape == X.shape
    assert split.X.data.tobytes() == X.data.tobytes()
    np.testing.assert_array_equal(split.X.indices, X.indices)
    np.testing.assert_array_equal(split.Y.toarray(), Y.toarray())


def test_writing_more_than_one_block(tmp_path):
    rng = np.random.default_rng(0)
    X = sparse.random(9001, 50, density=0.1, format="csr", dtype=np.float32, rng=rng)
    Y = sparse.random(9001, 20, density=0.1, format="csr", dtype=np.float32, rng=rng) > 0
    write_xmc(tmp_path / "a.txt.gz", X, Y)
    split = read_xmc(tmp_path / "a.txt.gz", num_threads=3)
    assert (split.X != X).nnz == 0
    assert (Y != split.Y).nnz == 0


@pytest.mark.parametrize("block_bytes", [1, 7, 60, 10**6])
def test_block_by_block_is_the_same(tmp_path, block_bytes):
    text = "6 9 5\r\n0,3 1:1 8:2\r\n\r\n 3:4\r\n4\r\n1 0:1\r\n2,1 4:0.5\r\n\r\n"
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    whole = read_xmc(path)
    blocks = list(iter_xmc(path, block_bytes=block_bytes))
    assert len(blocks) == 6 if block_bytes == 1 else len(blocks) >= 1
    assert (sparse.vstack([block.X for block in blocks]) != whole.X).nnz == 0
    assert (sparse.vstack([block.Y for block in blocks]) != whole.Y).nnz == 0


def test_block_by_block_keeps_the_largest_dimensions(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("2 2147483647 2147483647\n0 1:1\n7 2147483646:1\n")
    for split in (read_xmc(path), *iter_xmc(path, block_bytes=1)):
        assert split.X.shape[1] == split.Y.shape[1] == 2**31 - 1


def test_block_by_block_errors(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("3 9 5\n0 1:1\n1 1:1\n2 9:1\n")
    with pytest.raises(ValueError, match=r"a.txt, line 4: a feature must be below D = 9, got '9:1'"):
        list(iter_xmc(path, block_bytes=2))
    path.write_text("3 9 5\n0 1:1\n5 1:1\n")
    with pytest.raises(ValueError, match=r"a.txt, line 3: a label must be below L = 5, got '5'"):
        list(iter_xmc(path))
    path.write_text("3 9 5\n0 1:1\n\n")
    with pytest.raises(ValueError, match=r"line 1: the header's N = 3 must be .* got '2 documents'"):
        list(iter_xmc(path))
    path.write_text("1 9 5\n0 1:1\n\n\n1 1:1\n")
    with pytest.raises(ValueError, match=r"line 1: the header's N = 1 must be .* got '4 documents'"):
        list(iter_xmc(path, block_bytes=6))
    path.write_text("1 9 5\n0 1:1\n1 1:1\n\n\n\n\n\n\n")
    with pytest.raises(ValueError, match=r"line 1: the header's N = 1 must be .* got '2 documents'"):
        list(iter_xmc(path, block_bytes=4))
    path.write_text("")
    with pytest.raises(ValueError, match=r"a.txt, line 1: the header must be three counts"):
        list(iter_xmc(path))
