"""Sound files as a speech model wants them: WAV to mono float32 at 16 kHz, in windows, as log-mel features."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.core.errors import UsageError

RATE = 16000
HOP = 160
PREPROCESSOR = "preprocessor_config.json"
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
HINT = "give a WAV file of 8 to 32 bit PCM or 32-bit float; ffmpeg -i FILE out.wav makes one"
ZERO_CROSSINGS = 32  # of the resampling filter on either side: 80 dB of stopband with this window
KAISER_BETA = 8.0
Sound = NDArray[np.float32]


def read_sound(path: Path) -> Sound:
    """A WAV file's samples, channels averaged, at 16 kHz. Raises `UsageError` for what isn't a WAV file or is empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError("audio.missing", f"can't read {path}: {error.strerror}", HINT) from error
    samples, rate = _parse(path, data)
    if len(samples) == 0:
        raise UsageError("audio.empty", f"{path} has no samples", HINT)
    return resample(samples.mean(axis=1, dtype=np.float32), rate, RATE)


def _parse(path: Path, data: bytes) -> tuple[Sound, int]:
    """Samples [n, channels] in -1 to 1, and their rate."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise UsageError("audio.format", f"{path} is not a WAV file", HINT)
    chunks = dict(_chunks(data))
    layout, sound = chunks.get(b"fmt ", b""), chunks.get(b"data")
    if len(layout) < 16 or sound is None:
        raise UsageError("audio.format", f"{path} is damaged: it has no format or no sound", HINT)
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", layout)
    if kind == EXTENSIBLE and len(layout) >= 26:
        (kind,) = struct.unpack_from("<H", layout, 24)
    if not channels or not 1000 <= rate <= 768_000:
        raise UsageError("audio.format", f"{path} has {channels} channels at {rate} Hz", HINT)
    samples = _decode(path, kind, bits, sound[: len(sound) // (channels * bits // 8 or 1) * (channels * bits // 8)])
    return samples.reshape(-1, channels), rate


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk; one that says more than there is ends with the file, as streams leave it."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _decode(path: Path, kind: int, bits: int, sound: bytes) -> Sound:
    if kind == FLOAT and bits == 32:
        samples = np.frombuffer(sound, "<f4").astype(np.float32)
        if not np.isfinite(samples).all():
            raise UsageError("audio.not_finite", f"{path} has NaN or infinite samples", HINT)
        return samples
    if kind != PCM or bits not in (8, 16, 24, 32):
        raise UsageError("audio.format", f"{path} has {bits}-bit samples of the kind {kind}", HINT)
    if bits == 8:
        return (np.frombuffer(sound, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        padded = np.zeros((len(sound) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(sound, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(sound, f"<i{bits // 8}").astype(np.float32) / 2 ** (bits - 1)


def resample(samples: Sound, rate: int, wanted: int) -> Sound:
    """Samples [n] at `rate` as samples at `wanted`: a Kaiser-windowed sinc, one filter per phase."""
    if rate == wanted:
        return samples
    divisor = math.gcd(rate, wanted)
    up, down = wanted // divisor, rate // divisor
    stretch = max(1.0, rate / wanted)  # the filter's cut-off is the lower one of both rates
    half = math.ceil(ZERO_CROSSINGS * stretch)
    count = -(-len(samples) * up // down)
    padded = np.concatenate([np.zeros(half, np.float32), samples, np.zeros(half + down + 1, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    made = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        start, offset = divmod(phase * down, up)
        distance = np.arange(1 - half, half + 1) - offset / up
        places = windows[start + 1 :: down][: -(-(count - phase) // up)]
        made[phase::up] = places @ _filter(distance, stretch, half)
    return made


def _filter(distance: NDArray[np.float64], stretch: float, half: int) -> Sound:
    """Weights of the samples at these distances, whose sum is 1."""
    window = np.i0(KAISER_BETA * np.sqrt(np.maximum(0, 1 - (distance / half) ** 2)))
    weights = np.sinc(distance / stretch) * window
    return (weights / weights.sum()).astype(np.float32)


def features_of(folder: Path, sound: Sound, shape: list[int]) -> Iterator[Sound]:
    """Log-mel features [1, bins, frames] of each window of a sound, by the folder's preprocessor_config.json.

    shape: what the model takes. Without that file, Whisper's own settings.
    """
    extractor = _extractor(folder, shape)
    length = shape[2] * HOP
    for start in range(0, len(sound), length):
        piece = sound[start : start + length]
        made = extractor(piece, sampling_rate=RATE, return_tensors="np")["input_features"]
        yield np.ascontiguousarray(made, np.float32)


def _extractor(folder: Path, shape: list[int]) -> Any:
    from transformers import WhisperFeatureExtractor

    _, bins, frames = shape
    settings = {"feature_size": bins, "chunk_length": frames * HOP / RATE}
    if (folder / PREPROCESSOR).is_file():
        settings = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True).to_dict() | settings
    seconds = settings["chunk_length"]
    settings["chunk_length"] = int(seconds) if seconds == int(seconds) else seconds
    known = ("feature_size", "chunk_length", "sampling_rate", "hop_length", "n_fft", "padding_value", "dither")
    return WhisperFeatureExtractor(**{name: settings[name] for name in known if name in settings})
