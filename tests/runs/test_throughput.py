"""Throughput: every work runs, and documents, labels and bytes are counted as the docstrings say."""

import pytest
import torch

import mach_ext
from mach_ext.runs import measure_throughput, workload
from mach_ext.runs.workload import WORKS, Workload, random_documents

N, D, L, R, B, H, K = 12, 60, 200, 3, 128, 8, 4


def of_sizes(hidden=H, encoder="shared", num_dense=0):
    model = mach_ext.MACH(D, L, R, B, hidden, encoder, num_dense=num_dense)
    return Workload(model, *random_documents(N, D, L, nonzeros=9, labels=2, num_dense=num_dense), K)


@pytest.mark.parametrize("num_dense", [0, 5])
@pytest.mark.parametrize(
    ("hidden", "encoder"), [(H, "shared"), (H, "independent"), ((H, 4), "shared"), (0, "shared")]
)
def test_every_work_runs(hidden, encoder, num_dense):
    workload = of_sizes(hidden, encoder, num_dense)
    for name in workload.names():
        work = workload.work(name)
        work.call()
        work.call()
        assert work.documents > 0, name
        assert work.labels > 0, name
        assert work.bytes > 0, name
    missing = set() if hidden else {"bucket_bce", "label_logits"}
    assert {*workload.names()} == WORKS.keys() - missing


def test_dense_features_are_rows_of_the_first_layer_that_all_documents_have():
    bare, w = of_sizes(), of_sizes(num_dense=5)
    assert w.X.nnz == bare.X.nnz + 5 * N
    assert len(w.rows) == len(bare.rows) + 5
    assert w.work("sparse_linear").bytes == 8 * w.X.nnz + 4 * H * (len(w.rows) + N)
    lengths = (w.X.dense**2).sum(1)
    assert 0.2 < lengths.mean() < 5
    model = mach_ext.MACH(D, L, R, B, H, num_dense=5)
    works = [result.work for result in measure_throughput(model, batch_size=8, seconds=0.001)]
    assert works == bare.names()


def test_bytes_of_a_product_with_documents():
    """Eight a non-zero, the rows that occur, the outputs. The step reads and writes three arrays."""
    w = of_sizes()
    rows = len({*w.X.indices.tolist()})
    assert w.work("sparse_linear").bytes == 8 * w.X.nnz + 4 * H * (rows + N)
    assert w.work("sparse_linear, fused step").bytes == 8 * w.X.nnz + 4 * H * (6 * rows + N)


def test_bytes_of_decode_and_prediction():
    w = of_sizes()
    answers, codes = 12 * N * K, 2 * R * L
    assert w.work("merge_topk").bytes == 4 * N * R * B + codes + answers
    weights = 4 * (H + R * H * B + R * B) + 4 * H * len({*w.X.indices.tolist()})
    assert w.work("predict").bytes == 8 * w.X.nnz + weights + codes + answers


def test_labels_are_those_that_a_work_goes_over():
    w = of_sizes()
    assert w.work("predict").labels == w.work("merge_topk, scan").labels == N * L
    assert w.work("training step").labels == w.work("bucket_bce").labels == w.Y.nnz
    assert w.work("label_logits").labels == 5 * N


def test_paths_of_decode_agree():
    w = of_sizes()
    expected = w.work("merge_topk").call()
    for path in ("direct", "scan", "lists"):
        for ours, other in zip(w.work(f"merge_topk, {path}").call(), expected, strict=True):
            assert torch.equal(ours, other)


def test_measured_rates():
    model = mach_ext.MACH(D, L, R, B, H)
    results = measure_throughput(model, batch_size=N, k=K, nonzeros=9, seconds=0.002)
    assert [result.work for result in results] == list(WORKS)
    for result in results:
        assert result.documents_per_second == pytest.approx(result.documents / result.seconds)
        assert result.as_dict()["gigabytes_per_second"] == result.gigabytes / result.seconds


def test_model_stays_in_eval_mode():
    model = mach_ext.MACH(D, L, R, B, H)
    measure_throughput(model, batch_size=2, nonzeros=3, seconds=0.001)
    assert not model.training


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"k": L + 1}, f"k must be in 1 ... L={L}, got {L + 1}"),
        ({"nonzeros": 0}, "nonzeros must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0.0"),
    ],
)
def test_wrong_sizes(options, rule):
    with pytest.raises(ValueError, match=f"measure_throughput: {rule}"):
        measure_throughput(mach_ext.MACH(D, L, R, B, H), **options)


def test_random_documents_are_those_of_the_seed():
    X, Y = random_documents(50, 40, 30, nonzeros=6, labels=3, seed=1)
    assert X.shape == (50, 40)
    assert Y.shape == (50, 30)
    assert X.multiply(X).sum(1).max() == pytest.approx(1, rel=1e-5)
    assert set(Y.data.tolist()) == {1.0}
    assert (random_documents(50, 40, 30, nonzeros=6, labels=3, seed=1)[0] != X).nnz == 0
    assert (random_documents(50, 40, 30, nonzeros=6, labels=3, seed=2)[0] != X).nnz > 0


def test_peaky_logits_have_a_few_high_buckets():
    logits = workload.peaky_logits(20, mach_ext.LabelHash(500, 64, 4), 0)
    assert logits.shape == (20, 4, 64)
    assert (logits > 0).float().mean() < 0.15
    assert (logits.amax(2) > 1).float().mean() > 0.9
