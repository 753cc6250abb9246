import errno

import msgspec
import pytest

from edge.core.errors import EdgeError, UsageError
from edge.core.files import atomic_folder, read_json, write_json


class Record(msgspec.Struct):
    value: int
    schema: int = 1


def test_nothing_half_written_takes_the_final_name(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(final) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_resuming_run_finds_what_was_done(tmp_path):
    final = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), atomic_folder(final, resume=True) as folder:
        (folder / "layer-0").write_text("done")
        raise KeyboardInterrupt
    assert not final.exists()
    with atomic_folder(final, resume=True) as folder:
        assert (folder / "layer-0").read_text() == "done"
    assert (final / "layer-0").exists()


def test_an_existing_folder_is_kept_unless_forced(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    (final / "mine").write_text("precious")
    with pytest.raises(UsageError, match="exists"), atomic_folder(final):
        pass
    assert (final / "mine").read_text() == "precious"
    with atomic_folder(final, force=True) as folder:
        (folder / "new").write_text("x")
        assert (final / "mine").exists()  # the old one stays until the new one is whole
    assert [p.name for p in final.iterdir()] == ["new"]


def test_a_full_disk_is_one_line_with_a_hint(tmp_path):
    with pytest.raises(EdgeError, match="no space left") as error, atomic_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.code == "disk.full"


def test_json_round_trip_and_newer_schema(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, Record(3))
    assert read_json(path, Record) == Record(3)
    write_json(path, Record(3, schema=2))
    with pytest.raises(EdgeError, match="schema 2"):
        read_json(path, Record)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"schema": 1}', b'{"schema": "x", "value": 1}'])
def test_damaged_json_is_an_error_not_a_crash(tmp_path, data):
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(EdgeError):
        read_json(path, Record)
