"""edge: put transformers on phones, Jetsons and CPUs.

    import edge
    folder = edge.compress("HuggingFaceTB/SmolLM2-135M-Instruct", "int4", "small")
    bundle = edge.export(folder, "bundle")
    print("".join(edge.load("bundle").generate("Why is the sky blue?")))
    measurement = edge.profile("bundle")

Importing it is cheap: torch and transformers come when they are needed. Once it is imported, transformers'
`from_pretrained` opens folders that `edge compress` wrote.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edge.models.hf_quantizer import install_hook

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge.api import compare, compress, evaluate, export, load, profile, profile_sweep, report

__all__ = ["compare", "compress", "evaluate", "export", "load", "profile", "profile_sweep", "report"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("edge.api"), name)
    raise AttributeError(f"module 'edge' has no attribute '{name}'")


install_hook()
