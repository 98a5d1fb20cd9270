"""Fixtures of the tests of mach_ext.data: folders of a test's own, a server, files that are none."""

import http.server
import os
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import ROOT

from mach_ext import data
from mach_ext.data import registry, sources


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A data folder of the test's own, so that no test sees or changes the user's."""
    monkeypatch.setenv("MACH_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def shared_data():
    """Real datasets beside the checkout, where there are any."""
    folder = Path(os.environ.get("MACH_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "eurlex57k").is_dir():
        pytest.skip(f"no real datasets in {folder}; set MACH_SHARED_DATA")
    return folder


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; understands ranges; closes the connection after ``limit`` bytes."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str | None]]
    limit = 10**9
    ranges = True

    def do_GET(self):
        body = self.files.get(self.path)
        begin = self.headers.get("Range")
        self.asked.append(begin)
        if body is None:
            self.send_error(404)
            return
        start = int(begin.removeprefix("bytes=").removesuffix("-")) if begin and self.ranges else 0
        if start >= len(body) and begin:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if begin and self.ranges else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + self.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on this machine in place of the archive's; yields its handler class."""
    handler = type("Handler", (Server,), {"files": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(registry, "BASE_URL", f"http://127.0.0.1:{httpd.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield handler
        httpd.shutdown()
        thread.join()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def special(tmp_path):
    """Paths of what is no regular file, by what messages call it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return {"a named pipe": tmp_path / "pipe", "a folder": tmp_path / "folder", "a device": Path("/dev/zero")}


@pytest.fixture
def small(monkeypatch):
    """Bounds of a size for tests."""
    monkeypatch.setattr(sources, "FREE_BYTES", 1 << 16)
    monkeypatch.setattr(data.formats.npz, "FREE_BYTES", 1 << 16)
