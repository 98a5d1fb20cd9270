"""Threads and forks: evaluation touches no state, and a child process has a pool of threads of its own."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse
import torch

import mach_ext
from mach_ext import attack, certify, explain, functional, training

D, L, R, B = 60, 80, 4, 16
SHAPES = {
    "linear": {"hidden_size": 0},
    "shared": {"hidden_size": 12},
    "two layers": {"hidden_size": (12, 10), "encoder": "independent"},
}
X = scipy.sparse.random(6, D, density=0.2, format="csr", dtype="float32", random_state=0)
Y = scipy.sparse.csr_matrix(np.eye(6, L))


def build(name="two layers", **options):
    """A model in training mode, whose dropout changes nearly every answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mach_ext.CollisionWarning)
        model = mach_ext.MACH(D, L, R, B, **SHAPES[name], feature_dropout=0.5, hidden_dropout=0.5, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model.train()


def tensors(matrix):
    return tuple(map(torch.from_numpy, (matrix.data, matrix.indices, matrix.indptr)))


@contextmanager
def trained_beside(model):
    """Another thread takes steps of learning rate 0 on the model; yields the losses it has seen."""
    losses, stop = [], threading.Event()

    def train():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        while not stop.is_set() or len(losses) < 2:
            loss = model.loss(*tensors(X), *tensors(Y)[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    with ThreadPoolExecutor(1) as pool:
        training_thread = pool.submit(train)
        try:
            yield losses
        finally:
            stop.set()
            training_thread.result()


def flat(answer):
    """The numbers of an answer, whatever holds them."""
    if isinstance(answer, dict):
        return [x for value in answer.values() for x in flat(value)]
    if isinstance(answer, (list, tuple)):
        return [x for value in answer for x in flat(value)]
    if hasattr(answer, "__dataclass_fields__"):
        return flat(vars(answer))
    return [answer]


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=np.asarray(x).dtype.kind == "f")
               for x, y in zip(flat(a), flat(b), strict=True))  # fmt: skip


QUESTIONS = {
    "predict": lambda model: model.predict(X, 5),
    "integrated_gradients": lambda model: vars(explain.integrated_gradients(model, X[0], [3, 7])),
    "votes": lambda model: explain.votes(model, X[0], [3, 7]),
    "leave_one_out": lambda model: explain.leave_one_out(model, X[0], 3),
    "collisions": lambda model: explain.collisions(model, X[0], 3),
    "perturb": lambda model: attack.FGSM(model, goal="positive", k=3).perturb(X, Y, 0.3).predict(5),
    "attack.evaluate": lambda model: attack.evaluate(model, X, Y, epsilons=[0, 0.1], resamples=0),
    "certify": lambda model: certify.certify(model, X, Y, [0.001], zero=False),
    "margin_bounds": lambda model: certify.margin_bounds(model, X, [[1, 2]] * 6, 0.01),
    "evaluate_model": lambda model: training.evaluate_model(model, X, Y),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_threads_beside_training_get_the_answers_of_one_alone(question, name):
    model, ask = build(name), QUESTIONS[question]
    expected = ask(build(name).eval())
    before = torch.random.get_rng_state()
    assert same(ask(model), expected)  # in training mode
    assert torch.equal(torch.random.get_rng_state(), before)
    with trained_beside(model) as losses, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, [model] * 9))
        assert model.training
    assert [same(answer, expected) for answer in answers] == [True] * 9
    assert all(module.training for module in model.modules())
    assert len(set(losses)) > 1  # dropout was alive


@pytest.mark.parametrize("name", ["shared", "two layers"])
def test_a_step_amid_an_attack_is_no_fault_of_its_gradient(monkeypatch, name):
    """PyTorch refuses to go back through weights that were written to; an attack takes them as they are."""
    model, label_logits = build(name), functional.label_logits
    found = attack.FGSM(model, goal="positive", k=3)
    expected = found.perturb(X, Y, 0.3).predict(5)

    def stepped(*args, **options):
        out = label_logits(*args, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1)
        return out

    monkeypatch.setattr(functional, "label_logits", stepped)
    assert same(found.perturb(X, Y, 0.3).predict(5), expected)


def test_dropout_is_asked_for_by_keyword_and_the_mode_stays():
    model, documents = build(), tensors(X)
    alone = build().eval()
    labels = torch.tensor([3, 7])
    calls = {
        "encode": lambda m, **o: m.encode(*documents, **o),
        "forward": lambda m, **o: m(*documents, **o),
        "loss": lambda m, **o: m.loss(*documents, *tensors(Y)[1:], **o),
        "label_logits": lambda m, **o: m.label_logits(*documents, labels, **o),
        "label_scores": lambda m, **o: m.label_scores(*documents, labels, **o),
        "topk": lambda m, **o: m.topk(*documents, 3, **o)[0],
        "drop_features": lambda m, **o: m.drop_features(documents[0], **o),
    }
    for name, call in calls.items():
        plain = call(alone)
        assert torch.equal(call(model, dropout=False), plain), name
        assert not torch.equal(call(model), plain), name
        assert not torch.equal(call(alone, dropout=True), plain), name
        drawn = [call(alone, dropout=torch.Generator().manual_seed(5)) for _ in range(2)]
        assert torch.equal(*drawn), name
        assert not torch.equal(drawn[0], plain), name
    assert model.training
    assert not alone.training
    with pytest.raises(
        TypeError, match=r"MACH: dropout must be None, a bool or a torch\.Generator, got float"
    ):
        model(*documents, dropout=0.5)


def test_a_generator_draws_as_torch_does():
    model, values = build(), torch.randn(7, 33)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = torch.nn.functional.dropout(values, 0.5)
    drawn = model.drop_features(values, dropout=torch.Generator().manual_seed(11))
    assert torch.equal(drawn, expected)


def test_fit_beside_threads_that_draw_and_predict_ends_with_the_same_bits():
    def run():
        model = build("shared")
        mach_ext.fit(model, X, Y, epochs=20, batch_size=2, progress=False)
        return [parameter.detach().clone() for parameter in model.parameters()]

    expected, stop = run(), threading.Event()

    def draw():
        while not stop.is_set():
            torch.rand(100)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(draw)
        runs = [pool.submit(run) for _ in range(2)]
        try:
            found = [future.result() for future in runs]
        finally:
            stop.set()
    for weights in found:
        assert all(map(torch.equal, weights, expected))


def test_warnings_of_other_threads_come_through_while_fit_runs(tmp_path, monkeypatch):
    """The filters of the warnings module are the whole process's."""
    seen = []
    finish = training.run.TrainingRun.finish

    def spy(run):
        load = training.keeping.load

        def loaded(folder):
            seen.append(list(warnings.filters))
            return load(folder)

        monkeypatch.setattr(training.keeping, "load", loaded)
        finish(run)
        monkeypatch.setattr(training.keeping, "load", load)

    monkeypatch.setattr(training.run.TrainingRun, "finish", spy)
    model = build("linear")
    filters = list(warnings.filters)
    mach_ext.fit(model, X, Y, epochs=1, output=tmp_path, progress=False)
    assert seen == [filters]


# ----------------------------------------------------------------------------------------------------- forks

WIDE = scipy.sparse.random(128, 500, density=0.1, format="csr", dtype="float32", random_state=0)
WIDE_LABELS = scipy.sparse.csr_matrix((np.ones(128), (np.arange(128), np.arange(128))), shape=(128, 700))
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on: of any such process


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def wide_model():
    """A model whose products are worth a second thread."""
    return mach_ext.MACH(500, 700, num_repetitions=8, num_buckets=256, hidden_size=128)


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def forked(work, seconds=300):
    """The exit status of a child that does some work: 0; a child that hangs is killed by its alarm."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def train(model):
    model.loss(*tensors(WIDE), *tensors(WIDE_LABELS)[1:]).backward()
    mach_ext.fit(model, WIDE, WIDE_LABELS, epochs=1, progress=False)


WORK = {
    "predict": lambda model: model.predict(WIDE, 5),
    "explain": lambda model: explain.leave_one_out(model, WIDE[0], 3),
    "attack": lambda model: attack.FGSM(model).perturb(WIDE, WIDE_LABELS, 0.1).predict(3),
    "train": train,
    "products": lambda model: torch.ones(700, 700) @ torch.ones(700, 700),
}


@forks
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", WORK)
def test_a_child_process_has_threads_of_its_own(wide, name):
    labels = wide.predict(WIDE, 5)[1]

    def work():
        assert torch.get_num_threads() == 2
        WORK[name](wide)
        if name != "train":
            assert (wide.predict(WIDE, 5)[1] == labels).all()

    assert [forked(work) for _ in range(2)] == [0, 0]
    assert (wide.predict(WIDE, 5)[1] == labels).all()  # as has the parent


@forks
@pytest.mark.usefixtures("two_threads")
def test_forks_of_forks_and_of_threads_beside_threads_that_predict(wide):
    def generations(left):
        wide.predict(WIDE, 5)
        if left:
            assert forked(lambda: generations(left - 1)) == 0
            wide.predict(WIDE, 5)

    def first_threads_at_once():
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: wide.predict(WIDE, 5), range(8)))

    def fork():
        wide.predict(WIDE, 5)
        return [forked(work) for work in (lambda: wide.predict(WIDE, 5), first_threads_at_once)]

    generations(3)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            wide.predict(WIDE, 5)

    with ThreadPoolExecutor(4) as pool:
        pool.submit(busy)
        answers = [pool.submit(fork) for _ in range(3)]
        try:
            assert [answer.result() for answer in answers] == [[0, 0]] * 3
        finally:
            stop.set()


POOLED = {}


def best(_):
    return POOLED["model"].predict(WIDE, 5)[1].tolist()


@forks
@pytest.mark.usefixtures("two_threads")
def test_a_pool_of_forked_processes(wide):
    POOLED["model"] = wide
    labels = wide.predict(WIDE, 5)[1].tolist()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(best, range(4)).get(60) == [labels] * 4


def test_without_a_way_to_end_the_pool_a_child_has_one_thread():
    script = """
        import ctypes, os, signal, sys, warnings
        import scipy.sparse, torch

        class Old(ctypes.CDLL):
            def __getattr__(self, name):
                if name == "omp_pause_resource_all":
                    raise AttributeError(name)
                return super().__getattr__(name)

        ctypes.CDLL = Old
        import mach_ext

        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        model = mach_ext.MACH(500, 700, num_repetitions=8, num_buckets=256, hidden_size=128)
        X = scipy.sparse.random(128, 500, density=0.1, format="csr", dtype="float32", random_state=0)
        labels = model.predict(X, 5)[1]
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            same = (model.predict(X, 5)[1] == labels).all()
            os._exit(0 if same and torch.get_num_threads() == 1 else 1)
        sys.exit(os.waitpid(child, 0)[1] != 0 or torch.get_num_threads() != 2)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)


def test_gunicorn_preload(wide, tmp_path):
    pytest.importorskip("gunicorn")
    wide.save(tmp_path / "model")
    scipy.sparse.save_npz(tmp_path / "X.npz", WIDE)
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            """
            import json, os
            import scipy.sparse, torch
            import mach_ext

            torch.set_num_threads(2)
            model, X = mach_ext.load("model"), scipy.sparse.load_npz("X.npz")
            model.predict(X, 5)

            def application(environ, start_response):
                labels = model.predict(X, 5)[1]
                body = json.dumps({"process": os.getpid(), "labels": labels.tolist()}).encode()
                start_response("200 OK", [("Content-Length", str(len(body)))])
                return [body]
            """
        )
    )
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "--threads", "2"]
    command += ["-b", "127.0.0.1:0", "--timeout", "120", "app:application"]
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(
        command, cwd=tmp_path, stdout=log, stderr=log
    ) as server:  # fmt: skip
        try:
            while not (at := re.search(r"Listening at: (\S+)", (tmp_path / "log").read_text())):
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            answers = []
            for _ in range(12):
                with urllib.request.urlopen(at[1], timeout=120) as answer:
                    answers.append(json.load(answer))
        finally:
            server.terminate()
            server.wait(120)
    labels = wide.predict(WIDE, 5)[1].tolist()
    assert [answer["labels"] == labels for answer in answers] == [True] * 12, (tmp_path / "log").read_text()


def test_a_bar_starts_no_thread():
    from mach_ext._progress import tqdm

    before = set(threading.enumerate())
    with tqdm(total=1, file=io.StringIO()) as bar:
        bar.update()
        assert set(threading.enumerate()) == before
