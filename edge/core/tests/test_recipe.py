import pytest

from edge.core.errors import UsageError
from edge.core.recipe import load_recipe, parse_recipe, presets

RECIPE = """
[[steps]]
method = "gptq"
options = {bits = 4, group_size = 64}
rules = [
  {module = "embedding", exclude = true},
  {module = "linear", options = {bits = 3}},
  {name = "*.down_proj.weight", options = {bits = 8}},
  {name = "model.layers.0.*", exclude = true},
]
[[steps]]
method = "rtn"
options = {bits = 8}
rules = [{name = "model.layers.0.mlp.*", exclude = true}]
"""
TENSORS = [
    ("model.embed_tokens.weight", "embedding"),
    ("model.layers.0.self_attn.q_proj.weight", "linear"),
    ("model.layers.0.mlp.down_proj.weight", "linear"),
    ("model.layers.0.mlp.up_proj.weight", "linear"),
    ("model.layers.1.self_attn.q_proj.weight", "linear"),
    ("lm_head.weight", "head"),
]


def test_steps_take_what_is_left_and_names_beat_kinds():
    answers = parse_recipe(RECIPE, "r").resolve(TENSORS)
    found = {name: (answer.method, answer.options["bits"]) for name, answer in answers.items()}
    assert found == {
        "model.embed_tokens.weight": ("rtn", 8),
        "model.layers.0.self_attn.q_proj.weight": ("rtn", 8),
        "model.layers.0.mlp.down_proj.weight": ("gptq", 8),  # the first name rule that matches decides
        "model.layers.1.self_attn.q_proj.weight": ("gptq", 3),
        "lm_head.weight": ("gptq", 4),
    }


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("[[step]]\nmethod='rtn'", "step", "steps"),
        ("[[steps]]\nmetod='rtn'", "steps.metod", "method"),
        ("[[steps]]\nmethod='rtn'\nrules=[{nam='x'}]", "steps.rules.nam", "name"),
        ("calibration={sample=3}\n[[steps]]\nmethod='rtn'", "calibration.sample", "samples"),
    ],
)
def test_unknown_keys_name_the_nearest_right_one(text, key, suggestion):
    with pytest.raises(UsageError) as error:
        parse_recipe(text, "mine.toml")
    assert f"'{key}'" in error.value.message
    assert f"'{suggestion}'" in error.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "not toml at all [",
        "steps = []",
        "name = 'x'",
        "[[steps]]\nmethod = 3",
        "schema = 2\n[[steps]]\nmethod='rtn'",
        "[[steps]]\nmethod='rtn'\nrules=[{exclude=true}]",
        "activations='a5'\n[[steps]]\nmethod='rtn'",
    ],
)
def test_malformed_recipes_are_usage_errors_with_a_hint(text):
    with pytest.raises(UsageError) as error:
        parse_recipe(text, "mine.toml")
    assert error.value.hint
    assert "\n" not in error.value.message


def test_an_unknown_recipe_suggests_a_preset():
    with pytest.raises(UsageError, match="int5") as error:
        load_recipe("int5")
    assert "int" in error.value.hint


@pytest.mark.parametrize("name", ["int8", "int4", "int4-gptq", "int3", "int2"])
def test_presets_are_valid_and_named_by_their_files(name):
    assert name in presets()
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
