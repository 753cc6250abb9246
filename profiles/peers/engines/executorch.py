"""ExecuTorch without our kernels: edge's bundle with builtin ones, and the usual recipe for language models.

That is transformers' own export with its static cache and torchao's 8da4w in groups of 32, embedding at 8 bits, through
XNNPACK. Lowering it takes ten minutes, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.profiles.peers.engines import Conversation, Model, edge, made_once
from edge.profiles.peers.engines._program import PIECE, Program

BUILTIN, RECIPE = "builtin 4 bits", "8da4w transformers"
FORMATS = (BUILTIN, RECIPE)
CONTEXT = 1024


def prepare(model: Model, format: str) -> Path:
    """A bundle, or the recipe's program."""
    if format == BUILTIN:
        return edge.bundle(model, "4", "executorch", "builtin")
    return made_once(model.work / "executorch" / "transformers-8da4w.pte", lambda path: _recipe(model.folder, path))


def start(path: Path, format: str, threads: int, context: int) -> Conversation:
    """A session on the bundle, or on the program."""
    return _Recipe(path, threads) if format == RECIPE else edge.start(path, format, threads, context)


class _Recipe(Program):
    """Logits of every token come out of each call; a cache position says where its tokens stand."""

    def _call(self, tokens: Sequence[int], position: int) -> int:
        import torch

        positions = torch.arange(position, position + len(tokens))
        (logits,) = self._module.forward((torch.tensor([list(tokens)]), positions), clone_outputs=False)
        return int(logits[0, len(tokens) - 1].argmax())


def _recipe(folder: Path, path: Path) -> None:
    """transformers' static cache, torchao's 8da4w g32 with an embedding of 8 bits, XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from transformers import AutoModelForCausalLM
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    model.generation_config.cache_implementation, model.generation_config.use_cache = "static", True
    model.get_input_embeddings().padding_idx = None  # ExecuTorch's pattern for quantized embeddings has none
    embedding = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    quantize_(model, embedding, lambda module, name: isinstance(module, torch.nn.Embedding))
    quantize_(model, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)))
    tokens = torch.export.Dim("tokens", max=PIECE)
    with torch.no_grad():
        exported = TorchExportableModuleForDecoderOnlyLM(model, 1, CONTEXT).export(
            input_ids=torch.zeros(1, 4, dtype=torch.long),
            cache_position=torch.arange(4),
            dynamic_shapes={"input_ids": {1: tokens}, "cache_position": {0: tokens}},
        )
        edge_program = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        lowered = edge_program.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
    with path.open("wb") as file:
        lowered.write_to_file(file)
