"""Jane Austen's novels out of Debian's package `r-cran-janeaustenr`: real text for evaluation and training.

R keeps a package's data as a chain of zlib blocks, each a serialised vector of strings (R internals, section 1.8).
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from edge.core.errors import EdgeError
from edge.core.files import write_atomic

PACKAGE = "r-cran-janeaustenr"
DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
STRING_VECTOR, STRING = 16, 9
HELD_OUT = "NORTHANGER ABBEY"
TRAINING = ["SENSE AND SENSIBILITY", "PRIDE AND PREJUDICE", "MANSFIELD PARK", "EMMA", "Persuasion"]


def northanger_abbey(cache: Path) -> Path:
    """The novel that evaluates, as UTF-8 text, fetched with apt on first use."""
    return _cached(cache / "northanger-abbey.txt", [HELD_OUT])


def training_novels(cache: Path) -> Path:
    """The five others as one UTF-8 text, fetched with apt on first use."""
    return _cached(cache / "training-novels.txt", TRAINING)


def _cached(path: Path, titles: list[str]) -> Path:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        novels = list(_novels(_data()))
        chosen = [text for title in titles for text in novels if text.startswith(title)]
        if len(chosen) != len(titles):
            message = f"{PACKAGE} does not hold each of {', '.join(titles)} once"
            raise EdgeError("austen.format", message, "its format may have changed")
        write_atomic(path, "\n\n".join(chosen).encode())
    return path


def _data() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "-q", "download", PACKAGE], cwd=folder, check=True, capture_output=True)
            package = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg", "-x", str(package), folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            hint = "on a machine without apt, put northanger-abbey.txt and training-novels.txt into the cache folder"
            raise EdgeError("austen.fetch", f"can't fetch Debian's {PACKAGE}", hint) from error
        return (Path(folder) / DATA).read_bytes()


def _novels(data: bytes) -> Iterator[str]:
    """Each block: 4 bytes of length, then zlib data whose end says where the next one begins."""
    while data:
        stream = zlib.decompressobj()
        (length,) = struct.unpack(">I", data[:4])
        yield "\n".join(_strings(stream.decompress(data[4:], length)))
        data = stream.unused_data


def _strings(block: bytes) -> Iterator[str]:
    """Lines of a serialised string vector: after the header, each is flags, length and UTF-8 bytes."""
    name_length = struct.unpack(">I", block[14:18])[0]
    position = 18 + name_length
    kind, count = struct.unpack(">II", block[position : position + 8])
    if kind & 0xFF != STRING_VECTOR:
        raise EdgeError("austen.format", f"{PACKAGE} holds something else than text", "its format may have changed")
    position += 8
    for _ in range(count):
        flags, length = struct.unpack(">Ii", block[position : position + 8])
        position += 8
        if flags & 0xFF != STRING or length < 0:
            yield ""
            continue
        yield block[position : position + length].decode("utf-8")
        position += length
