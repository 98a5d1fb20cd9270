"""What only a GPU can show: graphs, streams, no hidden synchronisation, memory, the same bits as the CPU.

The kernels' arithmetic needs none: every operator test runs them through the shim (tests/cuda_shim).
"""

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import CUDA_KERNELS, bitwise_equal, random_csr, random_hash, uniform

import mach_ext
from mach_ext import _ops, training
from mach_ext import functional as F

GPU = CUDA_KERNELS and torch.cuda.is_available()
pytestmark = [
    pytest.mark.skipif(not GPU, reason="only a GPU can run this, and there is none"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    # Importing inductor; dynamo tracing an autograd.Function.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]
cuda = torch.device("cuda")
D, M, L, R, B = 300, 96, 20_000, 8, 64  # L R above what a scan is worth from


@pytest.fixture
def batch(generator):
    """values, indices, indptr, weight [D, M], bias on the GPU."""
    X = random_csr(generator, [5, 0, 40, 1, 17], D)
    return (
        *(t.cuda() for t in X),
        uniform(generator, D, M).float().cuda(),
        uniform(generator, M).float().cuda(),
    )


@pytest.fixture
def decoding(generator):
    """Scores [N, R, B] and hash on the CPU."""
    return uniform(generator, 37, R, B).float(), random_hash(generator, L, B, R)


def forward(values, indices, indptr, weight, bias):
    return F.sparse_linear(values, indices, indptr, weight, bias, "relu")


def assert_graph_replays(function, inputs):
    """`function(*inputs)` captured once gives, for new contents of its inputs, what a plain call gives."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)
    for scale in (1.0, -0.5):
        inputs[0].mul_(scale)
        graph.replay()
        for a, b in zip(outputs, function(*inputs), strict=True):
            assert bitwise_equal(a, b)


def test_graph_of_forward(batch):
    assert_graph_replays(lambda *args: (forward(*args),), batch)


def test_graph_of_the_gradient_to_values(batch):
    values, indices, indptr, weight, bias = batch

    def gradient(values):
        values = values.detach().requires_grad_()
        return torch.autograd.grad(F.sparse_linear(values, indices, indptr, weight, bias).sum(), values)

    assert_graph_replays(gradient, [values])


@pytest.mark.parametrize("k", [1, 5, 300])
def test_graph_of_decode(decoding, k):
    scores, hash = decoding[0].cuda(), decoding[1].to(cuda)
    assert_graph_replays(lambda s: F.merge_topk(s, hash, k), [scores])


@pytest.mark.skipif(
    not GPU or torch.cuda.get_device_capability()[0] < 8, reason="products of bfloat16 need sm_80"
)
def test_graph_of_the_fused_bucket_forward(generator):
    hidden, weight = (uniform(generator, *shape) for shape in ((130, 40), (R, 300, 40)))
    tensors = hidden.bfloat16().cuda(), weight.bfloat16().cuda().mT, torch.zeros(R, 300).cuda()
    buckets = torch.randint(300, (R, 50), generator=generator, dtype=torch.int32).cuda()
    labels = [t.cuda() for t in random_csr(generator, [n % 5 for n in range(130)], 50)[1:]]
    assert_graph_replays(
        lambda *t: (_ops.bucket_forward(*t), *_ops.bucket_forward_bce(*t, buckets, *labels, 0.5)), tensors
    )


def test_no_hidden_synchronisation(batch, decoding):
    scores, hash = decoding[0].cuda(), decoding[1].to(cuda)
    labels = torch.arange(10, device=cuda)
    F.merge_topk(scores, hash, 5)  # builds the index of the hash, once
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        values = batch[0].detach().requires_grad_()
        forward(values, *batch[1:]).sum().backward()
        F.merge_topk(scores, hash, 5)
        F.merge_topk(scores, hash, 5, "median")
        F.merge_scores(scores, hash, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_works_on_the_current_stream(batch):
    expected = forward(*batch)
    values = torch.zeros_like(batch[0])
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # what comes must wait for it, in this stream
        values.copy_(batch[0])
        out = forward(values, *batch[1:])
    torch.cuda.synchronize()
    assert bitwise_equal(out, expected)


def test_second_device_is_used_when_named(batch, decoding):
    if torch.cuda.device_count() < 2:
        pytest.skip("only a machine with two GPUs can run this")
    out = forward(*(t.to("cuda:1") for t in batch))
    assert out.device == torch.device("cuda:1")
    assert bitwise_equal(out, forward(*batch))
    scores, hash = decoding
    for a, b in zip(
        F.merge_topk(scores.to("cuda:1"), hash.to("cuda:1"), 5), F.merge_topk(scores, hash, 5), strict=True
    ):
        assert bitwise_equal(a, b)


@pytest.mark.parametrize("merge", F.MERGES)
@pytest.mark.parametrize("k", [0, 1, 5, 1500, L])
def test_decode_has_the_bits_of_the_cpu(decoding, merge, k):
    scores, hash = decoding
    scores[0] = 0.5  # all tie
    scores[1, :, 7] = float("nan")
    scores[2, 3, 5], scores[2, 4, 6] = float("inf"), float("-inf")
    scores[3] = scores[3].sigmoid()
    scores[4] = -0.0
    for a, b in zip(
        F.merge_topk(scores.cuda(), hash.to(cuda), k, merge),
        F.merge_topk(scores, hash, k, merge),
        strict=True,
    ):
        assert bitwise_equal(a, b)


def test_compiles_in_one_graph(batch, decoding):
    scores, hash = decoding[0].cuda(), decoding[1].to(cuda)
    compiled = torch.compile(lambda s, *args: (forward(*args), *F.merge_topk(s, hash, 5)), fullgraph=True)
    for a, b in zip(compiled(scores, *batch), (forward(*batch), *F.merge_topk(scores, hash, 5)), strict=True):
        assert bitwise_equal(a, b)


def test_wrong_indices_stay_inside_their_arrays(batch):
    values, indices, indptr, weight, bias = batch
    wrong = indices.clone()
    wrong[2], wrong[3] = D, -1
    out = F.sparse_linear(values, wrong, indptr, weight, bias)
    assert out[0].isnan().all()  # the document with the wrong features
    assert not out[1:].isnan().any()
    for pointer in (indptr.flip(0), indptr + 10_000, indptr - 10_000):
        F.sparse_linear(values, indices, pointer, weight, bias)
    torch.cuda.synchronize()


@pytest.mark.parametrize("B", [4096, 20_000])  # tables in 128 KB of shared memory; in global memory
def test_large_decode_never_holds_labels_by_documents(B):
    """256 documents, 4 million labels: [N, L] alone would be 4 GB."""
    hash = mach_ext.LabelHash(4_000_000, B, 8).to(cuda)
    scores = torch.rand(256, 8, B, device=cuda)
    few = scores[::85]
    for a, b in zip(
        (t[::85] for t in F.merge_topk(scores, hash, 5)),
        F.merge_topk(few.cpu(), hash.to("cpu"), 5),
        strict=True,
    ):
        assert bitwise_equal(a, b)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    F.merge_topk(scores, hash, 5)
    assert torch.cuda.max_memory_allocated() - before < 2 * scores.nbytes


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(300), 3), rng.integers(0, 60, 900)
    Y = scipy.sparse.csr_matrix((np.ones(900), rows), (300, 60))
    return scipy.sparse.csr_matrix(Y, dtype=np.float32), Y


@pytest.mark.parametrize("precision", training.PRECISIONS)
@pytest.mark.parametrize("hidden_size", [0, 32, (48, 32)])
def test_trains_predicts_and_travels(corpus, hidden_size, precision, tmp_path):
    X, Y = corpus
    options = {"epochs": 30, "batch_size": 32, "progress": False, "output": tmp_path, "precision": precision}
    models = []
    for _ in range(2):
        model = mach_ext.MACH(60, 60, num_repetitions=8, num_buckets=16, hidden_size=hidden_size).to(cuda)
        rates = {"learning_rate": 0.5} if hidden_size == 0 else {"learning_rate": 0.02}
        mach_ext.fit(model, X, Y, encoder_learning_rate=0.02, encoder_eps=1e-8, **rates, **options)
        models.append(model)
    a, b = models
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert p.device.type == "cuda"
        assert bitwise_equal(p, q)  # the same seed
    scores, labels = a.predict(X, 5)
    assert mach_ext.metrics.precision_at_k(Y, labels, 1) > 0.9
    on_cpu = mach_ext.load(tmp_path)
    np.testing.assert_allclose(on_cpu.predict(X, 5)[0], scores, rtol=1e-4, atol=1e-4)
    on_gpu = mach_ext.load(tmp_path, "cuda")
    assert (on_gpu.predict(X, 5)[1] == labels).all()


def test_peak_memory_is_what_info_states(corpus):
    """Of a model large enough that PyTorch's own rounding does not show."""
    model = mach_ext.MACH(60, 60, num_repetitions=16, num_buckets=20_000, hidden_size=64).to(cuda)
    stated = training.expected_memory(model, 64, 3, "cuda")
    for name, run in (
        ("predicting, peak", lambda: model.predict(corpus[0], 5)),
        ("training, peak", lambda: mach_ext.fit(model, *corpus, epochs=1, batch_size=64, progress=False)),
    ):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        assert 0.5 * stated[name] < torch.cuda.max_memory_allocated() < 1.5 * stated[name], name


@pytest.mark.parametrize("hidden_size", [0, 8])
def test_really_out_of_memory_says_what_to_lower(corpus, hidden_size):
    total = torch.cuda.get_device_properties(0).total_memory
    sizes = {"num_repetitions": 64, "num_buckets": 4000, "hidden_size": hidden_size}
    model = mach_ext.MACH(60, 60, **sizes).to(cuda)
    X = scipy.sparse.vstack([corpus[0]] * (total // (64 * 4000 * 4 * 300) + 2), format="csr")
    with pytest.raises(torch.OutOfMemoryError, match="lower batch_size"):
        model.predict(X, 5, batch_size=X.shape[0])
