"""Sound files come in as they were recorded, at 16 kHz, or are refused in one line."""

import struct
import wave

import numpy as np
import pytest

from edge.core.errors import UsageError
from edge.models.audio import features_of, read_sound, resample


def tone(rate, seconds=0.5, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, bits):
    """PCM of samples in -1 to 1."""
    if bits == 8:
        return (np.rint(samples * 127) + 128).astype(np.uint8).tobytes()
    whole = np.rint(samples.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i4")
    return whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


def riff(path, layout, sound):
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(sound)) + sound
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_samples_of_every_width_and_number_of_channels(bits, tmp_path):
    path, sound = tmp_path / "a.wav", tone(16000)
    for channels in (1, 2):
        with wave.open(str(path), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(bits // 8)
            file.setframerate(16000)
            file.writeframes(encoded(np.repeat(sound, channels), bits))
        np.testing.assert_allclose(read_sound(path), sound, atol=1.1 / 2 ** (bits - 1) + 1e-6)


def test_floats_and_the_extensible_header(tmp_path):
    sound = tone(16000)
    floats = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    np.testing.assert_array_equal(read_sound(riff(tmp_path / "f.wav", floats, sound.tobytes())), sound)
    wide = struct.pack("<HHIIHHHHIH14s", 0xFFFE, 1, 16000, 48000, 3, 24, 22, 24, 4, 1, b"")
    np.testing.assert_allclose(read_sound(riff(tmp_path / "e.wav", wide, encoded(sound, 24))), sound, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_a_tone_and_takes_away_what_16_khz_cannot_hold(rate):
    made = resample(tone(rate), rate, 16000)
    assert len(made) == 8000
    np.testing.assert_allclose(made[800:-800], tone(16000)[800:-800], atol=2e-4)
    if rate > 20000:
        assert np.abs(resample(tone(rate, hertz=9500.0), rate, 16000)[800:-800]).max() < 2e-3


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "audio.missing"),
        (b"", "audio.format"),
        (b"ID3\x04 this is no sound file", "audio.format"),
        (b"RIFF\x10\0\0\0WAVEfmt \x04\0\0\0\1\0\1\0", "audio.format"),
    ],
)
def test_what_is_no_sound_file_is_refused(data, code, tmp_path):
    path = tmp_path / "x.wav"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_sound(path)
    assert caught.value.code == code
    assert caught.value.hint


def test_other_encodings_no_samples_and_odd_endings(tmp_path):
    layout = struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8)
    with pytest.raises(UsageError, match="8-bit samples of the kind 6"):
        read_sound(riff(tmp_path / "alaw.wav", layout, b"\0" * 80))
    layout = struct.pack("<HHIIHH", 1, 2, 16000, 64000, 4, 16)
    with pytest.raises(UsageError, match="no samples"):
        read_sound(riff(tmp_path / "empty.wav", layout, b""))
    assert len(read_sound(riff(tmp_path / "cut.wav", layout, b"\1" * 43))) == 10


def test_a_long_sound_becomes_windows_of_the_models_length(tmp_path):
    shape = [1, 80, 200]  # two seconds
    pieces = list(features_of(tmp_path, tone(16000, seconds=5.0), shape))
    assert [piece.shape for piece in pieces] == [(1, 80, 200)] * 3
    assert all(piece.dtype == np.float32 for piece in pieces)
