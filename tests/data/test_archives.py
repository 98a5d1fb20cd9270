"""Archives made to do harm."""

import io
import tarfile

import pytest

from mach_ext.data import archives


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name, size=0, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, "/etc/passwd"
    return info


def test_archives_that_unpack_without_limit(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    bomb = archive(tmp_path / "a.tar.gz", (member("a/Y.npz", 1 << 22), bytes(1 << 22)))
    with pytest.raises(ValueError, match=r"a.tar.gz: the archive .* it unpacks to more than 1048576 bytes"):
        archives.extract(bomb, {"Y.npz": "Y.npz"}, out, max_bytes=1 << 20)
    other = archive(
        tmp_path / "a.tar.gz", (member("b", 1 << 22), bytes(1 << 22)), (member("a/Y.npz", 1), b"1")
    )
    with pytest.raises(ValueError, match=r"it unpacks to more than 1048576 bytes"):
        archives.extract(other, {"Y.npz": "Y.npz"}, out, max_bytes=1 << 20)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_archives_whose_headers_are_huge(tmp_path, kind):
    (tmp_path / "a.tar").write_bytes(member("a", 1 << 33, kind).tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match=r"a.tar: the archive must .*, got: a header of \d+ bytes"):
        archives.extract(tmp_path / "a.tar", {"Y.npz": "Y.npz"}, tmp_path)


def test_archives_of_too_many_or_other_things(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
    archives.extract(
        archive(tmp_path / "a.tar.gz", *((member("a/Y.npz", kind=kind), b"") for kind in kinds)),
        {"Y.npz": "Y.npz"},
        out,
    )
    assert not list(out.iterdir())
    chain = member("p", 0, tarfile.XHDTYPE).tobuf() * 5000
    (tmp_path / "a.tar").write_bytes(chain)
    with pytest.raises(ValueError, match=r"a.tar: the archive must be whole and undamaged"):
        archives.extract(tmp_path / "a.tar", {"Y.npz": "Y.npz"}, out)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with pytest.raises(ValueError, match=r"a.tar.gz: .* more than 3 files in it"):
        archives.extract(tmp_path / "a.tar.gz", {"Y.npz": "Y.npz"}, out)
