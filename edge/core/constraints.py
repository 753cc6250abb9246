"""What a model's generation configuration forbids and forces, step by step, as transformers' greedy search obeys it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class Constraints(msgspec.Struct, frozen=True):
    """All that a greedy search of one sequence has to know.

    suppress: tokens that never come; begin_suppress: not as the first one. forced_bos comes first, where the decoder
    starts with one token, and forced_eos last where the length runs out. no_repeat_ngram: n-grams of that size come
    once. min_length counts the tokens that the decoder starts with, min_new_tokens doesn't; before them there is no
    `eos`. bad_words: sequences that never come whole. languages: tokens of which the likeliest follows the first start
    token.
    """

    suppress: list[int] = []
    begin_suppress: list[int] = []
    forced_bos: int | None = None
    forced_eos: list[int] = []
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    min_length: int = 0
    min_new_tokens: int = 0
    eos: list[int] = []
    bad_words: list[list[int]] = []
    languages: list[int] = []

    def apply(self, scores: Scores, tokens: Sequence[int], start: int, longest: int) -> Scores:
        """Scores [vocabulary] of the token after `tokens`, of which the first `start` were given; -inf is forbidden.

        longest: length that `tokens` will have when the search stops.
        """
        scores = scores.copy()
        self._penalize(scores, tokens)
        scores[self._forbidden(tokens, start)] = -np.inf
        if self.forced_bos is not None and len(tokens) == 1:
            scores = _only([self.forced_bos], scores)
        if self.forced_eos and len(tokens) == longest - 1:
            scores = _only(self.forced_eos, scores)
        scores[self.suppress] = -np.inf
        # A forced first token comes before what the model itself begins with.
        begin = start if start > 1 or self.forced_bos is None else start + 1
        if len(tokens) == begin:
            scores[self.begin_suppress] = -np.inf
        return scores

    def _penalize(self, scores: Scores, tokens: Sequence[int]) -> None:
        if self.repetition_penalty != 1.0:
            seen = np.unique(tokens)
            factor = np.float32(self.repetition_penalty)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * factor, scores[seen] / factor)

    def _forbidden(self, tokens: Sequence[int], start: int) -> list[int]:
        found = self._repeated(list(tokens))
        for word in self.bad_words:
            if list(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]:
                found.append(word[-1])
        if len(tokens) < self.min_length or len(tokens) - start < self.min_new_tokens:
            found += self.eos
        return found

    def _repeated(self, tokens: list[int]) -> list[int]:
        """Tokens that would complete an n-gram that was there before."""
        size = self.no_repeat_ngram
        if not size or len(tokens) < size:
            return []
        prefix = tokens[len(tokens) + 1 - size :]
        starts = range(len(tokens) - size + 1)
        return [tokens[i + size - 1] for i in starts if tokens[i : i + size - 1] == prefix]


def _only(allowed: Sequence[int], scores: Scores) -> Scores:
    forced = np.full_like(scores, -np.inf)
    forced[list(allowed)] = 0
    return forced
