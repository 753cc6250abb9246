"""edge bench: what it prints for programs and for people, and what it says of a wrong request."""

import json

import pytest

from edge.cli.tests.test_cli import assert_fails, edge

ISSUED = ("kernel", "encoding", "bits", "group_size", "m", "k", "n", "threads", "median_us", "min_us", "max_us")
SHARES = ("gb_per_s", "share_of_read_bandwidth", "gops", "peers")
SMALL = ("bench", "kernels", "--quick", "--no-peers", "--filter", "affine[42]g64_576x1536_m1_*")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Keeps the compiled benchmark from one test to the next, and out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_kernel_rows_for_programs(tmp_path):
    result = edge(*SMALL, "--json", "-o", tmp_path / "bench.json")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4  # a row a line
    rows = json.loads(result.stdout)
    assert [row["name"].partition("_")[0] for row in rows] == ["affine4g64", "affine2g64"] * 2
    assert [row["threads"] for row in rows] == [1, 1, 2, 2]
    for row in rows:
        assert set(ISSUED + SHARES) <= set(row)
        assert row["kernel"].startswith(f"affine{row['bits']}_a8_")
        assert 0 < row["min_us"] <= row["median_us"] <= row["max_us"]
        assert row["gb_per_s"] > 0 < row["share_of_read_bandwidth"]
        assert row["peers"] == {}
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["rows"] == rows
    assert set(written["probes"]) == {"576x1536 m1 t1", "576x1536 m1 t2"}
    assert written["device"]["cpu"]


def test_kernel_rows_for_people():
    result = edge(*SMALL, "--threads", "1")
    assert "affine4g64_576x1536_m1_t1" in result.stdout
    assert "GB/s" in result.stdout


def test_wrong_requests():
    assert_fails(edge("bench", "kernels", "--filter", "affine5*"), 2, "affine5*", "--filter")
    assert_fails(edge("bench", "kernels", "--threads", "1,x"), 2, "1,x")
    assert_fails(edge("bench", "peers", "--filter", "nobody"), 2, "nobody", "llama_cpp Q4_0")
