import pytest

from edge.core.errors import UsageError
from edge.core.plugins import ARCHITECTURES, METHODS, RUNTIMES, TARGETS


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (METHODS, {"rtn", "gptq"}),
        (TARGETS, {"cpu", "android"}),
        (RUNTIMES, {"onnx"}),
        (ARCHITECTURES, {"llama", "qwen", "gemma", "phi3", "gpt2"}),
    ],
)
def test_the_file_name_is_the_registry(family, expected):
    assert expected <= set(family.names())
    for name in family.names():
        assert family.load(name).__name__.endswith(name.replace("-", "_"))


def test_a_wrong_name_suggests_the_right_one():
    with pytest.raises(UsageError, match="gtpq") as error:
        METHODS.load("gtpq")
    assert "gptq" in error.value.hint
