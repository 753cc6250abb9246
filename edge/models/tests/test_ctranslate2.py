"""A Whisper that CTranslate2 wrote opens with every weight where transformers has it; damage is one line."""

import json
import struct

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from edge.core.errors import EdgeError
from edge.models.checkpoint import open_checkpoint
from edge.models.ctranslate2_file import LINEARS, NORMS, WEIGHTS
from edge.models.generation import constraints, start_tokens
from edge.models.testing import tiny_any_model
from edge.models.torch_model import build_model

NUMBERS = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}
VOCABULARY = [f"w{index}" for index in range(150)] + ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
ENDS = {"embed_tokens.weight": "embeddings/weight", "embed_positions.weight": "position_encodings/encodings"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tiny_any_model("WhisperForConditionalGeneration", tmp_path_factory.mktemp("whisper"))
    return WhisperForConditionalGeneration.from_pretrained(folder).eval()


def tensors_of(model):
    """The weights as CTranslate2 names and joins them: written down here once more, from its own converter's rules."""
    state = {name.removeprefix("model."): t.numpy().astype(np.float16) for name, t in model.state_dict().items()}
    made = {"encoder/num_heads": np.int16(4), "decoder/num_heads": np.int16(4), "decoder/scale_embeddings": np.int8(0)}
    for side in ("encoder", "decoder"):
        for ours, theirs in ENDS.items():
            if f"{side}.{ours}" in state:
                made[f"{side}/{theirs}"] = state[f"{side}.{ours}"]
        for leaf, theirs in (("weight", "gamma"), ("bias", "beta")):
            made[f"{side}/layer_norm/{theirs}"] = state[f"{side}.layer_norm.{leaf}"]
        for index in range(2):
            layer = f"{side}.layers.{index}"
            for theirs, ours in LINEARS.items():
                if f"{layer}.{ours[0]}.weight" not in state:
                    continue
                for leaf in ("weight", "bias"):
                    parts = [state.get(f"{layer}.{o}.{leaf}") for o in ours]
                    parts = [np.zeros(64, np.float16) if part is None else part for part in parts]
                    made[f"{side}/layer_{index}/{theirs}/{leaf}"] = np.concatenate(parts)
            for theirs, ours in NORMS.items():
                for name, leaf in WEIGHTS.items():
                    if f"{layer}.{ours}.{leaf}" in state:
                        made[f"{side}/layer_{index}/{theirs}/{name}"] = state[f"{layer}.{ours}.{leaf}"]
    for conv in ("conv1", "conv2"):
        made |= {f"encoder/{conv}/{leaf}": state[f"encoder.{conv}.{leaf}"] for leaf in ("weight", "bias")}
    return made


def text(name):
    data = name.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def packed(tensors, *, version=6, name="WhisperSpec"):
    out = struct.pack("<I", version) + text(name) + struct.pack("<II", 3, len(tensors))
    for key, array in ((key, np.asarray(tensors[key])) for key in sorted(tensors)):
        out += text(key) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", NUMBERS[array.dtype], array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


def written(folder, data, words=VOCABULARY):
    (folder / "model.bin").write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [5, 6], "suppress_ids_begin": [7]}))
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words))
    return folder


def test_every_weight_finds_its_place_and_the_model_says_the_same(original, tmp_path):
    checkpoint = open_checkpoint(written(tmp_path, packed(tensors_of(original))))
    model = build_model(checkpoint)
    half = original.half().float()
    expected = half.state_dict()
    assert set(model.state_dict()) == set(expected)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    features = torch.randn(1, 8, 48)
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        logits = [m(features, decoder_input_ids=ids).logits for m in (model, half)]
    torch.testing.assert_close(*logits)


def test_the_search_starts_and_keeps_off_as_the_folder_says(original, tmp_path):
    checkpoint = open_checkpoint(written(tmp_path, packed(tensors_of(original))))
    assert start_tokens(checkpoint) == [151, 152]
    rules = constraints(checkpoint)
    assert (rules.suppress, rules.begin_suppress, rules.eos) == ([5, 6], [7], [150])
    checkpoint.save_tokenizer(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["no_timestamps_token_id"] == 152


@pytest.mark.parametrize("keep", [25, 60, 5000, -1])
def test_a_file_that_is_cut_short(keep, original, tmp_path):
    whole = packed(tensors_of(original))
    with pytest.raises(EdgeError) as caught:
        open_checkpoint(written(tmp_path, whole[:keep]))
    assert caught.value.code == "checkpoint.corrupt"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda t: packed(t, version=7), "checkpoint.version"),
        (lambda t: packed(t, name="TransformerSpec"), "checkpoint.architecture"),
        (lambda t: packed({**t, "decoder/extra/weight": np.zeros((2, 2), np.float32)}), "checkpoint.foreign_tensor"),
        (lambda t: packed({**t, "encoder/conv1/weight": np.zeros((64, 8, 3), np.int8)}), "checkpoint.quantized"),
        (lambda t: packed({k: v for k, v in t.items() if "layer_1/ffn" not in k}), "checkpoint.missing_tensor"),
        (lambda t: packed({k: v for k, v in t.items() if k != "encoder/num_heads"}), "checkpoint.corrupt"),
        (lambda t: packed(t) + b"\0", "checkpoint.corrupt"),
    ],
)
def test_what_edge_does_not_read_is_named(change, code, original, tmp_path):
    with pytest.raises(EdgeError) as caught:
        open_checkpoint(written(tmp_path, change(tensors_of(original))))
    assert caught.value.code == code


def test_a_vocabulary_without_whispers_tokens(original, tmp_path):
    with pytest.raises(EdgeError, match="startoftranscript"):
        open_checkpoint(written(tmp_path, packed(tensors_of(original)), VOCABULARY[:151]))


def test_a_pickle_of_the_same_name_is_not_taken_for_one(original, tmp_path):
    written(tmp_path, b"\x80\x04\x95 a pickle" + bytes(100))
    original.config.save_pretrained(tmp_path)
    with pytest.raises(EdgeError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "checkpoint.pickle"
