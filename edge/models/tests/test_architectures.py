"""Every family: the description fits what transformers writes, the reference computes what transformers computes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from edge.core.errors import EdgeError, UsageError
from edge.models.checkpoint import open_checkpoint
from edge.models.describe import describe, known_model_types, tensor_shapes
from edge.models.testing import FAMILIES, tiny_config, tiny_model
from edge.models.torch_model import build_model, rope_tables


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return request.param, tiny_model(request.param, tmp_path_factory.mktemp("models") / request.param)


def transformers_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def test_spec_names_every_parameter_with_its_shape(family):
    _, folder = family
    model = transformers_model(folder)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}  # tied ones once
    assert tensor_shapes(describe(model.config)) == shapes
    assert open_checkpoint(folder).parameters == sum(p.numel() for p in model.parameters())


def test_reference_computes_transformers_logits(family):
    _, folder = family
    ids = torch.randint(3, 150, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = transformers_model(folder)(ids).logits
        logits = build_model(open_checkpoint(folder))(ids).logits
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_matrices_are_out_by_in(family):
    _, folder = family
    checkpoint, model = open_checkpoint(folder), transformers_model(folder)
    for layer in checkpoint.spec.layers:
        for linear in (linear for group in layer.linears() for linear in group):
            weight = model.get_parameter(linear.weight).detach()
            matrix = checkpoint.matrix(linear)
            assert matrix.shape == (linear.out_features, linear.in_features)
            assert (torch.from_numpy(matrix.dequantize()) == (weight.T if linear.transposed else weight)).all()


def test_rope_tables_are_transformers_own(family):
    _, folder = family
    checkpoint, model = open_checkpoint(folder), transformers_model(folder)
    tables = rope_tables(checkpoint.config, 48)
    assert set(tables) == {layer.attention.rope for layer in checkpoint.spec.layers} - {None}
    positions = torch.arange(48)[None]
    for key, (cos, sin) in tables.items():
        rotary = model.model.rotary_emb
        expected = rotary(torch.empty(0), positions, *(() if key == "default" else (key,)))
        assert (torch.cat([cos, cos], -1) == expected[0][0]).all()
        assert (torch.cat([sin, sin], -1) == expected[1][0]).all()


def test_longrope_serves_its_original_length_only():
    config = tiny_config("phi3-longrope")
    assert describe(config).context_length == 64
    with pytest.raises(UsageError, match="64"):
        rope_tables(config, 65)


def test_spec_says_what_sets_families_apart():
    gemma2 = describe(tiny_config("gemma2"))
    first, second = (layer.attention for layer in gemma2.layers)
    assert (first.window, second.window, first.softcap) == (8, 0, 5.0)
    assert first.scale == 24**-0.5 and gemma2.logit_softcap == 30.0 and gemma2.embedding_scale == 8.0
    gemma3 = describe(tiny_config("gemma3_text")).layers[0]
    assert gemma3.attention.rope == "sliding_attention" and gemma3.attention.q_norm.unit_offset
    assert [layer.attention.window for layer in describe(tiny_config("qwen2")).layers] == [0, 8]
    assert describe(tiny_config("mistral")).layers[1].attention.window == 8
    gpt2 = describe(tiny_config("gpt2"))
    assert gpt2.layers[0].attention.qkv[0].transposed and gpt2.layers[0].mlp.activation == "gelu_tanh"


def test_what_the_spec_cannot_say_is_refused():
    with pytest.raises(EdgeError, match="activation 'relu'"):
        describe(tiny_config("llama", hidden_act="relu"))
    with pytest.raises(EdgeError, match="bidirectional"):
        describe(tiny_config("gemma3_text", use_bidirectional_attention=True))
    with pytest.raises(EdgeError, match="cross-attention"):
        describe(tiny_config("gpt2", add_cross_attention=True))


def test_issue_families_are_known():
    assert {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"} <= set(known_model_types())
