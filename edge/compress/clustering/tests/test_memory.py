"""edge bench edkm: the bytes of each variant, counted where they are kept."""

import json

import pytest
from typer.testing import CliRunner

from edge.cli import app
from edge.compress.clustering import memory
from edge.core.errors import UsageError


def test_rows_for_programs():
    result = CliRunner().invoke(app, ["bench", "edkm", "--scale", "64", "--learners", "2", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert {tuple(row) for row in rows} == {("variant", "rows", "columns", "bits", "saved_bytes", "ratio_to_dkm")}
    ratios = {row["variant"]: row["ratio_to_dkm"] for row in rows}
    weights = rows[0]["rows"] * rows[0]["columns"]
    assert weights == sum(rows * columns for rows, columns in memory.shapes(64))
    assert ratios["dkm"] == 1
    assert ratios["marshaling"] > 1.6
    assert 1.9 < ratios["sharding"] <= 2
    assert ratios["all"] > 130  # of two learners: the paper's ratio, which had eight
    saved = {row["variant"]: row["saved_bytes"] for row in rows}
    assert 2 * weights < saved["uniquification"] < 2.01 * weights  # its index, and centroids
    assert saved["dkm"] > memory.ITERATIONS * 3 * 8 * 2 * weights  # three 16-bit maps of attention an iteration


def test_a_device_that_is_not_there():
    with pytest.raises(UsageError, match="no device 'tpu'"):
        memory.device("tpu")
