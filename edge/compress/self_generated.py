"""Text that a model writes itself, to tune its compressed copy on when there is little other text.

Liu et al.: "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", arXiv:2305.17888, section 2.1:
sampling from the whole distribution gives text that is nearer to what the model was trained on than what most corpora
hold. There a random token starts each; here a few tokens from the calibration text do.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from edge.core.console import progress
from edge.core.files import write_atomic

PROMPT_TOKENS = 8
BATCH = 64


def self_generated(model: nn.Module, windows: torch.Tensor, count: int, seed: int, state: Path) -> torch.Tensor:
    """Token ids [count, sequence_length] that a transformers language model samples after beginnings of `windows`.

    windows: token ids [samples, sequence_length]. state: where they are kept, so that an interrupted run doesn't write
    them again.
    """
    if state.is_file():
        return load_file(state)["windows"]
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    prompts = _prompts(windows, count, random).to(device)
    found = []
    with progress("Writing text to tune on", count) as tick, torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)  # transformers takes no generator
        for batch in prompts.split(BATCH):
            found.append(_sampled(model, batch, windows.shape[1]).cpu())
            tick(len(batch))
    result = torch.cat(found)
    write_atomic(state, save({"windows": result}))
    return result


def _prompts(windows: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Some tokens [count, PROMPT_TOKENS] from anywhere in the text; fewer where half a window has fewer."""
    length = min(PROMPT_TOKENS, -(-windows.shape[1] // 2))
    rows = torch.randint(len(windows), (count,), generator=random)
    starts = torch.randint(windows.shape[1] - length + 1, (count,), generator=random)
    return windows[rows[:, None], starts[:, None] + torch.arange(length)]


def _sampled(model: nn.Module, prompts: torch.Tensor, length: int) -> torch.Tensor:
    """Prompts with tokens drawn from the model's own distribution after them, [batch, length]: texts don't end."""
    found: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=length - prompts.shape[1],
        max_new_tokens=length - prompts.shape[1],
    )
    return found
