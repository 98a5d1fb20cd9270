"""What the tests of mach_ext.data share: small files of every kind, damaged ones, names and sentences."""
# ruff: noqa: RUF001 (letters that look like others are the point here)

import bz2
import gzip
import io
import lzma
import tarfile
import unicodedata

import numpy as np
import scipy.sparse
from scipy import sparse

from mach_ext import cli, data
from mach_ext.data import Split, check_csr, check_labels
from mach_ext.data.json_text import read_json

XMC = "2 3 4\n1,3 0:1 2:0.5\n 1:2\n"
COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def random_split(rows=30, features=12, labels=7, seed=0):
    rng = np.random.default_rng(seed)
    X = sparse.random(rows, features, density=0.3, format="csr", dtype=np.float32, rng=rng)
    Y = sparse.random(rows, labels, density=0.3, format="csr", dtype=np.float32, rng=rng)
    return Split(check_csr(X), check_labels(Y))


def same(one, other):
    return one.shape == other.shape and (sparse.csr_matrix(one) != sparse.csr_matrix(other)).nnz == 0


def tarball(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def npz(matrix):
    buffer = io.BytesIO()
    sparse.save_npz(buffer, matrix)
    return buffer.getvalue()


def pecos_archive(**extra):
    train, test = random_split(30), random_split(8, seed=1)
    return tarball(
        {
            "xmc-base/wiki10-31k/tfidf-attnxml/X.trn.npz": npz(train.X),
            "xmc-base/wiki10-31k/tfidf-attnxml/X.tst.npz": npz(test.X),
            "xmc-base/wiki10-31k/Y.trn.npz": npz(train.Y),
            "xmc-base/wiki10-31k/Y.tst.npz": npz(test.Y),
            "xmc-base/wiki10-31k/X.trn.txt": b"large and not wanted\n",
            **extra,
        }
    )


FAST = ["--epochs", "12", "--hidden-size", "32", "--learning_rate", "0.05", "--batch-size", "20", "--quiet",
        "--hash_functions", "8", "--buckets", "16", "--no-holdout"]  # fmt: skip


def run(*argv):
    return cli.main([str(a) for a in argv])


def svmlight(rows, first=0):
    """Lines `label feature:1 ...`: document i has label i and the features of row i, counted from `first`."""
    lines = (f"{label} {' '.join(f'{j + first}:1' for j in features)}\n" for label, features in rows)
    return "".join(lines)


def answers(capsys, *argv):
    """The first label of each document that predict names."""
    capsys.readouterr()
    assert run("predict", "--k", "1", *argv) == 0, capsys.readouterr().err
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


def write_npz_pair(folder, X, Y):
    scipy.sparse.save_npz(folder / "X.trn.npz", scipy.sparse.csr_matrix(X))
    scipy.sparse.save_npz(folder / "Y.trn.npz", scipy.sparse.csr_matrix(Y))


DEEP = "[" * 100_000
ESCAPES = "\x1b]0;owned\x07\x1b[31m"

READERS = {
    "a.txt": [data.read_xmc, lambda path: list(data.iter_xmc(path)), data.read_names],
    "a.svm": [lambda path: data.read_svmlight([path])],
    "a.jsonl": [data.read_jsonl, lambda path: list(data.iter_jsonl(path))],
    "a.npz": [data.read_matrix],
    "a.npz.gz": [data.read_matrix],
    "a.json": [data.read_names, read_json],
}


def nested(depth):
    return "[" * depth + "]" * depth


ODD = [
    "tab\there", "line\nend", "carriage\rreturn", "end\r", "line\u2028end", "next\x85line", "\ufeffmark",
    "nul\0", "zero\u200bwidth", "half \ud83d", "\udc00", f"{ESCAPES}red", "0", "7\t8", "", " ", "  two  ",
    "\u202eback",
]  # fmt: skip


def save(path, **arrays):
    """An npz file of a 2 x 3 matrix with two entries, some of its arrays in place of the right ones."""
    right = {"indices": [2, 0], "indptr": [0, 1, 2], "data": [1.0, 2.0], "shape": [2, 3], "format": b"csr"}
    chosen = {name: array for name, array in (right | arrays).items() if array is not None}
    np.savez(path, **chosen)
    return path


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


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()
