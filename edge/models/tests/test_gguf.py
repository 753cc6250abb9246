"""GGUF files against transformers' own loader, tensor by tensor."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from edge.core.errors import EdgeError
from edge.models.checkpoint import open_checkpoint
from edge.models.describe import describe, tensor_shapes
from edge.models.testing import tiny_config
from edge.models.tokenizer import tokenizer_of
from edge.models.torch_model import build_model, empty_model

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3"}
VOCABULARY = 160


def write_gguf(path, family, types=(Type.F32,), extra=(), pre="default"):
    """A tiny random model; matrices take the types in turn. `extra` are (name, array) of further tensors."""
    tied = family in ("llama", "gemma2", "gemma3_text")
    config = tiny_config(family, tie_word_embeddings=tied, rms_norm_eps=1e-5)
    architecture = ARCHITECTURES[family]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_freq_base(10000.0)
    head_dim = getattr(config, "head_dim", None) or 16
    writer.add_key_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    add_tokenizer(writer, pre)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    random = np.random.default_rng(0)
    matrices = 0
    for name, shape in tensor_shapes(describe(config)).items():
        module, _, suffix = name.rpartition(".")
        values = random.standard_normal(shape).astype(np.float32)
        kind = types[matrices % len(types)] if len(shape) == 2 else Type.F32
        matrices += len(shape) == 2
        raw = gguf.quantize(values, kind) if kind not in (Type.F32,) else values
        writer.add_tensor(f"{names.get_name(module)}.{suffix}", raw, raw_dtype=None if kind == Type.F32 else kind)
    for name, array in extra:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, pre="default"):
    tokens = ["<unk>", "<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "ab", "12"]
    tokens += [f"<extra_{index}>" for index in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}")


@pytest.mark.parametrize(
    ("family", "types"),
    [
        ("llama", (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.F16)),
        ("qwen2", (Type.F32,)),
        ("qwen3", (Type.Q8_0,)),
        ("gemma2", (Type.F32,)),
        ("gemma3_text", (Type.F32,)),
    ],
)
def test_every_tensor_is_what_transformers_reads(tmp_path, family, types):
    path = write_gguf(tmp_path / "model.gguf", family, types)
    checkpoint = open_checkpoint(path)
    model = empty_model(checkpoint.config, checkpoint.spec)
    expected = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name
    assert checkpoint.config.model_type == family
    assert torch.isfinite(build_model(checkpoint)(torch.tensor([[3, 4, 5]])).logits).all()


def test_stored_bytes_are_those_of_the_file(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama", (Type.Q4_1,)))
    matrices = sum(
        rows * columns for rows, columns in (s for s in map(checkpoint.shape, checkpoint.names()) if len(s) == 2)
    )
    norms = sum(s[0] for s in map(checkpoint.shape, checkpoint.names()) if len(s) == 1)
    assert checkpoint.stored_bytes == matrices * 20 // 32 + 4 * norms


def test_tokenizer_chat_template_and_end_tokens_are_kept(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama"))
    checkpoint.save_tokenizer(tmp_path)
    tokenizer = tokenizer_of(tmp_path)
    assert tokenizer("ab a")["input_ids"] == [tokenizer.convert_tokens_to_ids(t) for t in ("ab", "Ġ", "a")]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab</s>"
    assert (checkpoint.bos_token_id, checkpoint.eos_token_ids) == (1, [2, 5])
    assert (tmp_path / "generation_config.json").is_file()


@pytest.mark.parametrize("keep", [0, 100, 3000, -2000])
def test_truncated_gguf(tmp_path, keep):
    path = write_gguf(tmp_path / "model.gguf", "llama")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EdgeError) as caught:
        open_checkpoint(path)
    assert caught.value.code == "checkpoint.corrupt" and "\n" not in str(caught.value)


@pytest.mark.parametrize(("pre", "pieces"), [("default", ["12", "1"]), ("smollm", ["1", "2", "1"])])
def test_text_is_split_as_the_file_asks(tmp_path, pre, pieces):
    (tmp_path / "out").mkdir()
    open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama", pre=pre)).save_tokenizer(tmp_path / "out")
    tokenizer = tokenizer_of(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("121", add_special_tokens=False)) == pieces


def test_tensor_without_a_place_is_refused(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", extra=[("blk.0.ffn_gate_inp.weight", np.ones((2, 64), "f4"))])
    with pytest.raises(EdgeError, match="ffn_gate_inp"):
        open_checkpoint(path)


def test_unknown_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("x", np.ones(4, "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EdgeError, match="'mamba' is not supported"):
        open_checkpoint(tmp_path / "model.gguf")
