"""What files are damaged with: numbers at the limits and beyond, and text that means something else."""

INTEGERS = (
    *b"0 1 2 7 00 007 -1 +1 -0 1_0 0x1 1.0 1e1".split(),
    *b"2147483646 2147483647 2147483648 4294967295 4294967296 9223372036854775807".split(),
    *b"9223372036854775808 18446744073709551615 18446744073709551616".split(),
    *(b"", b"9" * 40, b"1" * 5000, b"0" * 30 + b"1", b"0" * 5000),
    *"\u0661 \u00b2 \uff11".encode().split(),  # digits to Python, some of them
)
VALUES = (
    *b"0 -0 -0.0 1 .5 5. . + - +-5 --5 1e 1e+ e5 1e5e5 nan -NaN inf -Infinity nan(1)".split(),
    *b"0x1p3 1,5 1f 1_0 1d3 1.2.3 1e308 1e400 3e38 -3e38 1e-400 -1e39".split(),
    *b"1e-45 1e-46 7.006492321624085e-46 7.0064923216240854e-46 1.1754943e-38".split(),
    *b"3.4028235e38 3.4028235677973366e38 3.4028235677973365e38 3.5e38".split(),
    *b"1e999999999999999999999 0e999999999999999999999 1e-999999999999999999999 1e0000000000000001".split(),
    *b"16777217 9007199254740993 1.513450555989948e-07 4.951303999405354e-04".split(),  # beside ties
    *b"1.000000178813934326171875 1.00000017881393432617187499999999".split(),
    *(b"0." + b"0" * 400 + b"1", b"1" + b"0" * 400 + b"e-400", b"16777217." + b"0" * 60 + b"1"),
    *(b"0" * 400 + b"1", b"1" * 39, b"1" * 60, b"1" * 5000, b"0.1" + b"0" * 5000),
)
TOKENS = (
    *b": , # qid:1 qid: 1:2 0 a 1: :1 1:2:3 1, ,1 % //".split(),
    *(b'"', b"\\", b"0:1", b"0:1", b"\0", b"\x1a", b"\xff", b"\xc3"),
    *(b" ", b"\t", b"\r", b"\n", b"\r\n", b"\n\n", b"\v", b"\f", b"\x1c", b"\x1f", b"\xef\xbb\xbf"),
    *(blank.encode() for blank in "\u00a0\u2028\u0085"),
)
JSON_ESCAPES = (
    *rb"\ \u \u12 \ud800 \udc00 \udc00\ud800 \ud83d\ude00 \ud83d\\ude00 \u0000 \x \/ \uFEFF \u00E9".split(),
    *(b"\t", b"\n", b"\0", b"\x7f", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xc0\x80", b"\xff"),
)
JSON_TOKENS = (
    *b'" [ ] { } , : null true NaN -Infinity'.split(),
    *b"1e999 - 01 1. .5 1e /**/ '".split(),
    *(b'"text":"b",', b'"labels":null,', b'"labels":["x"],', b'"labels":[1],', b'"text":5,'),
    *(b'"a":' + b"[" * 50 + b"]" * 50 + b",", b'"a":' + b"[" * 20_000, b'"a":' + b'{"a":' * 20_000),
    *(b"\t", b"\x7f", b"\x01", b"1" * 4301),
)
