"""ExecuTorch's own export for Llamas (`extension.llm`): a static cache, custom_sdpa, 8da4w, an embedding of 8 bits.

The logits of the last token alone come out, as in its own runner. Lowering it takes ten minutes, once.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.core.errors import EdgeError
from edge.profiles.peers.engines import Conversation, Model, made_once, not_installed
from edge.profiles.peers.engines._program import Program

FORMATS = ("8da4w g32",)
CONTEXT = 1024
OPTIONS = "-kv --use_sdpa_with_kv_cache -X --xnnpack-extended-ops -qmode 8da4w -G 32 -E 8,0 -d fp32"
OUTSIDE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
INSIDE = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def prepare(model: Model, format: str) -> Path:
    """The program of a Llama."""
    return made_once(model.work / "executorch" / "extension-llm.pte", lambda path: _export(model.folder, path))


def start(path: Path, format: str, threads: int, context: int) -> Conversation:
    """The program, opened."""
    return _Llama(path, threads)


class _Llama(Program):
    """Every call takes tokens and the position of the first."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import torch  # noqa: F401 (its libraries first)
            from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
        except ImportError as error:
            raise not_installed("executorch", error) from error
        super().__init__(path, threads)

    def _call(self, tokens: Sequence[int], position: int) -> int:
        import torch

        inputs = (torch.tensor([list(tokens)]), torch.tensor([position]))
        (logits,) = self._module.forward(inputs, clone_outputs=False)
        return int(logits.argmax())


def _export(folder: Path, path: Path) -> None:
    import torch

    try:
        from executorch.examples.models.llama.export_llama_lib import build_args_parser, export_llama
    except ImportError as error:
        raise not_installed("executorch", error) from error
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama":
        raise EdgeError("bench.peer", f"this export knows Llamas, not {config['model_type']}", "leave this engine out")
    with tempfile.TemporaryDirectory() as work:
        weights, sizes, made = (Path(work) / name for name in ("weights.pth", "params.json", "model.pte"))
        torch.save(_weights(folder), weights)
        sizes.write_text(json.dumps(_sizes(config)))
        files = ["--params", str(sizes), "--checkpoint", str(weights), "--output_name", str(made)]
        lengths = ["--max_seq_length", str(CONTEXT), "--max_context_length", str(CONTEXT)]
        export_llama(build_args_parser().parse_args(["--model", "smollm2", *OPTIONS.split(), *files, *lengths]))
        path.write_bytes(made.read_bytes())


def _weights(folder: Path) -> dict[str, Any]:
    """The checkpoint under the names that Meta gives."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            module = name.removesuffix(".weight")
            layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
            meta = f"layers.{layer[1]}.{INSIDE[layer[2]]}" if layer else OUTSIDE[module]
            found[f"{meta}.weight"] = tensor.float()
    found.setdefault("output.weight", found["tok_embeddings.weight"].clone())
    return found


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or config
    return {
        "dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "n_layers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": rope["rope_theta"],
        "use_scaled_rope": False,
        "vocab_size": config["vocab_size"],
        "use_hf_rope": True,  # queries and keys lie as in the Hugging Face checkpoint
    }
