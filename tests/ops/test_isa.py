"""Instruction sets: every one that this CPU has returns the same bits; the choice by MACH_CPU_ISA.

The choice is made once a process, so each runs in one of its own: this file is also that process's script.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import FLOATS, bitwise_equal, random_csr, random_hash, uniform

from mach_ext import _ops

ISAS = ("scalar", "avx2", "avx512")


def outputs():
    """Every operator's results on odd sizes, so that vector loops have tails."""
    out = {"isa": _ops.cpu_isa()}
    for dtype in FLOATS:
        generator = torch.Generator().manual_seed(5)

        def draw(*shape, dtype=dtype, generator=generator):
            return uniform(generator, *shape, dtype=dtype)

        def keep(name, *tensors, dtype=dtype):
            out.update({f"{name} {i} {dtype}": t for i, t in enumerate(tensors)})

        N, D, R, M, L, m = 6, 90, 3, 77, 500, 13
        X = random_csr(generator, [5, 0, 80, 1, 33, 2], D, dtype)
        weight, bias, grad = draw(R, D, M), draw(R, M), draw(N, R, M)
        order = _ops.feature_order(*X[1:], D)
        keep("feature_order", *order)
        keep("sparse_linear", _ops.sparse_linear(*X, weight, bias, True))
        keep("sparse_linear_grad_values", _ops.sparse_linear_grad_values(grad, *X[1:], weight))
        keep("sparse_linear_grad_weight", _ops.sparse_linear_grad_weight(grad, *X, D))
        keep("sparse_linear_grad_rows", *_ops.sparse_linear_grad_rows(grad, *X, D))
        if dtype == torch.float32:
            narrow = weight.bfloat16()
            keep("bfloat16", _ops.sparse_linear(*X, narrow, None, False))
            keep("bfloat16 grad", _ops.sparse_linear_grad_values(grad, *X[1:], narrow))

        buckets = random_hash(generator, L, M, R).buckets
        labels = torch.randint(L, (N, m), generator=generator)
        grad = draw(N, m, R)
        for hidden in (draw(N, 37), draw(N, R, 37)):
            at = (hidden, weight[:, :37].contiguous())
            keep(f"label_logits {hidden.dim()}", _ops.label_logits(*at, bias, buckets, labels))
            keep(
                f"label_logits_grad_hidden {hidden.dim()}",
                _ops.label_logits_grad_hidden(grad, *at, buckets, labels),
            )
            keep(
                f"label_logits_grad_weight {hidden.dim()}",
                *_ops.label_logits_grad_weight(grad, *at, buckets, labels),
            )

        logits, label_rows = 20 * draw(N, M), random_csr(generator, [3, 0, 9, 1, 1, 2], L)[1:]
        group, grad_bias = draw(N, 2, M) * 20, draw(2, M)
        targets = (draw(2, M), buckets[:2], *label_rows, 0.3)
        if dtype == torch.float32:
            rounded = torch.empty_like(group, dtype=torch.bfloat16)
            keep("bucket_bce out", _ops.bucket_bce(group, *targets, rounded, grad_bias), rounded, grad_bias)
        keep("bucket_bce of a group", _ops.bucket_bce(group, *targets, None, grad_bias), group, grad_bias)
        loss = _ops.bucket_bce(logits[:, None], None, buckets[:1], *label_rows, 0.3)
        keep("bucket_bce", loss, logits)
        if dtype == torch.float32:
            units, columns = draw(N, R, 40).bfloat16(), draw(R, 12, 40).bfloat16().mT
            keep("bucket_forward", _ops.bucket_forward(units, columns, draw(R, 12), "logsigmoid"))
            keep("bucket_forward_extremes", *_ops._raw.bucket_forward_extremes(units, columns, None, "none"))
            whole = torch.randint(-127, 128, (R, 2, 10, 64, 4), generator=generator).to(torch.int8)
            keep("bucket_forward_int8", _ops.bucket_forward_int8(draw(N, R, 37), whole, draw(R, 100), None))
            eights = torch.randint(-127, 128, (R, D, M), generator=generator).to(torch.int8)
            keep("int8", _ops.sparse_linear(*X, eights, None, False))
            few = (random_hash(generator, L, 12, R).buckets, *label_rows)
            keep("bucket_forward_bce", *_ops.bucket_forward_bce(units, columns, None, *few, 0.3))
        for name in ("sigmoid", "logsigmoid"):
            transformed = draw(N, M) * 40
            _ops.transform_logits(transformed, name)
            keep(f"transform_logits {name}", transformed)
        tile = draw(N, M)
        keep("signs", _ops.signs(tile, False), tile)
        for limit in (0.0, 0.01):
            outputs = draw(N, 37), draw(37, M)
            at = (logits, draw(N, 37), weight[0, :37], limit, N * M, *outputs)
            keep(f"bucket_backward {limit}", _ops.bucket_backward(*at), *outputs)
        solved = draw(D, M), draw(M)
        sparse = X[0], X[1].int(), X[2]
        factor = _ops.svm_factor(*sparse, D, 1.0)
        keep("svm_factor", factor)
        for name, given in {"dual": None, "newton": factor}.items():
            problem = *sparse, buckets[0], *label_rows, 0, 1.0, 1e-3, 50, given
            keep(f"bucket_svm {name}", *_ops.bucket_svm(*problem, *solved), *map(torch.clone, solved))

        index = _ops.label_index(buckets, M) if dtype == torch.float32 else None
        for merge in ("mean", "min", "median"):
            for name, scores in {
                "normal": torch.randn(N, R, M, generator=generator, dtype=dtype),
                "special": torch.tensor(
                    [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40, 3.0], dtype=dtype
                )[torch.randint(7, (N, R, M), generator=generator)],
            }.items():
                keep(f"merge_scores {merge} {name}", _ops.merge_scores(scores, buckets, labels, merge))
                keep(
                    f"merge_scores_grad {merge} {name}",
                    _ops.merge_scores_grad(draw(N, m), scores, buckets, labels, merge),
                )
                for path in ("direct", "scan", "lists"):
                    args = (scores, buckets, index, 40, merge, path)
                    keep(f"merge_topk {merge} {name} {path}", *_ops.merge_topk(*args))

        for rows in (torch.tensor([0, 2, 5]), None):
            step = draw(3 if rows is not None else 9, M)
            parameter, first, second = draw(9, M), draw(9, M), draw(9, M).abs()
            _ops.sparse_adam(parameter, rows, step, first, second, 0.1, 0.9, 0.99, 1e-8)
            keep(f"sparse_adam {rows is None}", parameter, first, second)
            _ops.sparse_adagrad(parameter, rows, step, second, 0.1, 1e-8)
            keep(f"sparse_adagrad {rows is None}", parameter, second)
        grad, first, second = draw(N, R, M), draw(R, D, M), draw(R, D, M).abs()
        _ops.sparse_linear_adam(weight, first, second, grad, X.values, order, 0.1, 0.9, 0.99, 1e-8)
        keep("sparse_linear_adam", weight, first, second)
        _ops.sparse_linear_adagrad(weight, second, grad, X.values, order, 0.1, 1e-8)
        keep("sparse_linear_adagrad", weight, second)
    return out


def run_with(isa, *args):
    helpers = str(Path(__file__).parents[1])  # pytest's path, which a script does not have
    path = os.pathsep.join(filter(None, (helpers, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "MACH_CPU_ISA": isa, "PYTHONPATH": path}
    return subprocess.run([sys.executable, __file__, *args], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """isa -> outputs, or the reason why there are none."""
    folder, found = tmp_path_factory.mktemp("isa"), {}
    for isa in ISAS:
        run = run_with(isa, str(folder / isa))
        if run.returncode == 0:
            found[isa] = torch.load(folder / isa)
        else:
            reason = run.stderr.strip().splitlines()[-1]
            assert f"MACH_CPU_ISA={isa}: this CPU only has" in reason, run.stderr
            found[isa] = reason
    return found


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits(results, isa):
    if isinstance(results[isa], str):
        pytest.skip(results[isa])
    ours, scalar = dict(results[isa]), dict(results["scalar"])
    assert (ours.pop("isa"), scalar.pop("isa")) == (isa, "scalar")
    assert ours.keys() == scalar.keys()
    different = [name for name in scalar if not bitwise_equal(ours[name], scalar[name])]
    assert not different


def test_every_operator_is_compared(results):
    names = {name.split()[0] for name in results["scalar"]}
    operators = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mach_ext::")
    }
    assert operators - names == {"check_csr", "cpu_isa", "label_index"}  # no kernel of theirs has variants


def test_unknown_name():
    run = run_with("sse")
    assert run.returncode != 0
    assert "MACH_CPU_ISA=sse: must be scalar, avx2 or avx512" in run.stderr


@pytest.mark.parametrize("tag", ["Avx2", "Avx512", "Avx512Vnni"])
def test_objects_share_no_code_with_other_cpus(tag):
    """A weak symbol that another object may define, too, could be linked into code for older CPUs."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    library = Path(_ops.__file__).with_name("_cpu.so").resolve()
    objects = sorted((library.parent / "CMakeFiles" / f"kernels_{tag}.dir").rglob("*.o"))
    if not objects:
        pytest.skip(f"no build folder beside {library.name} (not an editable install)")
    run = subprocess.run(["nm", "-C", "--defined-only", *objects], capture_output=True, text=True, check=True)
    symbols = [line.split(maxsplit=2)[1:] for line in run.stdout.splitlines() if line.count(" ") >= 2]
    shared = [name for kind, name in symbols if kind not in "trdb"]
    assert len(shared) >= len(objects)
    ours = re.compile(
        rf"(void|bool|long|mach::SvmResult) mach::\w+<mach::{tag}[,>]"
    )  # the kernels' own instances
    assert [name for name in shared if not ours.match(name)] == []


if __name__ == "__main__":
    torch.save(outputs(), sys.argv[1]) if len(sys.argv) > 1 else print(_ops.cpu_isa())
