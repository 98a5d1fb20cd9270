"""The labels of a batch: every form gives the same loss to the bit, and what is none is refused in words."""

import numpy as np
import pytest
import scipy.sparse
import torch
from head_cases import L, all_equal, build, csr_of, gradients, hidden_of, random_labels

from mach_ext._label_lists import label_csr

N = 7
LISTS = random_labels(torch.Generator().manual_seed(1), N)
LISTS[2] = []
INDICES, INDPTR = csr_of(LISTS)
DENSE = np.zeros((N, L), np.float32)
for row, ids in enumerate(LISTS):
    DENSE[row, ids] = 1

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]


def padded(dtype=np.int64, values=(-1,), width=9):
    """Ids in the first columns of each row, and padding values in turn in the others."""
    rows = np.empty((N, width), np.int64)
    for row, ids in enumerate(LISTS):
        rows[row] = (ids + [values[i % len(values)] for i in range(width)])[:width]
    return rows.astype(dtype)


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def objects(entries):
    array = np.empty(len(entries), object)
    array[:] = entries
    return array


def numpy_pair(index, pointer):
    return INDICES.numpy().astype(index), INDPTR.numpy().astype(pointer)


def sparse(kind):
    return getattr(scipy.sparse, kind)(DENSE)


FORMS = {
    "tensors": lambda: (INDICES, INDPTR),
    "int32 and int64": lambda: (INDICES.int(), INDPTR),
    "int64 and int32": lambda: (INDICES, INDPTR.int()),
    "arrays": lambda: numpy_pair("int64", "int64"),
    "arrays of int32 and int64": lambda: numpy_pair("int32", "int64"),
    "an array and a tensor": lambda: (INDICES.numpy(), INDPTR.int()),
    "arrays that are read-only": lambda: tuple(map(read_only, numpy_pair("int64", "int32"))),
    "arrays of another byte order": lambda: numpy_pair(">i8", ">i4"),
    "arrays with strides": lambda: tuple(a.repeat(2)[::2] for a in numpy_pair("int64", "int64")),
    **{
        f"SciPy {form} {kind}": lambda form=form, kind=kind: sparse(f"{form}_{kind}")
        for form in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")
        for kind in ("matrix", "array")
    },
    "SciPy bool": lambda: sparse("csr_matrix").astype(bool),
    "SciPy int8": lambda: sparse("csr_matrix").astype(np.int8),
    "SciPy with a stored zero": lambda: with_a_zero(),
    "SciPy with a label twice": lambda: scipy.sparse.coo_matrix(
        (np.ones(2 * len(INDICES)), (np.repeat(*row_numbers()).repeat(2), INDICES.numpy().repeat(2))), (N, L)
    ),
    "torch CSR": lambda: torch.from_numpy(DENSE).to_sparse_csr(),
    "torch CSC": lambda: torch.from_numpy(DENSE).to_sparse_csc(),
    "torch COO": lambda: torch.from_numpy(DENSE).to_sparse_coo(),
    "torch COO, bool": lambda: torch.from_numpy(DENSE).bool().to_sparse_coo(),
    "torch COO, with a gradient": lambda: torch.from_numpy(DENSE).to_sparse_coo().requires_grad_(),
    "padded with -1": lambda: torch.from_numpy(padded()),
    "padded with -100": lambda: torch.from_numpy(padded(values=(-100,))),
    "padded with both": lambda: torch.from_numpy(padded(values=(-1, -100))),
    "padded in front": lambda: torch.from_numpy(padded()).flip(1),
    "padded widely": lambda: torch.from_numpy(padded(width=40)),
    **{
        f"padded {dtype}": lambda dtype=dtype: torch.from_numpy(padded(dtype, (-1, -100)))
        for dtype in ("int8", "int16", "int32")
    },
    "padded array": lambda: padded("int16"),
    "padded array, read-only": lambda: read_only(padded()),
    "padded array of another byte order": lambda: padded(">i4", (-1, -100)),
    "padded array with negative strides": lambda: padded()[:, ::-1],
    "padded object array": lambda: objects([np.array(ids, np.int64) for ids in LISTS]),
    "0/1 float": lambda: torch.from_numpy(DENSE),
    "0/1 double": lambda: torch.from_numpy(DENSE).double(),
    "0/1 half": lambda: torch.from_numpy(DENSE).half(),
    "0/1 bfloat16": lambda: torch.from_numpy(DENSE).bfloat16(),
    "0/1 bool": lambda: torch.from_numpy(DENSE).bool(),
    "0/1 with a gradient": lambda: torch.from_numpy(DENSE.copy()).requires_grad_(),
    "0/1 array": lambda: DENSE,
    "0/1 array of bools, read-only": lambda: read_only(DENSE.astype(bool)),
    "0/1 transposed": lambda: np.asfortranarray(DENSE),
    "lists": lambda: LISTS,
    "lists in another order": lambda: [ids[::-1] for ids in LISTS],
    "tuples": lambda: [tuple(ids) for ids in LISTS],
    "sets": lambda: [set(ids) for ids in LISTS],
    "frozen sets": lambda: [frozenset(ids) for ids in LISTS],
    "iterators": lambda: [iter(ids) for ids in LISTS],
    "tensors in a list": lambda: [torch.tensor(ids, dtype=torch.int64) for ids in LISTS],
    "int8 tensors in a list": lambda: [torch.tensor(ids, dtype=torch.int8) for ids in LISTS],
    "arrays in a list": lambda: [np.array(ids, np.int32) for ids in LISTS],
    "uint16 arrays in a list": lambda: [np.array(ids, np.uint16) for ids in LISTS],
    "NumPy numbers in a list": lambda: [[np.uint64(label) for label in ids] for ids in LISTS],
    "all forms in a list": lambda: [
        kind(ids)
        for kind, ids in zip((list, set, list, tuple, np.array, iter, torch.tensor), LISTS, strict=True)
    ],
    "object array of lists": lambda: objects(LISTS),
    "object array of sets": lambda: objects([set(ids) for ids in LISTS]),
}


def row_numbers():
    return np.arange(N), INDPTR.diff().numpy()


def with_a_zero():
    matrix = sparse("csr_matrix")
    matrix.data = matrix.data.copy()
    extra = scipy.sparse.csr_matrix(([0.0], ([2], [4])), (N, L))
    stored = scipy.sparse.coo_matrix(matrix)
    return scipy.sparse.coo_matrix(
        (
            np.concatenate((stored.data, extra.data)),
            (np.concatenate((stored.row, [2])), np.concatenate((stored.col, [4]))),
        ),
        (N, L),
    ).tocsr()


@pytest.fixture(scope="module")
def expected():
    head = build()
    hidden = hidden_of(head, N)
    loss = head.loss(hidden, (INDICES, INDPTR))
    return head, hidden, loss, gradients(loss, head, hidden, retain_graph=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bits(expected, form):
    head, hidden, loss, grads = expected
    for given in (FORMS[form](), FORMS[form]()):  # `loss` and `forward`
        ours = head.loss(hidden, given)
        assert torch.equal(ours, loss)
        assert all_equal(gradients(ours, head, hidden), grads)
        assert torch.equal(head(hidden, FORMS[form]()), loss)


@pytest.mark.parametrize("form", FORMS)
def test_no_form_is_written_to(form):
    given = FORMS[form]()
    before = [bytes_of(part) for part in (given if isinstance(given, (tuple, list)) else [given])]
    head = build()
    head.loss(hidden_of(head, N), given).backward()
    assert before == [bytes_of(part) for part in (given if isinstance(given, (tuple, list)) else [given])]


def bytes_of(part):
    if scipy.sparse.issparse(part):
        return part.toarray().tobytes()
    if isinstance(part, torch.Tensor):
        return part.detach().to_dense().float().numpy().tobytes()
    return repr(part) if not hasattr(part, "__next__") else ""


def test_leading_dimensions():
    """Padded ids and 0/1 arrays have those of hidden. Lists, pairs and matrices have N rows."""
    lists = random_labels(torch.Generator().manual_seed(2), 6)
    dense = torch.zeros(6, L)
    ids = torch.full((6, 8), -100)
    for row, labels in enumerate(lists):
        dense[row, labels] = 1
        ids[row, : len(labels)] = torch.tensor(labels)
    for per_repetition in (False, True):
        head = build(per_repetition=per_repetition)
        hidden = hidden_of(head, 6).detach()
        expected = head.loss(hidden, csr_of(lists))
        for leading in ((2, 3), (1, 6), (3, 1, 2)):
            shaped = hidden.unflatten(0, leading)
            forms = (csr_of(lists), lists, scipy.sparse.csr_matrix(dense.numpy()), dense.to_sparse_coo())
            shaped_forms = (
                ids.unflatten(0, leading),
                dense.unflatten(0, leading),
                dense.bool().unflatten(0, leading),
            )
            for labels in (*forms, *shaped_forms, shaped_forms[0].numpy()):
                assert torch.equal(head.loss(shaped, labels), expected)


def test_a_single_document():
    """Hidden units [H]: labels without a dimension for documents, or with one."""
    head = build()
    hidden = hidden_of(head).detach()
    expected = head.loss(hidden[None], [[7, 3]])
    dense = torch.zeros(L)
    dense[[7, 3]] = 1
    for labels in (
        [7, 3], [[7, 3]], [{7, 3}], [torch.tensor([7, 3])], [range(3, 8, 4)], torch.tensor([7, 3, -1]), dense,
        dense.bool(), np.array([3, 7]), (torch.tensor([7, 3]), torch.tensor([0, 2])),
        scipy.sparse.csr_matrix(dense.numpy()),
    ):  # fmt: skip
        assert torch.equal(head.loss(hidden, labels), expected)
    for nothing in ([], [[]], torch.empty(0, dtype=torch.int64), torch.zeros(L)):
        assert torch.equal(head.loss(hidden, nothing), head.loss(hidden[None], [[]]))


@pytest.mark.parametrize(
    "nothing",
    [
        torch.full((N, 4), -1), torch.full((N, 4), -100, dtype=torch.int8), torch.empty(N, 0).long(),
        np.full((N, 4), -1), [[]] * N, [set()] * N, scipy.sparse.csr_matrix((N, L)), torch.zeros(N, L),
        torch.zeros(N, L).to_sparse_coo(), [torch.empty(0)] * N, [np.empty(0)] * N, objects([[]] * N),
        (torch.empty(0, dtype=torch.int32), torch.zeros(N + 1, dtype=torch.int64)),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)  # fmt: skip
def test_no_labels_at_all(nothing):
    head = build()
    hidden = hidden_of(head, N).detach()
    negatives = torch.nn.functional.softplus(head(hidden)).sum(2).mean()
    torch.testing.assert_close(head.loss(hidden, nothing), negatives)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_ids(dtype):
    """They have no padding. 156 and 255 are ids, although -100 and -1 have these bytes."""
    head = build(num_labels=300)
    hidden = hidden_of(head, 2).detach()
    ids = np.array([[156, 255], [255, 0]], dtype)
    for labels in (ids, torch.from_numpy(ids), list(ids)):
        assert torch.equal(head.loss(hidden, labels), head.loss(hidden, [[156, 255], [255, 0]]))


# ------------------------------------------------------------------------------------------------- refused


def ids(*rows, **options):
    return torch.tensor(rows, **options)


FORMS_IN_WORDS = (
    "labels must be a tuple (indices, indptr), a sparse matrix [N, L], padded ids [..., m], a 0/1 array "
    "[..., L] or a list of label ids for each document, got"
)
LISTS_IN_WORDS = "labels must be a list of label ids for each document, got"
IN_RANGE = "labels must be in [0, L=20), got"
OR_PADDING = "labels must be ids in [0, L=20), or -1 or -100, got"
PAIR_RANGE = "label_indices[1] (row 1) must be in [0, L=20), got"
META = {"device": "meta"}

# Labels of three documents -> the error, as the loss of the head or of the kernel words it.
HEAD, LOSS = "MACHHead.loss: ", "bucket_bce: "
REFUSED = [
    # other things
    (None, "TypeError: " + HEAD + FORMS_IN_WORDS + " NoneType"),
    ("abc", "TypeError: " + HEAD + FORMS_IN_WORDS + " str"),
    (b"abc", "TypeError: " + HEAD + FORMS_IN_WORDS + " bytes"),
    ({1, 2, 3}, "TypeError: " + HEAD + FORMS_IN_WORDS + " set"),
    ({0: [1], 1: [2], 2: [3]}, "TypeError: " + HEAD + FORMS_IN_WORDS + " dict"),
    (range(3), "TypeError: " + HEAD + FORMS_IN_WORDS + " range"),
    (7, "TypeError: " + HEAD + FORMS_IN_WORDS + " int"),
    # pairs
    ((1, 2, 3), "ValueError: " + HEAD + "labels as a tuple must be (indices, indptr), got 3 entries"),
    ((), "ValueError: " + HEAD + "labels as a tuple must be (indices, indptr), got 0 entries"),
    (
        ([1], [2]),
        "TypeError: " + HEAD + "labels as a tuple must be tensors (indices, indptr), got list; "
        "give lists of label ids in a list",
    ),
    (
        (ids(1), ids(0, 1)),
        "ValueError: " + LOSS + "label_indptr must have N + 1 = 4 entries, one row a document, got 2",
    ),
    (
        (ids(1), ids(0, 1, 1, 2)),
        "ValueError: " + LOSS + "label_indptr must end at the number of non-zeros 1, got 2",
    ),
    ((ids(3, 20), ids(0, 1, 2, 2)), "ValueError: " + LOSS + PAIR_RANGE + " 20"),
    ((ids(3, -1), ids(0, 1, 2, 2)), "ValueError: " + LOSS + PAIR_RANGE + " -1"),
    (
        (ids(3, 3), ids(0, 0, 2, 2)),
        "ValueError: " + LOSS + "a label must occur once in a row, got label 3 twice in row 1",
    ),
    ((ids(1.0), ids(0, 1, 1, 1)), "TypeError: " + LOSS + "label_indices must be int32 or int64, got float32"),
    (
        (np.array([1], np.uint16), np.array([0, 1, 1, 1])),
        "TypeError: " + LOSS + "label_indices must be int32 or int64, got uint16",
    ),
    (
        (np.array(["a"]), np.arange(4)),
        "TypeError: " + HEAD + "labels must be integers, floats or bools, got <U1",
    ),
    (
        (ids(1, **META), ids(0, 1, 1, 1)),
        "ValueError: " + LOSS + "label_indices must be on cpu like the other arguments, got meta",
    ),
    (
        (ids(1), ids(0, 1, 1, 1, **META)),
        "ValueError: " + LOSS + "label_indptr must be on cpu like the other arguments, got meta",
    ),
    # lists
    ([1, 2, 3], "TypeError: " + HEAD + LISTS_IN_WORDS + " int in row 0"),
    (["a", "b", "c"], "TypeError: " + HEAD + LISTS_IN_WORDS + " str in row 0"),
    ([[1], None, [2]], "TypeError: " + HEAD + LISTS_IN_WORDS + " NoneType in row 1"),
    ([[1], b"\1", [2]], "TypeError: " + HEAD + LISTS_IN_WORDS + " bytes in row 1"),
    ([[1], [2], {7: 0.5}], "TypeError: " + HEAD + LISTS_IN_WORDS + " dict in row 2"),
    ([ids(1), torch.tensor(2), ids(3)], "TypeError: " + HEAD + LISTS_IN_WORDS + " Tensor in row 1"),
    ([[1], [[2, 3]], [4]], "TypeError: " + HEAD + LISTS_IN_WORDS + " list inside row 1"),
    ([[1], [[2, 3], [4]], []], "TypeError: " + HEAD + LISTS_IN_WORDS + " list inside row 1"),
    ([[1], ids([2, 3]), []], "TypeError: " + HEAD + LISTS_IN_WORDS + " list inside row 1"),
    (
        [[1], ids(2, **META), []],
        "TypeError: " + HEAD + LISTS_IN_WORDS + " a tensor without dense contents in row 1",
    ),
    (objects(["a", "b", "c"]), "TypeError: " + HEAD + LISTS_IN_WORDS + " str in row 0"),
    (objects([None] * 3), "TypeError: " + HEAD + LISTS_IN_WORDS + " NoneType in row 0"),
    ([[1], [2.0], []], "TypeError: " + HEAD + "labels must be integers, got float in row 1"),
    ([[1], ids(2.0), []], "TypeError: " + HEAD + "labels must be integers, got float in row 1"),
    ([[1], [True], []], "TypeError: " + HEAD + "labels must be integers, got bool in row 1"),
    ([[1], ["2"], []], "TypeError: " + HEAD + "labels must be integers, got str in row 1"),
    ([[1], [2, None], []], "TypeError: " + HEAD + "labels must be integers, got NoneType in row 1"),
    ([[1], {2, "3"}, []], "TypeError: " + HEAD + "labels must be integers, got str in row 1"),
    ([[1], [2**70], []], "ValueError: " + HEAD + IN_RANGE + " 1180591620717411303424 in row 1"),
    ([[1], [2, 2**63], []], "ValueError: " + HEAD + IN_RANGE + " 9223372036854775808 in row 1"),
    ([[1], [-1, 2**64 - 1], []], "ValueError: " + HEAD + IN_RANGE + " -1 in row 1"),
    ([[1], [20], []], "ValueError: " + LOSS + PAIR_RANGE + " 20"),
    ([[1], [-1], []], "ValueError: " + LOSS + PAIR_RANGE + " -1"),
    ([[1], [-100], []], "ValueError: " + LOSS + PAIR_RANGE + " -100"),
    (
        [[1], [4, 4], []],
        "ValueError: " + LOSS + "a label must occur once in a row, got label 4 twice in row 1",
    ),
    ([[1], [2]], "ValueError: " + HEAD + "labels must be a list for each of the N=3 documents, got 2"),
    ([], "ValueError: " + HEAD + "labels must be a list for each of the N=3 documents, got 0"),
    (
        [ids(1), ids(0, 1, 1, 1)],
        "ValueError: " + HEAD + "labels must be a list for each of the N=3 documents, got 2; "
        "a pair (indices, indptr) must be a tuple",
    ),
    # padded ids
    (ids([1], [2]), "ValueError: " + HEAD + "labels must be [3, m] like hidden, got [2, 1]"),
    (ids(1, 2, 3), "ValueError: " + HEAD + "labels must be [3, m] like hidden, got [3]"),
    (ids([[1], [2], [3]]), "ValueError: " + HEAD + "labels must be [3, m] like hidden, got [1, 3, 1]"),
    (torch.tensor(1), "ValueError: " + HEAD + "labels must be [3, m] like hidden, got []"),
    (np.array(1), "ValueError: " + HEAD + "labels must be [3, m] like hidden, got []"),
    (ids([1], [-2], [3]), "ValueError: " + HEAD + OR_PADDING + " -2"),
    (ids([1], [20], [3]), "ValueError: " + LOSS + PAIR_RANGE + " 20"),
    (
        ids([1, -1], [4, 4], [3, -1]),
        "ValueError: " + LOSS + "a label must occur once in a row, got label 4 twice in row 1",
    ),
    (
        np.array([[1], [2**64 - 1], [3]], np.uint64),
        "ValueError: " + HEAD + OR_PADDING + " 18446744073709551615",
    ),
    (
        np.ma.masked_array([[1], [2], [3]]),
        "TypeError: "
        + HEAD
        + "labels must not be masked, got a masked array; pad ids with labels.filled(-1)",
    ),
    (
        np.array([["1"], ["2"], ["3"]]),
        "TypeError: " + HEAD + "labels must be integers, floats or bools, got <U1",
    ),
    (
        np.zeros((3, 1), "datetime64[D]"),
        "TypeError: " + HEAD + "labels must be integers, floats or bools, got datetime64[D]",
    ),
    (
        np.zeros((3, L), np.longdouble),
        f"TypeError: {HEAD}labels must be integers, floats or bools, got {np.dtype(np.longdouble)}",
    ),
    (
        torch.zeros(3, L, dtype=torch.complex64),
        "TypeError: " + HEAD + "labels must be integers, floats or bools, got complex64",
    ),
    (ids([1], [2], [3], **META), "ValueError: " + HEAD + "labels must be on cpu like hidden, got meta"),
    # 0/1
    (torch.full((3, L), 0.5), "ValueError: " + HEAD + "labels as floats must be 0 or 1, got 0.5"),
    (torch.full((3, L), float("nan")), "ValueError: " + HEAD + "labels as floats must be 0 or 1, got nan"),
    (torch.full((3, L), -1.0), "ValueError: " + HEAD + "labels as floats must be 0 or 1, got -1"),
    (
        torch.zeros(3, L - 1),
        "ValueError: "
        + HEAD
        + "labels of float32 must be 0/1 of all labels [..., L=20], got [3, 19]; give ids as integers",
    ),
    (
        ids([7.0, -100], [3, 9], [1, -100]),
        "ValueError: "
        + HEAD
        + "labels of float32 must be 0/1 of all labels [..., L=20], got [3, 2]; give ids as integers",
    ),
    (
        torch.eye(3, L, dtype=torch.int64),
        "ValueError: "
        + HEAD
        + "labels of int64 must be ids, got 0/1 of all labels [..., L=20]; "
        + "give 0/1 labels as bools or floats",
    ),
    (torch.zeros(3, L, **META), "ValueError: " + HEAD + "labels must be on cpu like hidden, got meta"),
    # sparse matrices
    (scipy.sparse.csr_matrix((3, L - 1)), "ValueError: " + HEAD + "labels must be [N=3, L=20], got [3, 19]"),
    (scipy.sparse.csr_matrix((2, L)), "ValueError: " + HEAD + "labels must be [N=3, L=20], got [2, 20]"),
    (
        torch.zeros(1, 3, L).to_sparse_coo(),
        "ValueError: " + HEAD + "labels must be [N=3, L=20], got [1, 3, 20]",
    ),
    (
        scipy.sparse.csr_matrix(-np.eye(3, L)),
        "ValueError: " + HEAD + "labels: labels must not be negative numbers, got -1.0",
    ),
    (
        scipy.sparse.csr_matrix(np.nan * np.eye(3, L)),
        "ValueError: " + HEAD + "labels, row 0: values must be finite and fit float32, got nan in column 0",
    ),
    (
        scipy.sparse.csr_matrix(1j * np.eye(3, L)),
        "TypeError: " + HEAD + "labels: must hold real numbers, got dtype complex128",
    ),
    (
        torch.sparse_coo_tensor(size=(3, L), check_invariants=False, **META),
        "ValueError: " + HEAD + "labels must be on cpu like hidden, got meta",
    ),
]


@pytest.mark.parametrize(("labels", "message"), REFUSED, ids=[message[:90] for _, message in REFUSED])
def test_what_are_no_labels(labels, message):
    head = build()
    with pytest.raises((TypeError, ValueError)) as raised:
        head.loss(hidden_of(head, 3), labels)
    assert f"{raised.type.__name__}: {raised.value}" == message


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout):
    head = build()
    nested = torch.nested.nested_tensor([ids(1, 2), ids(3), ids(4)], layout=layout)
    with pytest.raises(TypeError, match="or a list of label ids for each document, got a nested tensor"):
        head.loss(hidden_of(head, 3), nested)


def test_on_the_meta_device_only_pairs_have_a_shape():
    pair = torch.empty(2, dtype=torch.int64, **META), torch.empty(4, dtype=torch.int64, **META)
    device = torch.device("meta")
    assert label_csr("op", pair, (3,), L, device) == pair
    with pytest.raises(
        ValueError, match=r"^op: labels on the meta device must be a tuple \(indices, indptr\)"
    ):
        label_csr("op", torch.empty(3, 2, dtype=torch.int64, **META), (3,), L, device)
    assert all(part.is_meta for part in label_csr("op", [[1], [2], []], (3,), L, device))


def test_few_labels_may_all_be_ids_0_and_1():
    """Of two labels, integers [N, 2] are ids. Of three, a row of three ids cannot be 0 and 1 alone."""
    for num_labels in (1, 2):
        head = build(num_labels=num_labels)
        hidden = hidden_of(head, 2).detach()
        labels = torch.arange(num_labels).expand(2, num_labels)
        assert torch.equal(head.loss(hidden, labels), head.loss(hidden, [list(range(num_labels))] * 2))
    head = build(num_labels=3)
    padded_ids = ids([0, 1, -1], [1, -1, -1])
    assert torch.equal(head.loss(hidden, padded_ids), head.loss(hidden, [[0, 1], [1]]))


def test_labels_that_are_not_checked():
    """validate=False: a wrong id makes the loss NaN, whatever its form."""
    head = build()
    hidden = hidden_of(head, 3).detach()
    for labels in ([[1], [20], []], (ids(1, 20), ids(0, 1, 2, 2)), ids([1], [20], [3])):
        assert head.loss(hidden, labels, validate=False).isnan()
        assert head(hidden, labels, validate=False).isnan()
