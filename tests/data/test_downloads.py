"""Downloads that resume, and servers that lie."""

import hashlib
import io

import pytest
from data_cases import pecos_archive

from mach_ext import data
from mach_ext.data import downloads, load, registry


def test_download_resumes(server, home):
    archive = pecos_archive()
    server.files["/wiki10-31k.tar.gz"] = archive
    server.limit = len(archive) // 3 + 1
    assert len(load("wiki10").test) == 8
    third = server.limit
    assert server.asked == [None, f"bytes={third}-", f"bytes={2 * third}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_from_an_earlier_part(server, tmp_path, ranges):
    body = bytes(range(256)) * 50
    server.files["/a"] = body
    server.ranges = ranges
    (tmp_path / "a.part").write_bytes(body[:5000])
    data.download(
        f"{registry.BASE_URL}/a", tmp_path / "a", sha256=hashlib.sha256(body).hexdigest(), progress=False
    )
    assert (tmp_path / "a").read_bytes() == body
    assert server.asked == ["bytes=5000-"]
    assert not (tmp_path / "a.part").exists()


def test_download_part_that_is_complete_or_too_long(server, tmp_path):
    server.files["/a"] = b"12345"
    (tmp_path / "a.part").write_bytes(b"12345")
    data.download(f"{registry.BASE_URL}/a", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == b"12345"
    (tmp_path / "a.part").write_bytes(b"another file, longer")
    with pytest.raises(ConnectionError, match="/a: could not be downloaded"):
        data.download(f"{registry.BASE_URL}/a", tmp_path / "a", progress=False)
    data.download(f"{registry.BASE_URL}/a", tmp_path / "a", progress=False)
    assert (tmp_path / "a").read_bytes() == b"12345"


def test_download_with_another_checksum(server, tmp_path):
    server.files["/a"] = b"12345"
    with pytest.raises(ValueError, match=r"/a: the download must have sha256 00, got 5994471abb.*deleted"):
        data.download(f"{registry.BASE_URL}/a", tmp_path / "a", sha256="00", progress=False)
    assert not list(tmp_path.iterdir())


class Response(io.BytesIO):
    def __init__(self, body, status, headers):
        super().__init__(body)
        self.status, self.headers = status, headers


@pytest.mark.parametrize(
    ("status", "headers", "limit", "error", "message"),
    [
        (200, {"Content-Length": "x"}, None, ConnectionError, "Content-Length must be a number, got 'x'"),
        (200, {"Content-Length": "-5"}, None, ConnectionError, "Content-Length must be a number, got '-5'"),
        (200, {"Content-Length": "\u0665"}, None, ConnectionError, "Content-Length must be a number"),
        (200, {"Content-Length": "99"}, 9, ValueError, "must have at most 9 bytes, got 99"),
        (200, {}, 9, ValueError, "must have at most 9 bytes, got more; it was deleted"),
        (
            206,
            {"Content-Range": "bytes 0-9/10"},
            None,
            ConnectionError,
            "asked for bytes from 3 on, got 'bytes 0-9/10'",
        ),
    ],
)
def test_servers_that_lie(tmp_path, monkeypatch, status, headers, limit, error, message):
    monkeypatch.setattr(
        downloads.urllib.request, "urlopen", lambda *args, **kwargs: Response(b"0123456789", status, headers)
    )
    if status == 206:
        (tmp_path / "a.part").write_bytes(b"012")
    with pytest.raises(error, match=message):
        data.download("http://a/a", tmp_path / "a", progress=False, max_bytes=limit)
    assert not (tmp_path / "a").exists()
