"""The Python API: the whole job on a tiny model, and an export that must not pass."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import edge
import edge.compress.run  # the package of the same name as the function
from edge.core.errors import EdgeError, GateFailed, UsageError
from edge.exporters.onnx import export as onnx_export
from edge.kernels import elf
from edge.models.testing import tiny_model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return edge.compress(tiny_model("llama", folder / "tiny"), "int4", folder / "small")


@pytest.fixture(scope="module")
def bundle(small):
    return edge.export(small, small.parent / "bundle", context_length=64)


def test_a_model_keeps_its_name_and_says_how_it_was_made(bundle):
    manifest = bundle.manifest
    assert (manifest.name, manifest.source, manifest.recipe["name"]) == ("tiny", "tiny", "int4")
    assert manifest.gates.codes_equal
    assert manifest.gates.kl_divergence_mean <= manifest.gates.kl_divergence_limit
    assert {encoding.bits for encoding in manifest.encodings.values()} == {4}


def test_the_same_inputs_give_the_same_bytes(small, bundle, tmp_path):
    again = edge.export(small, tmp_path / "again", context_length=64)
    assert again.manifest.files.keys() == bundle.manifest.files.keys()
    assert again.manifest.files == bundle.manifest.files


def test_a_bundle_carries_inputs_and_expected_outputs(bundle):
    samples = load_file(bundle.path / "samples.safetensors")
    model = edge.load(bundle.path)
    logits = model.session.prefill(samples["tokens"].tolist())
    model.close()
    assert np.abs(logits - samples["logits"]).max() < 0.05 * np.abs(samples["logits"]).max()


def test_a_loaded_bundle_generates(bundle):
    model = edge.load(bundle.path)
    first = "".join(model.generate("hello", chat=False, max_tokens=5))
    assert first
    assert first == "".join(model.generate("hello", chat=False, max_tokens=5))
    model.close()


def test_android_bundles_bring_the_kernels_for_arm64_or_say_why_not(small, tmp_path):
    bundle = edge.export(small, tmp_path / "android", target="android", context_length=64)
    library = bundle.path / "lib" / "arm64-v8a" / "libedge_kernels.so"
    if library.exists():
        assert elf.read(library).machine == elf.AARCH64
        assert "lib/arm64-v8a/libedge_kernels.so" in bundle.manifest.files
    else:
        assert any("compiler" in note for note in bundle.manifest.notes)


def test_an_export_that_computes_something_else_never_takes_its_name(small, tmp_path, monkeypatch):
    write = onnx_export.write

    def damaged(checkpoint, folder, **options):
        manifest = write(checkpoint, folder, **options)
        data = folder / "model.onnx.data"
        raw = bytearray(data.read_bytes())
        half = len(raw) // 2
        raw[half : half + 2048] = bytes(2048)
        data.write_bytes(raw)
        return manifest

    monkeypatch.setattr(onnx_export, "write", damaged)
    with pytest.raises(EdgeError):
        edge.export(small, tmp_path / "out", context_length=64)
    assert not (tmp_path / "out").exists()


def test_a_gate_that_fails_has_its_own_exit_code(small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "codes_equal", lambda *_: False)
    with pytest.raises(GateFailed) as error:
        edge.export(small, tmp_path / "out", context_length=64)
    assert error.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_wrong_names_suggest_the_right_ones(small, tmp_path):
    with pytest.raises(UsageError, match="androit") as error:
        edge.export(small, tmp_path / "out", target="androit")
    assert "android" in error.value.hint
    with pytest.raises(UsageError):
        edge.export(small, tmp_path / "out", context_length=4096)
