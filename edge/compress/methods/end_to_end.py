"""End-to-end tuning: what is stored learns from the original model's answers, after all matrices are compressed.

Chen, Shao, Xu, Wang, Gao, Zhang, Luo: "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
arXiv:2407.11062: its second phase, E2E-QP, trains the scales of the finished model with all codes fixed; here the
norms' weights and the entries of codebooks too. `rounding` lets codes change as well, by offsets with gradients that
pass straight through, as in LLM-QAT (Liu et al., arXiv:2305.17888). The loss is LLM-QAT's too: the divergence of the
next token's distribution, KL(original || compressed), over all positions of the calibration text. No label is used,
unless `distillation` is less than 1: the rest is next-token cross entropy.

Unlike methods that go layer by layer it holds the whole model: some 32 bytes of memory per weight with `rounding`, 16
without. The step comes last and takes no tensors.
"""

from __future__ import annotations

from edge.compress.fine_tuning import FineTuning, Training, together
from edge.compress.finish import Finished
from edge.compress.joined import join
from edge.compress.trainable import trainable

CALIBRATED = TRAINED = True
STATE = ".end-to-end.safetensors"


class Options(Training, frozen=True, forbid_unknown_fields=True):
    """rounding: codes may change. rounding_rate: of offsets, in steps between two codes. Others as in `Training`."""

    rounding: bool = True
    rounding_rate: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounding_rate < 0:
            raise ValueError("`rounding_rate` is at least 0")


def finish(finished: Finished, options: Options) -> None:
    """Tune the model and write it again."""
    matrices = together(finished.compressed(), options, lambda alike: trainable(join(alike), rounding=options.rounding))
    tuning = FineTuning(finished, options, matrices, {"offsets": options.rounding_rate})
    state = finished.folder / STATE
    tuning.run("Tuning end to end", state)
    tuning.store(finished, state)
