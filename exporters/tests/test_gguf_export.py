"""GGUF files: llama.cpp's types hold our codes, edge reads back what it wrote, llama.cpp splits text as we do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import edge
from edge.core.encoding import Affine, Codebook, Compressed, Dense, GroupMixed, Sparse
from edge.core.errors import EdgeError, UsageError
from edge.core.weight import CompressedTensor
from edge.exporters.gguf import architecture, export
from edge.exporters.gguf.blocks import NEAR, relative_error, store
from edge.kernels.testing import random_tensor
from edge.models.checkpoint import Checkpoint, open_checkpoint
from edge.models.pre_tokenizers import STEPS, name_of, pre_tokenizer
from edge.models.testing import encoded_model, tiny_model
from edge.models.tokenizer import tokenizer_of
from edge.models.torch_model import build_model

TOKENS = torch.tensor([np.random.default_rng(3).integers(3, 160, 24).tolist()])
# What llama.cpp's Gemma takes for granted of its heads.
FAMILIES = {
    "llama": {},
    "llama-rope": {},
    "mistral": {"sliding_window": 32},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "phi3": {},
    "phi3-longrope": {},
    "gpt2": {},
}
EXACT = 0.0
TYPES: list[tuple[Compressed, Type, float]] = [
    (Affine(2, 32), Type.Q4_0, EXACT),
    (Affine(3, 64, "zero_point"), Type.Q4_0, EXACT),
    (Affine(3, 0, "half_integer"), Type.Q4_0, EXACT),
    (Affine(4, 32), Type.Q4_0, EXACT),
    (Affine(4, 128), Type.Q4_0, EXACT),
    (Affine(4, 64, "zero_point"), Type.Q4_1, NEAR),
    (Affine(4, 64, "half_integer"), Type.Q5_0, EXACT),
    (Affine(5, 32), Type.Q5_0, EXACT),
    (Affine(5, 32, "zero_point"), Type.Q5_1, NEAR),
    (Affine(6, 64), Type.Q8_0, EXACT),
    (Affine(8, 32), Type.Q8_0, EXACT),
    (Affine(8, 64, "zero_point"), Type.F16, NEAR),
    (Codebook(4, group_size=64), Type.Q8_0, EXACT),
    (Codebook(3, dim=2, scale="row"), Type.Q8_0, EXACT),
    (Codebook(4, entry="int16"), Type.F16, NEAR),
    (GroupMixed(64, 1), Type.Q4_0, EXACT),
    (GroupMixed(64, 1, scale="second_order"), Type.Q4_0, NEAR),
    (Sparse("16x8", 4, 64), Type.Q4_0, EXACT),
    (Sparse("2:4", 8, 64), Type.Q8_0, EXACT),
]


@pytest.mark.parametrize(("encoding", "kind", "allowed"), TYPES, ids=str)
def test_codes_stay_what_they_are(encoding: Compressed, kind: Type, allowed: float) -> None:
    tensor = random_tensor(48, 256, encoding, 1)
    stored = store(tensor)
    wanted = tensor.dequantize()
    found = gguf.dequantize(stored.data, stored.kind)
    assert stored.kind == kind
    assert relative_error(found, wanted) == stored.relative_error <= allowed


@pytest.mark.parametrize(("dtype", "kind"), [("float32", Type.F16), ("float16", Type.F16), ("bfloat16", Type.BF16)])
def test_plain_weights_are_halves(dtype: str, kind: Type) -> None:
    values = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
    stored_as = values.view(np.uint32) >> 16 if dtype == "bfloat16" else values
    parts = {"values": stored_as.astype("uint16" if dtype == "bfloat16" else dtype)}
    tensor = CompressedTensor("w", (8, 40), Dense(dtype), parts)  # type: ignore[arg-type]
    stored = store(tensor)
    assert stored.kind == kind
    assert (stored.relative_error == 0) == (dtype != "float32")


def test_what_float16_cannot_hold_stays_float32() -> None:
    values = np.full((4, 32), 1e6, np.float32)
    stored = store(CompressedTensor("w", (4, 32), Dense("float32"), {"values": values}))
    assert (stored.kind, stored.relative_error) == (Type.F32, 0.0)


def test_rows_that_are_no_whole_blocks_are_float16() -> None:
    assert store(random_tensor(16, 80, Affine(4, 32), 1)).kind == Type.F16


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """A family's tiny checkpoint and the one read back from its GGUF file, made once each."""
    made: dict[tuple[str, str], tuple[Checkpoint, Checkpoint]] = {}

    def make(family: str, encoding: Compressed | None = None) -> tuple[Checkpoint, Checkpoint]:
        key = (family, str(encoding))
        if key not in made:
            folder = tmp_path_factory.mktemp("model")
            changes = FAMILIES[family]
            if encoding is None:
                tiny_model(family, folder, **changes)
            else:
                encoded_model(family, folder, encoding, **changes)
            out = tmp_path_factory.mktemp("gguf")
            checkpoint = open_checkpoint(folder)
            manifest = export.write(checkpoint, out, kernels="edge", context_length=32)
            assert export.codes_equal(checkpoint, out, manifest)
            made[key] = checkpoint, open_checkpoint(out / "model.gguf")
        return made[key]

    return make


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    with torch.inference_mode():
        return build_model(checkpoint)(TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_edge_reads_back_what_it_wrote(opened, family: str) -> None:
    checkpoint, back = opened(family)
    assert back.spec == checkpoint.spec
    assert back.names() == checkpoint.names()
    assert (back.eos_token_ids, back.bos_token_id) == (checkpoint.eos_token_ids, checkpoint.bos_token_id)
    for name in checkpoint.names():
        wanted, found = checkpoint.tensor(name), back.tensor(name)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(logits_of(back), logits_of(checkpoint), rtol=0, atol=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3"])
def test_exact_types_read_back_bit_for_bit(opened, family: str) -> None:
    checkpoint, back = opened(family, Affine(4, 32))
    for name, _ in checkpoint.spec.matrices():
        assert torch.equal(back.tensor(name), checkpoint.tensor(name)), name


def test_rotated_rows_lie_side_by_side(opened) -> None:
    checkpoint, back = opened("llama")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(back.source).tensors}
    key = checkpoint.tensor("model.layers.1.self_attn.k_proj.weight").numpy().astype(np.float16)
    # llama.cpp rotates neighbours: rows 0 and 1 of a head are Hugging Face's 0 and half
    assert np.array_equal(tensors["blk.1.attn_k.weight"][:2], key[[0, 8]])
    up = checkpoint.tensor("model.layers.0.mlp.up_proj.weight").numpy().astype(np.float16)
    assert np.array_equal(tensors["blk.0.ffn_up.weight"], up)
    assert len(tensors) == 2 * 9 + 2


def test_the_tokenizer_comes_back_too(opened, tmp_path: Path) -> None:
    checkpoint, back = opened("llama")
    (tmp_path / "original").mkdir()
    (tmp_path / "back").mkdir()
    checkpoint.save_tokenizer(tmp_path / "original")
    back.save_tokenizer(tmp_path / "back")
    original, read = (tokenizer_of(tmp_path / name) for name in ("original", "back"))
    assert read.encode("Hello, world") == original.encode("Hello, world")
    assert (read.eos_token, read.chat_template) == (original.eos_token, original.chat_template)


def test_notes_say_what_became_of_the_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(encoded_model("llama", tmp_path, Affine(4, 64, "zero_point")))
    (tmp_path / "out").mkdir()
    manifest = export.write(checkpoint, tmp_path / "out", kernels="edge", context_length=32)
    assert any("affine4g64z -> Q4_1, relative error at most" in note for note in manifest.notes)
    assert any("give it token ids" in note for note in manifest.notes)  # the tests' tokenizer is of no kind of theirs
    written = json.loads((tmp_path / "out" / "tensors.json").read_text())["tensors"]
    assert set(written) == set(checkpoint.names())
    assert written["model.norm.weight"] == {
        "name": "output_norm.weight",
        "encoding": "float32",
        "type": "F32",
        "relative_error": 0.0,
    }
    assert (manifest.runtime, manifest.kernels, manifest.kv_cache.dtype) == ("gguf", "builtin", "float16")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gemma2", {}, "attention scaled"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("gemma3_text", {"query_pre_attn_scalar": 32, "attention_bias": True}, "bias in qkv, o"),
        ("mistral", {}, "--context 8"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, family: str, changes: dict[str, object], words: str
) -> None:
    model = tiny_model(family, tmp_path / "model", **changes)
    with pytest.raises(EdgeError, match=words) as refused:
        edge.export(model, tmp_path / "out", runtime="gguf", context_length=32)
    assert refused.value.hint and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_is_not_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(architecture.ARCHITECTURES, "qwen3")
    with pytest.raises(EdgeError, match="no GGUF file of a qwen3 model") as refused:
        edge.export(tiny_model("qwen3", tmp_path / "model"), tmp_path / "out", runtime="gguf")
    assert "llama" in refused.value.hint


def test_caches_of_int8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8"):
        edge.export(tiny_model("llama", tmp_path / "model"), tmp_path / "out", runtime="gguf", kv_cache="int8")


@pytest.mark.parametrize("keep", [0, 3, 100, 1500, -5000, -1])
def test_a_truncated_file_is_one_line(opened, tmp_path: Path, keep: int) -> None:
    _, back = opened("llama")
    short = tmp_path / "short.gguf"
    short.write_bytes(Path(back.source).read_bytes()[:keep])
    with pytest.raises(EdgeError, match=r"short\.gguf is damaged") as damaged:
        open_checkpoint(short)
    assert "\n" not in str(damaged.value) and damaged.value.hint


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"model_type": "llama"', b'"model_type": "lxxxa"'), (b'"vocab_size": 160', b'"vocab_size": 16x')],
)
def test_a_damaged_configuration_is_one_line(opened, tmp_path: Path, old: bytes, new: bytes) -> None:
    _, back = opened("llama")
    data = Path(back.source).read_bytes()
    assert old in data
    (tmp_path / "odd.gguf").write_bytes(data.replace(old, new))
    with pytest.raises(EdgeError, match=r"odd\.gguf is damaged") as damaged:
        open_checkpoint(tmp_path / "odd.gguf")
    assert "\n" not in str(damaged.value)


def test_without_llama_cpp_the_export_stands_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    model = tiny_model("llama", tmp_path / "model")
    bundle = edge.export(model, tmp_path / "out", runtime="gguf", context_length=32)
    assert bundle.manifest.gates is None
    (note,) = (note for note in bundle.manifest.notes if "not run beside PyTorch" in note)
    assert "pip install 'edge-deploy[gguf]'" in note
    with pytest.raises(EdgeError, match="llama-cpp-python can't be imported") as missing:
        edge.load(bundle.path)
    assert "pip install" in missing.value.hint


TEXT = "It's 1 of 12 days: the quick brown fox jumps over the lazy dog, and the dog's 345 fleas don't. " * 4
SAMPLES = [
    "The dog's fox, 12345!",
    " two  spaces   three",
    "naïve café 日本 🙂",
    "tabs\tand\n\nlines \n",
    "<s>x</s>",
    "",
]


def byte_level(split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer with this first split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<unk>", "<s>", "</s>"], "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=380, **options)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """SentencePiece's BPE as Hugging Face writes it: bytes for what is unknown, no scores."""
    space = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = space
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    learnt.train_from_iterator(TEXT.split(". "), trainer)
    described = json.loads(learnt.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(described["vocab"], key=described["vocab"].get)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in described["merges"]]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = space
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def exported_with(tokenizer: Tokenizer, folder: Path) -> Path:
    """A bundle of a tiny model with this tokenizer."""
    tiny_model("llama", folder / "model", vocab_size=400)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder / "model")
    return edge.export(folder / "model", folder / "out", runtime="gguf", context_length=64).path


@pytest.mark.parametrize("name", STEPS)
def test_first_splits_are_told_apart(name: str) -> None:
    assert name_of(json.loads(byte_level(pre_tokenizer(name)).to_str())) == name


def test_a_split_that_llama_cpp_lacks_has_no_name() -> None:
    assert name_of(json.loads(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)).to_str())) is None


@pytest.mark.parametrize("name", [*STEPS, "sentencepiece"])
def test_llama_cpp_splits_text_as_the_checkpoint_does(tmp_path: Path, name: str) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install 'edge-deploy[gguf]'")
    tokenizer = sentencepiece() if name == "sentencepiece" else byte_level(pre_tokenizer(name))
    model = edge.load(exported_with(tokenizer, tmp_path))
    assert {text: model.session.tokenize(text) for text in SAMPLES} == {
        text: model.tokenizer.encode(text) for text in SAMPLES
    }
    model.close()
