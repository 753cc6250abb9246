import numpy as np
import pytest

from edge.core.errors import UsageError
from edge.core.session import Sampler, Sampling, generate


class Counting:
    """After token t comes t + 1."""

    context_length = 8
    vocab_size = 16

    def _logits(self, token):
        return np.eye(self.vocab_size, dtype=np.float32)[[(token + 1) % self.vocab_size]] * 10

    def prefill(self, tokens, *, all_logits=False):
        return self._logits(tokens[-1])

    def decode(self, token):
        return self._logits(token)


def test_generation_stops_at_the_limit_the_stop_token_and_the_end_of_the_context():
    assert list(generate(Counting(), [1, 2], max_tokens=3)) == [3, 4, 5]
    assert list(generate(Counting(), [1, 2], max_tokens=9, stop=[5])) == [3, 4]
    assert list(generate(Counting(), [1, 2], max_tokens=99)) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("prompt", [[], [1] * 8, [16], [-1]])
def test_impossible_prompts_are_usage_errors(prompt):
    with pytest.raises(UsageError) as error:
        next(generate(Counting(), prompt, max_tokens=1))
    assert error.value.hint


def test_sampling_is_deterministic_by_seed_and_keeps_to_its_filters():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    drawn = [Sampler(Sampling(temperature=1.0, seed=s))(logits) for s in range(2000)]
    assert drawn == [Sampler(Sampling(temperature=1.0, seed=s))(logits) for s in range(2000)]
    assert np.allclose(np.bincount(drawn, minlength=4) / 2000, [0.5, 0.3, 0.15, 0.05], atol=0.04)
    assert {Sampler(Sampling(temperature=1.0, top_k=2, seed=s))(logits) for s in range(200)} == {0, 1}
    assert {Sampler(Sampling(temperature=1.0, top_p=0.79, seed=s))(logits) for s in range(200)} == {0, 1}
    assert {Sampler(Sampling(temperature=1.0, top_p=0.01, seed=s))(logits) for s in range(200)} == {0}
    assert Sampler(Sampling())(logits) == 0


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_sampling_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        Sampling(**options)
