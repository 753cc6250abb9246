import msgspec
import pytest

from edge.core.bundle import MANIFEST, FileEntry, KvCache, Manifest, open_bundle, seal
from edge.core.errors import EdgeError
from edge.core.files import write_json

MANIFEST_OF_TEST = Manifest(
    name="m",
    architecture="llama",
    target="cpu",
    runtime="onnx",
    kernels="edge",
    artefact="model.onnx",
    context_length=16,
    vocab_size=8,
    eos_token_ids=[1],
    bos_token_id=None,
    kv_cache=KvCache(1, 1, 8),
    source="s",
    source_sha256="0",
    recipe={},
    encodings={},
    layer_of_node={},
    stored_bytes=1,
    bits_per_weight=4.0,
    gates=None,
    tool_versions={},
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "k.so").write_bytes(b"code")
    seal(tmp_path, MANIFEST_OF_TEST)
    return tmp_path


def test_a_sealed_bundle_opens(folder):
    assert set(open_bundle(folder).manifest.files) == {"model.onnx", "lib/k.so"}


def test_the_same_content_has_the_same_manifest(folder):
    before = (folder / MANIFEST).read_bytes()
    seal(folder, MANIFEST_OF_TEST)
    assert (folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("damage", [b"grapH", b"graph and more", b""])
def test_a_changed_file_is_refused(folder, damage):
    (folder / "model.onnx").write_bytes(damage)
    with pytest.raises(EdgeError) as error:
        open_bundle(folder)
    assert error.value.code == "bundle.hash"


def test_a_missing_file_is_refused(folder):
    (folder / "lib" / "k.so").unlink()
    with pytest.raises(EdgeError, match="missing"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_reach_outside_its_folder(folder, name):
    files = {"model.onnx": FileEntry("0", 5), name: FileEntry("0", 1)}
    write_json(folder / MANIFEST, msgspec.structs.replace(MANIFEST_OF_TEST, files=files))
    with pytest.raises(EdgeError):
        open_bundle(folder, verify=False)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(EdgeError, match="not a bundle") as error:
        open_bundle(tmp_path)
    assert "edge export" in error.value.hint
