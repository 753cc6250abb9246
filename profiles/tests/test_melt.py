"""The tables of the series that take long: what they make of results, on made-up ones."""

import json

import pytest

from edge.core.files import write_json
from edge.profiles.compare import compare
from edge.profiles.peers import aa, melt
from edge.profiles.tests.test_compare import result, series


def test_turns_become_one_row_and_one_result(tmp_path):
    (tmp_path / "turns").mkdir()
    for number, (load_ns, peak) in enumerate(((90_000_000, 300_000_000), (80_000_000, 310_000_000))):
        turn = result(seed=number, load_ns=load_ns, peak_bytes=peak)
        write_json(tmp_path / "turns" / f"int4-onnx-2t-{number}.json", turn)
    melt.write(tmp_path, tmp_path)
    content = json.loads((tmp_path / "melt-smollm2.json").read_text())
    row = content["rows"]["int4-onnx 2t"]
    assert (row["load_ms"], row["peak_bytes"], row["decode_tokens_per_s"]["count"]) == (85.0, 310_000_000, 10)
    assert len(row["turns"]) == 2 and len(row["turns"][0]["decode_ns"]) == 5
    table = (tmp_path / "melt-smollm2.md").read_text()
    assert "| int4, ONNX Runtime | 4.71 |" in table and "85 ms | 310 MB |" in table and "1 thread:" not in table
    assert (tmp_path / "results" / "int4-onnx-2t.json").exists()


def test_engines_take_turns_in_an_order_that_turns_over(tmp_path, monkeypatch):
    seen = []

    def profile(bundle, *, threads, **_):
        seen.append((bundle, threads))
        return result()

    monkeypatch.setattr(melt, "open_bundle", lambda path, verify: path.name)
    monkeypatch.setattr(melt, "profile", profile)
    for number in (0, 1):
        melt.take_turns(tmp_path, number, {})
    half = len(seen) // 2
    assert half == len(melt.ROWS) * len(melt.THREADS) and seen[half:] == seen[:half][::-1]
    melt.take_turns(tmp_path, 0, {})
    assert len(seen) == 2 * half  # what is there is kept


def test_a_series_of_pairs_counts_what_the_floor_held(tmp_path):
    paths = []
    for number in range(3):
        pair = compare(series(4, seed=number), series(4, seed=10 + number), interleaved=True)
        paths.append(tmp_path / f"{number}.json")
        write_json(paths[-1], pair)
    found = aa.summary(paths, {})
    decode = found["metrics"]["decode"]
    assert (found["pairs"], decode["of"], len(decode["pairs"])) == (3, 3, 3)
    assert 0 <= decode["within_floor"] <= 3 and decode["floor_median"] == pytest.approx(
        sorted(pair["floor"] for pair in decode["pairs"])[1]
    )
