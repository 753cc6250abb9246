"""A bundle: a folder with an exported model and all that a device needs to run it and to know it is the right one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from edge.core.cache import CacheFormat
from edge.core.constraints import Constraints
from edge.core.errors import EdgeError
from edge.core.files import SCHEMA, read_json, sha256, write_json
from edge.core.target import Kernels, KvCacheType, Task
from edge.core.weight import Encoding

MANIFEST = "manifest.json"


class FileEntry(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


class KvCache(msgspec.Struct, frozen=True):
    """Keys and values of every layer, [heads, context_length, head_dim] each, as `dtype`; the graph says in what shape.

    The runtime allocates them and binds them in place. bits_per_element: as stored over the whole context, scales and
    all; None in bundles of an older edge. formats: of a `quantized` cache, one for each layer.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: KvCacheType = "float32"
    bits_per_element: float | None = None
    formats: list[CacheFormat] = msgspec.field(default_factory=list)


class Input(msgspec.Struct, frozen=True):
    """An input of a model that runs in one call. A size of 0 is a length known at run time."""

    dtype: Literal["int64", "float32"]
    shape: list[int]


class Gates(msgspec.Struct, frozen=True):
    """What the export gates measured. `slow_nodes` are operators slower than their fp32 twin, by layer name.

    relative_error: of the first output of a model that runs in one call, |artefact - reference| / |reference|.
    What can't be said of such an output is None.
    """

    kl_divergence_mean: float | None
    kl_divergence_limit: float | None
    top1_agreement: float | None
    max_abs_logit_error: float
    codes_equal: bool
    slow_nodes: list[str]
    relative_error: float | None = None
    relative_error_limit: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is. Everything in it follows from the inputs: no time stamps, no host names.

    start_token_ids: what the decoder of an encoder-decoder begins with. kv_cache: None for a model without one.
    constraints: what its search for an answer keeps to. source_length: tokens that its encoder reads at most, 0 where
    there is no limit. inputs: what a model that runs in one call, or an encoder, takes. context_length and
    vocab_size are 0 where there is no text.
    """

    schema: int = SCHEMA
    name: str
    architecture: str
    task: Task = "decoder"
    target: str
    runtime: str
    kernels: Kernels
    artefact: str
    context_length: int
    vocab_size: int
    eos_token_ids: list[int]
    bos_token_id: int | None
    kv_cache: KvCache | None = None
    start_token_ids: list[int] = msgspec.field(default_factory=list)
    constraints: Constraints | None = None
    source_length: int = 0
    inputs: dict[str, Input] = msgspec.field(default_factory=dict)
    source: str
    source_sha256: str
    recipe: dict[str, Any]
    encodings: dict[str, Encoding]
    layer_of_node: dict[str, str]
    stored_bytes: int
    bits_per_weight: float
    gates: Gates | None
    tool_versions: dict[str, str]
    notes: list[str] = msgspec.field(default_factory=list)
    files: dict[str, FileEntry] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle folder."""

    path: Path
    manifest: Manifest

    @property
    def artefact(self) -> Path:
        return self.path / self.manifest.artefact

    @property
    def hash(self) -> str:
        """Identity of the bundle: the digest of its manifest, which holds the digests of all else."""
        return sha256(self.path / MANIFEST)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the digest of every file in `folder`: the last step of an export."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {p.relative_to(folder).as_posix(): FileEntry(sha256(p), p.stat().st_size) for p in files}
    write_json(folder / MANIFEST, msgspec.structs.replace(manifest, files=entries))


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open a bundle and check every file's digest. Raises `EdgeError` for a missing, changed or foreign file."""
    if not (path / MANIFEST).is_file():
        hint = "`edge export` writes bundles; a compressed model is not one yet"
        raise EdgeError("bundle.missing", f"{path} is not a bundle: it has no {MANIFEST}", hint)
    bundle = Bundle(path, read_json(path / MANIFEST, Manifest))
    for name, entry in bundle.manifest.files.items():
        _check_file(path, name, entry, verify=verify)
    if bundle.manifest.artefact not in bundle.manifest.files:
        raise EdgeError("bundle.corrupt", f"{path}: the manifest doesn't list its artefact", "export the model again")
    return bundle


def _check_file(folder: Path, name: str, entry: FileEntry, *, verify: bool) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise EdgeError(
            "bundle.path", f"{folder}: the manifest names '{name}', outside the bundle", "don't trust this bundle"
        )
    file = folder / relative
    if not file.is_file():
        raise EdgeError("bundle.incomplete", f"{file} is missing", "copy the whole folder, or export the model again")
    if file.stat().st_size != entry.bytes or (verify and sha256(file) != entry.sha256):
        raise EdgeError("bundle.hash", f"{file} is not the file that was exported", "export the model again")
