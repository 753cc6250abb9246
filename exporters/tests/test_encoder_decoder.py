"""Encoder-decoders through both runtimes answer as transformers does, and say so where they can't."""

import shutil

import numpy as np
import onnx_ir as ir
import pytest
import torch
import transformers

import edge
from edge.answer import EncoderDecoderModel
from edge.core.bundle import Bundle
from edge.core.errors import EdgeError, UsageError
from edge.core.plugins import RUNTIMES
from edge.core.session import SessionOptions
from edge.exporters.onnx import encoder_decoder
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_any_model

ONE_LAYER = {"encoder_layers": 1, "decoder_layers": 1}
MODELS = {
    "T5ForConditionalGeneration": {"feed_forward_proj": "gated-gelu"},
    "BartForConditionalGeneration": ONE_LAYER,
    "MarianMTModel": ONE_LAYER,
    "WhisperForConditionalGeneration": {**ONE_LAYER, "decoder_layers": 2},
}
GENERATION = {
    "BartForConditionalGeneration": {"forced_bos_token_id": 5, "no_repeat_ngram_size": 3, "min_length": 10},
    "WhisperForConditionalGeneration": {
        "suppress_tokens": [5, 6, 7],
        "begin_suppress_tokens": [9, 2],
        "no_timestamps_token_id": 150,
        "is_multilingual": False,
        "return_timestamps": False,
    },
}
LAST = 60


def tiny(class_name, folder):
    """A model with a generation configuration that has something to say."""
    tiny_any_model(class_name, folder, **MODELS[class_name])
    model = getattr(transformers, class_name).from_pretrained(folder)
    model.generation_config.update(**GENERATION.get(class_name, {}), max_length=None)
    model.generation_config.save_pretrained(folder)
    return folder


def sources_of(manifest):
    """Some to read, padded texts among them."""
    random = np.random.default_rng(0)
    if "input_features" in manifest.inputs:
        shape = manifest.inputs["input_features"].shape
        return [{"input_features": random.uniform(-1, 1, shape).astype(np.float32)} for _ in range(2)]
    masks = [np.ones((1, 5), np.int64), np.array([[1] * 6 + [0] * 3]), np.ones((1, 30), np.int64)]
    return [{"input_ids": random.integers(3, 160, mask.shape), "attention_mask": mask} for mask in masks]


def opened(bundle):
    session = RUNTIMES.load(bundle.manifest.runtime).open(bundle, SessionOptions(threads=1))
    return EncoderDecoderModel(bundle, session, None)


def check_answers(class_name, folder, bundle):
    """Greedy answers and teacher-forced logits against transformers' own."""
    original = getattr(transformers, class_name).from_pretrained(folder).eval()
    model, manifest = opened(bundle), bundle.manifest
    for source in sources_of(manifest):
        tensors = {name: torch.from_numpy(array) for name, array in source.items()}
        length = {"max_new_tokens": LAST}
        with torch.inference_mode():
            expected = original.generate(**tensors, do_sample=False, num_beams=1, **length)[0].tolist()
        stops = set(manifest.eos_token_ids)
        answer = list(model.answer(source, max_tokens=LAST))
        assert answer == [token for token in expected if token not in stops][-len(answer) :]
        assert len(answer) > 20
        tokens = [*manifest.start_token_ids, *answer][:40]
        with torch.inference_mode():
            logits = original(**tensors, decoder_input_ids=torch.tensor([tokens])).logits[0].numpy()
        model.session.encode(source)
        np.testing.assert_allclose(model.session.prefill(tokens, all_logits=True), logits, atol=1e-3)
        turns = [model.session.prefill(tokens[:1]), model.session.extend(tokens[1:], all_logits=True)]
        np.testing.assert_allclose(np.concatenate(turns), logits, atol=1e-3)
        steps = [model.session.prefill(tokens[:1]), *map(model.session.decode, tokens[1:])]
        np.testing.assert_allclose(np.concatenate(steps), logits, atol=1e-3)
    model.close()


@pytest.mark.parametrize("class_name", MODELS)
def test_onnx_answers_as_transformers_does(class_name, tmp_path):
    source = tiny(class_name, tmp_path / "source")
    bundle = edge.export(source, tmp_path / "bundle")
    assert bundle.manifest.gates.max_abs_logit_error < 1e-4
    check_answers(class_name, source, bundle)


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "WhisperForConditionalGeneration"])
def test_executorch_answers_as_transformers_does(class_name, tmp_path):
    pytest.importorskip("executorch", reason="executorch is not installed")
    source = tiny(class_name, tmp_path / "source")
    check_answers(class_name, source, edge.export(source, tmp_path / "bundle", runtime="executorch"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    return edge.compress(tiny("T5ForConditionalGeneration", folder / "source"), "int4", folder / "small")


@pytest.fixture(scope="module")
def bundle(small):
    return edge.export(small, small.parent / "bundle")


def test_compressed_matrices_are_in_both_graphs_code_by_code(small, bundle, tmp_path):
    manifest = bundle.manifest
    assert manifest.gates.codes_equal
    assert manifest.gates.kl_divergence_mean <= manifest.gates.kl_divergence_limit
    copy = tmp_path / "copy"
    for name in ("encoder.onnx", "model.onnx"):
        shutil.copytree(bundle.path, copy, dirs_exist_ok=True)
        node = next(node for node in ir.load(copy / name).graph if node.op_type == "Linear")
        where = node.inputs[1].const_value
        with (copy / "model.onnx.data").open("r+b") as data:
            data.seek(where.offset + where.length - 1)
            byte = data.read(1)
            data.seek(-1, 1)
            data.write(bytes([byte[0] ^ 1]))
        assert not encoder_decoder.codes_equal(open_checkpoint(small), copy, manifest)
        shutil.rmtree(copy)


def test_the_embedding_is_stored_once_for_encoder_decoder_and_head(bundle):
    places = set()
    for name in ("encoder.onnx", "model.onnx"):
        for node in ir.load(bundle.path / name).graph:
            if node.op_type == "Embedding" or node.name == "lm_head/Linear":
                places.add(node.inputs[1].const_value.offset)
    assert len(places) == 1


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"input_ids": np.ones((1, 3), np.int64)}, "source.inputs"),
        ({"input_ids": np.ones((1, 3), np.int32), "attention_mask": np.ones((1, 3), np.int64)}, "source.shape"),
        ({"input_ids": np.ones(3, np.int64), "attention_mask": np.ones(3, np.int64)}, "source.shape"),
        ({"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 4), np.int64)}, "source.shape"),
        ({"input_ids": np.ones((1, 0), np.int64), "attention_mask": np.ones((1, 0), np.int64)}, "source.shape"),
        ({"input_ids": np.full((1, 3), 160), "attention_mask": np.ones((1, 3), np.int64)}, "prompt.token"),
    ],
)
def test_a_source_that_does_not_fit_is_named(inputs, code, bundle):
    session = opened(bundle).session
    with pytest.raises(UsageError) as caught:
        session.encode(inputs)
    assert caught.value.code == code
    with pytest.raises(UsageError, match="hasn't read a source"):
        session.prefill([0])


def test_what_cannot_be_exported_is_refused(small, tmp_path):
    with pytest.raises(EdgeError, match="own operators"):
        edge.export(small, tmp_path / "a", kernels="builtin")
    with pytest.raises(UsageError, match="float32"):
        edge.export(small, tmp_path / "b", kv_cache="int8")


def test_a_damaged_encoder_is_one_line(bundle, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    (copy / "encoder.onnx").write_bytes((copy / "encoder.onnx").read_bytes()[:-50])
    with pytest.raises(EdgeError, match="can't be opened"):
        opened(Bundle(copy, bundle.manifest))
