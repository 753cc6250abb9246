"""PyTorch: runs checkpoints, compressed or not, as the reference that exported bundles are held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from edge.core.bundle import Bundle
from edge.core.errors import UsageError
from edge.core.session import Logits, OperatorTime, Session, SessionOptions
from edge.runtimes._context import advance

if TYPE_CHECKING:
    from edge.models.checkpoint import Checkpoint


def open(bundle: Bundle, options: SessionOptions) -> Session:
    """Always raises: PyTorch runs the checkpoint that a bundle was made from, not the bundle."""
    hint = "open the checkpoint itself, or export with --runtime onnx"
    raise UsageError("runtime.bundle", f"torch can't run {bundle.path}: it runs checkpoints, not bundles", hint)


def open_folder(checkpoint: Checkpoint, context_length: int) -> Any:
    """The reference session of a checkpoint: float32, compressed matrices as the kernels compute them.

    A `Session`, an `EncoderDecoderSession`, or for an encoder or a vision model a `ForwardSession`.
    """
    from edge.models.torch_model import build_model

    if checkpoint.spec.task in ("encoder", "vision"):
        from edge.runtimes._torch_forward import TorchForwardSession

        return TorchForwardSession(build_model(checkpoint))
    if checkpoint.spec.task == "encoder_decoder":
        from edge.runtimes._torch_encoder_decoder import TorchEncoderDecoderSession

        return TorchEncoderDecoderSession(build_model(checkpoint), context_length, checkpoint.spec.vocab_size)
    return TorchSession(build_model(checkpoint), context_length, checkpoint.spec.vocab_size)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


class TorchSession:
    """A transformers model with a growing cache."""

    def __init__(self, model: torch.nn.Module, context_length: int, vocab_size: int) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size
        self._model = model
        self._cache = None
        self._position = 0

    def prefill(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """Logits [1, vocab] of the last token, or [len(tokens), vocab]. Starts anew."""
        self._cache, self._position = None, 0
        return self._forward(tokens, 0 if all_logits else 1)

    def extend(self, tokens: Sequence[int], *, all_logits: bool = False) -> Logits:
        """As `prefill`, after what was seen before."""
        return self._forward(tokens, 0 if all_logits else 1)

    def decode(self, token: int) -> Logits:
        """Logits [1, vocab] after one more token."""
        return self._forward([token], 1)

    def end_profile(self) -> list[OperatorTime]:
        """No rows: PyTorch is a reference for values, not for time."""
        return []

    def close(self) -> None:
        self._model, self._cache = torch.nn.Identity(), None

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int], logits_to_keep: int) -> Logits:
        self._position = advance(self, self._position, tokens)
        ids = torch.tensor([list(tokens)])
        out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=logits_to_keep)
        self._cache = out.past_key_values
        return out.logits[0].float().numpy()
