"""Fine-tuning of matrices that aren't compressed: the yardstick for what is compressed and fine-tuned on the same text.

All matrices that no step compressed are trained in float32, and norms with them; of those that were, scales and tables.
Pruned weights stay zero. A recipe may have this step alone: the model keeps its size. Where it isn't alone it comes
after all steps that compress.
"""

from __future__ import annotations

from edge.compress.fine_tuning import FineTuning, Training, together
from edge.compress.finish import Finished
from edge.compress.joined import join
from edge.compress.trainable import TrainableDense, trainable

CALIBRATED = TRAINED = STANDS_ALONE = True
STATE = ".fine-tune.safetensors"


class Options(Training, frozen=True, forbid_unknown_fields=True):
    """weight_rate: learning rate of weights. Others as in end-to-end, but that labels are used: `distillation` is 0."""

    weight_rate: float = 5e-5
    distillation: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_rate < 0:
            raise ValueError("`weight_rate` is at least 0")


def finish(finished: Finished, options: Options) -> None:
    """Train the model and write it again."""
    checkpoint = finished.checkpoint
    matrices = together(finished.compressed(), options, lambda alike: trainable(join(alike), rounding=False))
    plain = finished.plain()
    for name, _ in checkpoint.spec.matrices():
        if name in plain:
            weight = plain[name].T if name in checkpoint.spec.transposed else plain[name]
            matrices.append(TrainableDense(name, weight.contiguous()))
    tuning = FineTuning(finished, options, matrices, {"weight": options.weight_rate})
    state = finished.folder / STATE
    tuning.run("Fine-tuning", state)
    tuning.store(finished, state)
