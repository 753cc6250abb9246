import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from edge.core.errors import EdgeError, GateFailed, UsageError
from edge.core.weight import Affine, Dense
from edge.evaluate.divergence import Divergence, log_softmax, negative_log_likelihood
from edge.evaluate.gates import FLOAT_LIMIT, kl_limit, parity, rounding_noise
from edge.evaluate.perplexity import bounded_exp, score
from edge.evaluate.run import Subject, evaluate
from edge.evaluate.windows import Window, cut, extent

TEXT = "It was a dark night; the wind blew. Nobody, not even the café's cat, was out.\n\nThen — a knock! " * 12
ABOUT = Subject("model", "torch", "tiny", "float32", 1000, 32.0)


class TorchSession:
    """A transformers model behind the Session protocol: the independent path to compare with."""

    def __init__(self, model, context_length=64):
        self.model, self.context_length, self.vocab_size = model, context_length, model.config.vocab_size
        self.seen = []

    @torch.no_grad()
    def _logits(self):
        return self.model(torch.tensor([self.seen])).logits[0].numpy()

    def prefill(self, tokens, *, all_logits=False):
        self.seen = list(tokens)
        return self._logits() if all_logits else self._logits()[-1:]

    def decode(self, token):
        self.seen.append(token)
        return self._logits()[-1:]


class Shifted:
    """A session whose logits are those of another plus noise: a candidate that is off by a known amount."""

    def __init__(self, session, noise):
        self.session, self.noise = session, noise
        self.context_length, self.vocab_size = session.context_length, session.vocab_size
        self.random = np.random.default_rng(3)

    def _shift(self, logits):
        return logits + self.noise * self.random.standard_normal(logits.shape).astype(np.float32)

    def prefill(self, tokens, *, all_logits=False):
        return self._shift(self.session.prefill(tokens, all_logits=all_logits))

    def decode(self, token):
        return self._shift(self.session.decode(token))


def tiny(seed=0, vocab_size=258, scale=0.02):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=scale,
    )
    return LlamaForCausalLM(config).eval()


def byte_tokenizer(bos=False):
    """One token per byte, as byte-level BPE without merges, in GPT-2's alphabet: multi-byte characters are split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def word_tokenizer():
    """Whole words with the blank before them, trimmed off the offsets as GPT-2's tokenizer does."""
    words = sorted(
        {("Ġ" if i else "") + w for i, w in enumerate(["a", "cat", "saw", "a", "red", "cat", "and", "a", "dog"])}
        | {"Ġa"}
    )
    vocabulary = {w: i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_perplexity_is_cross_entropy_of_the_windows():
    model, tokenizer = tiny(), byte_tokenizer()
    result = evaluate(TorchSession(model), ABOUT, TEXT, tokenizer)
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    total, count = 0.0, 0
    for start in range(0, len(ids), 64):
        window = ids[start : start + 64]
        with torch.no_grad():
            out = model(window[None], labels=window[None])
        total += float(out.loss) * (len(window) - 1)
        count += len(window) - 1
    assert result.context_length == 64 and result.tokens == count
    assert result.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    # one token per byte: bits per byte and per token are the same number
    assert result.bits_per_byte == pytest.approx(math.log2(result.perplexity), rel=1e-9)
    assert result.kl_divergence is None and result.perplexity_original is None


def test_divergence_from_the_original_is_torchs_kl():
    subject, original, tokenizer = tiny(1, scale=0.3), tiny(2, scale=0.3), byte_tokenizer()
    result = evaluate(TorchSession(subject), ABOUT, TEXT, tokenizer, original=TorchSession(original), original_name="o")
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    kl, agree, count = 0.0, 0, 0
    with torch.no_grad():
        for start in range(0, len(ids), 64):
            window = ids[None, start : start + 64]
            q, p = (torch.log_softmax(m(window).logits[0, :-1].double(), -1) for m in (subject, original))
            kl += float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
            agree += int((p.argmax(-1) == q.argmax(-1)).sum())
            count += len(p)
    assert result.original == "o"
    assert result.kl_divergence == pytest.approx(kl / count, rel=1e-6)
    assert result.top1_agreement == pytest.approx(agree / count)
    own = evaluate(TorchSession(original), ABOUT, TEXT, tokenizer)
    assert result.perplexity_original == pytest.approx(own.perplexity)


def test_a_model_against_itself_loses_nothing():
    session = TorchSession(tiny(scale=0.3))
    result = evaluate(session, ABOUT, TEXT, byte_tokenizer(), original=session)
    assert result.kl_divergence == 0 and result.top1_agreement == 1
    assert result.perplexity == result.perplexity_original


def test_words_and_bytes_are_those_of_the_predicted_stretch():
    text = "a cat saw a red cat and a dog"
    windows = cut(text, word_tokenizer(), 4)
    assert [w.characters for w in windows] == [" cat saw a", " cat and a"]  # "a" and "red" are context, "dog" is alone
    counted = extent(windows)
    assert (counted.tokens, counted.words, counted.utf8_bytes) == (6, 6, 20)


def test_every_byte_counts_once_where_bos_starts_each_window():
    windows = cut(TEXT, byte_tokenizer(bos=True), 50)
    assert all(w.tokens[0] == 256 and len(w.tokens) <= 50 for w in windows)
    assert extent(windows).tokens == len(TEXT.encode())
    # a character of several bytes that the edge of a window cuts counts where it ends
    assert abs(extent(windows).utf8_bytes - len(TEXT.encode())) <= 3


def test_word_perplexity():
    tokenizer = word_tokenizer()
    result = evaluate(
        TorchSession(tiny(vocab_size=len(tokenizer), scale=0.3)), ABOUT, "a cat saw a red cat and a dog", tokenizer
    )
    assert result.word_perplexity == pytest.approx(result.perplexity)  # a token is a word here


@pytest.mark.parametrize(
    ("text", "code"), [("", "evaluate.no_text"), (" \n ", "evaluate.no_text"), ("a", "evaluate.short_text")]
)
def test_text_that_cant_be_scored(text, code):
    with pytest.raises(UsageError) as error:
        evaluate(TorchSession(tiny()), ABOUT, text, byte_tokenizer())
    assert error.value.code == code and error.value.hint


def test_requests_that_make_no_sense():
    session, tokenizer = TorchSession(tiny()), byte_tokenizer()
    for code, subject, options in (
        ("evaluate.vocabulary", session, {"original": TorchSession(tiny(vocab_size=300))}),
        ("evaluate.tokenizer", TorchSession(tiny(vocab_size=20)), {}),
        ("evaluate.context", session, {"context_length": 65}),
        ("evaluate.context", session, {"context_length": 1}),
    ):
        with pytest.raises(UsageError) as error:
            evaluate(subject, ABOUT, TEXT, tokenizer, **options)
        assert error.value.code == code


def test_logits_that_are_not_numbers():
    broken = Shifted(TorchSession(tiny()), float("nan"))
    with pytest.raises(EdgeError) as error:
        score(broken, [Window([1, 2, 3], "abc")])
    assert error.value.code == "evaluate.not_finite"


def test_log_softmax_holds_for_huge_and_tiny_logits():
    logits = np.array([[1e4, 0, -1e4], [-1e30, 0, 0], [3e38, 3e38, 0]], np.float32)
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-12)
    assert negative_log_likelihood(logits, np.array([0, 1, 0])) == pytest.approx(2 * math.log(2))
    assert math.isfinite(bounded_exp(1e6))


def test_blocks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    p, q = random.standard_normal((2, 37, 11)).astype(np.float32)
    whole, blocks = Divergence(), Divergence()
    whole.add(p, q)
    monkeypatch.setattr("edge.evaluate.divergence.BLOCK_BYTES", 8 * 11 * 5)
    blocks.add(p, q)
    assert blocks.kl == pytest.approx(whole.kl, rel=1e-12)
    assert (blocks.rows, blocks.agreeing, blocks.max_abs_error) == (whole.rows, whole.agreeing, whole.max_abs_error)


@pytest.mark.parametrize("scale", [0.02, 0.5])  # nearly uniform predictions, and confident ones
def test_parity_tells_right_from_wrong_at_any_confidence(scale):
    reference, tokens = TorchSession(tiny(scale=scale)), list(range(5, 45))
    limit = kl_limit([Dense("float32")], "edge")
    right = parity(reference, Shifted(reference_of(scale), 1e-6), tokens, limit)
    right.check("tiny")
    assert right.top1_agreement > 0.9 and right.max_abs_logit_error < 1e-4
    assert right.gates(True, ["slow"]).slow_nodes == ["slow"]
    other = parity(reference, TorchSession(tiny(seed=9, scale=scale)), tokens, kl_limit([Affine(4, 64)], "edge"))
    with pytest.raises(GateFailed, match="KL divergence") as error:
        other.check("tiny")
    assert error.value.exit_code == 4 and error.value.hint


def reference_of(scale):
    return TorchSession(tiny(scale=scale))


def test_parity_sees_a_wrong_decode_step_alone():
    class ForgetsItsCache(TorchSession):
        def decode(self, token):
            self.seen = []
            return super().decode(token)

    model = tiny(scale=0.3)
    result = parity(TorchSession(model), ForgetsItsCache(model), [3, 4, 5, 6, 7, 8], FLOAT_LIMIT)
    with pytest.raises(GateFailed):
        result.check("tiny")


def test_the_limit_allows_for_the_references_own_noise_only_with_int8_activations():
    tokens = list(range(20))
    noisy = Shifted(TorchSession(tiny(scale=0.3)), 0.1)
    assert rounding_noise(noisy, tokens) > 1e-3
    limits = [parity(noisy, noisy, tokens, limit).kl_divergence_limit for limit in (FLOAT_LIMIT, 0.03)]
    assert limits[0] <= FLOAT_LIMIT and limits[1] > 0.03


def test_the_limit_follows_the_encoding():
    dense, small = Dense("float32"), Affine(4, 64)
    float_limit, ours, builtin = (
        kl_limit([dense], "builtin"),
        kl_limit([dense, small], "edge"),
        kl_limit([small], "builtin"),
    )
    assert float_limit < ours < builtin


def test_parity_works_up_to_the_last_place_of_the_context():
    one, two = (TorchSession(tiny(), context_length=6) for _ in range(2))
    assert parity(one, two, [1, 2, 3, 4, 5, 6], FLOAT_LIMIT).kl_divergence_mean == 0
    assert parity(one, two, [1], FLOAT_LIMIT).top1_agreement == 1
    for tokens in ([], [1] * 7):
        with pytest.raises(UsageError):
            parity(one, two, tokens, FLOAT_LIMIT)
