"""Constraints do to scores what transformers' own processors of them do."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from edge.core.constraints import Constraints

WORDS = 12
CASES = {
    "suppress": (Constraints(suppress=[3, 5]), [hf.SuppressTokensLogitsProcessor([3, 5])]),
    "begin": (Constraints(begin_suppress=[1, 2]), [hf.SuppressTokensAtBeginLogitsProcessor([1, 2], 2)]),
    "n-grams": (Constraints(no_repeat_ngram=2), [hf.NoRepeatNGramLogitsProcessor(2)]),
    "penalty": (Constraints(repetition_penalty=1.7), [hf.RepetitionPenaltyLogitsProcessor(1.7)]),
    "bad words": (
        Constraints(bad_words=[[4], [7, 8], [1, 7, 2]]),
        [hf.NoBadWordsLogitsProcessor([[4], [7, 8], [1, 7, 2]], eos_token_id=11)],
    ),
    "length": (
        Constraints(min_length=5, min_new_tokens=2, eos=[11]),
        [hf.MinLengthLogitsProcessor(5, 11), hf.MinNewTokensLengthLogitsProcessor(2, 2, 11)],
    ),
    "ends": (
        Constraints(forced_bos=6, forced_eos=[11]),
        [hf.ForcedBOSTokenLogitsProcessor(6), hf.ForcedEOSTokenLogitsProcessor(9, 11)],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [[0], [0, 1], [0, 1, 7], [0, 7, 1, 7], [3, 3, 3, 3, 3], [0, 1, 2, 3, 1, 2, 1, 2]])
def test_scores_are_those_of_transformers(name, tokens):
    constraints, processors = CASES[name]
    scores = np.random.default_rng(len(tokens)).standard_normal(WORDS).astype(np.float32)
    expected = torch.from_numpy(scores[None].copy())
    for processor in processors:
        expected = processor(torch.tensor([tokens]), expected)
    np.testing.assert_array_equal(constraints.apply(scores, tokens, 2, 9), expected[0].numpy())


def test_a_forced_first_token_comes_before_those_that_the_model_may_not_begin_with():
    constraints = Constraints(forced_bos=6, begin_suppress=[2, 6])
    scores = np.zeros(WORDS, np.float32)
    assert constraints.apply(scores, [0], 1, 9).argmax() == 6
    assert np.isinf(constraints.apply(scores, [0, 6], 1, 9)[[2, 6]]).all()
