"""The server of docs/how-to/serving.md: started for real, alone and under gunicorn, and asked over HTTP."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager

import docs_cases
import pytest
from helpers import ROOT
from test_docs_code import blocks

import mach_ext

PAGE = ROOT / "docs" / "how-to" / "serving.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run and the files of the page."""
    folder = tmp_path_factory.mktemp("serving")
    docs_cases.animals(folder / "animals", train=200)
    output = folder / "runs" / "animals"
    mach_ext.train(folder / "animals", output=output, epochs=20, batch_size=32, progress=False)
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        if block.title:
            (folder / block.title).write_text(block.code)
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(folder, *command, port):
    """Starts a server and waits until it answers; gives its address."""
    environment = os.environ | {"MODEL": "runs/animals", "PYTHONPATH": str(ROOT)}
    address = f"http://127.0.0.1:{port}"
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            for _ in range(600):
                assert server.poll() is None, (folder / "log").read_text()
                try:
                    ask(address, {"texts": []})
                    break
                except urllib.error.URLError as error:
                    if isinstance(error, urllib.error.HTTPError):
                        raise
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def ask(address, question):
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    with urllib.request.urlopen(address, body, timeout=60) as reply:
        return json.load(reply)["labels"]


def expected(folder, texts, k):
    run = mach_ext.Run.open(folder / "runs" / "animals")
    return [[best.label for best in each] for each in run.predict(texts, k=k)]


def names(answer):
    return [[each["label"] for each in labels] for labels in answer]


def status(address, data):
    """The status of a refusal, and what it says."""
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(address, data, timeout=60):
        pass
    with caught.value as error:
        return error.code, json.load(error)["error"]


def status_of_length(port, length):
    """The status of a request that only says how long it is."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        return connection.getresponse().status


TEXTS = ["an animal that barks", "an animal that hoots"]


def test_the_server_of_the_page_answers_and_refuses(folder):
    port = free_port()
    with served(folder, sys.executable, "serve.py", str(port), port=port) as address:
        assert names(ask(address, {"texts": TEXTS, "k": 3})) == expected(folder, TEXTS, 3)
        assert [len(labels) for labels in ask(address, {"texts": TEXTS})] == [5, 5]
        assert ask(address, {"texts": ["zzz"], "k": 1})[0][0]["score"] is None
        client = subprocess.run(
            [sys.executable, "ask.py", address], cwd=folder, check=True, capture_output=True, text=True
        )
        assert client.stdout.splitlines() == [str(labels) for labels in expected(folder, TEXTS, 3)]
        assert status(address, None) == (405, "send a POST")
        for body in (b"no JSON", b"{}", b'{"texts": "a"}', b'{"texts": [1]}', b'{"texts": ["a"], "k": -1}'):
            assert status(address, body)[0] == 400
        assert status_of_length(port, "10000000") == 413
        assert status_of_length(port, "much") == 400


def test_the_server_of_the_page_under_gunicorn(folder):
    pytest.importorskip("gunicorn")
    (command,) = (
        line[2:]
        for block in blocks(PAGE.read_text(encoding="utf-8"))
        for line in block.code.splitlines()
        if line.startswith("$ MODEL=") and "gunicorn" in line
    )
    port = free_port()
    words = command.replace(":8000", f":{port}").split()[2:]  # after MODEL=... and the program
    with served(folder, sys.executable, "-m", "gunicorn", *words, port=port) as address:
        answers = [names(ask(address, {"texts": TEXTS, "k": 3})) for _ in range(8)]
    assert answers == [expected(folder, TEXTS, 3)] * 8
