"""Clusters that are trained: better than k-means alone, what is trained is what is stored, and zeros stay zero."""

import numpy as np
import pytest
import torch

from edge.compress import fine_tuning
from edge.compress.cluster_training import ClusterTraining
from edge.compress.clustered_matrix import ClusteredMatrix
from edge.compress.clustering.soft import soft_assign
from edge.compress.methods import dkm, kmeans
from edge.compress.partial import PartialModel
from edge.compress.run import compress
from edge.core.errors import UsageError
from edge.core.recipe import parse_recipe
from edge.models.checkpoint import open_checkpoint
from edge.models.testing import tiny_model
from edge.models.tokenizer import tokenizer_of
from edge.models.torch_model import build_model

TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(40))
HEAD = """
schema = 1
activations = "f32"
[calibration]
samples = 2
training_samples = 12
sequence_length = 32
"""
QUICK = "steps = 6, batch = 4, save_minutes = 0.0, weight_rate = 0.02, learning_rate = 0.01"
RULES = '[{module = "embedding", options = {bits = 4}}]'
KEEP_EMBEDDING = '[{module = "embedding", exclude = true}]'


def step(method, options, rules="[]"):
    return f'[[steps]]\nmethod = "{method}"\noptions = {{{options}}}\nrules = {rules}\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "training.txt"
    path.write_text(TEXT)
    return path


def run(model, text, steps, output):
    return compress(model, parse_recipe(HEAD + steps, "test"), output, calibration_text=text)


def loss(folder):
    tokens = torch.tensor(tokenizer_of(folder)(TEXT)["input_ids"])[None, :128]
    logits = build_model(open_checkpoint(folder))(tokens).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item()


@pytest.fixture(scope="module")
def plain(model, text, tmp_path_factory):
    return run(model, text, step("kmeans", "bits = 2", RULES), tmp_path_factory.mktemp("plain") / "plain")


@pytest.mark.parametrize(
    ("method", "training"),
    [("dkm", 'assignment = "hard"'), ("edkm", "offload = true"), ("edkm", 'importance = "fisher"')],
)
def test_training_beats_kmeans_at_the_same_size(method, training, plain, model, text, tmp_path):
    settings = f"bits = 2, distillation = 0.0, {training}, {QUICK}"
    tuned = run(model, text, step(method, settings, RULES), tmp_path / "tuned")
    assert loss(tuned) < loss(plain) - 0.1
    first, second = open_checkpoint(plain), open_checkpoint(tuned)
    assert first.encodings == second.encodings and first.stored_bytes == second.stored_bytes
    assert not [path for path in tuned.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("method", "written"), [("dkm", 4), ("edkm", 6), ("fine-tune", 6)], ids=["steps", "storing", "storing, dense"]
)
def test_a_killed_training_gives_the_same_bytes(method, written, model, text, tmp_path, monkeypatch):
    """Killed between steps, and while the four units, written by k-means already, are replaced."""
    hard = ', assignment = "hard"' if method == "edkm" else ""
    steps = step(method, QUICK + hard)
    whole = run(model, text, steps, tmp_path / "whole")
    take, write, units = fine_tuning.FineTuning.step, PartialModel.write, []

    def step_or_die(self, number):
        if written == 4 and number == 3:
            raise KeyboardInterrupt
        return take(self, number)

    def write_or_die(self, *unit):
        if len(units) == written:
            raise KeyboardInterrupt
        units.append(unit)
        write(self, *unit)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fine_tuning.FineTuning, "step", step_or_die)
        patch.setattr(PartialModel, "write", write_or_die)
        run(model, text, steps, tmp_path / "killed")
    killed = run(model, text, steps, tmp_path / "killed")
    for path in sorted(whole.glob("*.safetensors")):
        assert path.read_bytes() == (killed / path.name).read_bytes()


@pytest.mark.parametrize("method", ["dkm", "gptq"])
def test_matrices_alike_are_trained_together_to_the_same_model(method, model, text, tmp_path, monkeypatch):
    few = QUICK.replace("steps = 6", "steps = 3")
    training = few.replace("weight_rate", "rounding_rate") if method == "gptq" else few
    steps = step(method, f"bits = 3, group_size = 32{'' if method == 'gptq' else ', ' + training}")
    steps += step("end-to-end", training) if method == "gptq" else ""
    one_by_one = run(model, text, steps, tmp_path / "apart")
    monkeypatch.setitem(fine_tuning.WEIGHTS_TOGETHER, "cpu", 20_000)
    together = run(model, text, steps, tmp_path / "together")
    first, second = open_checkpoint(one_by_one), open_checkpoint(together)
    assert first.encodings == second.encodings
    for name in first.encodings:
        a, b = (checkpoint.matrix(name).dequantize() for checkpoint in (first, second))
        assert np.abs(a - b).max() < 0.02 * np.abs(a).max() or (a != b).mean() < 0.01


SETTINGS = [
    {"bits": 3, "table_rows": 8},
    {"bits": 4, "scale": "group", "group_size": 64, "table_columns": 128},
    {"bits": 3, "dim": 2, "table_rows": 16},
]


@pytest.mark.parametrize("soft", [soft_assign, None])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_evaluated_is_what_is_stored(settings, soft):
    weight = torch.randn(20, 192, generator=torch.Generator().manual_seed(0))
    weight[:, :40] = 0
    start = kmeans.compress("m", weight, kmeans.Options(**settings))
    matrix = ClusteredMatrix(start, weight, soft, (1e-2, 1e-4))
    matrix.advance(0.5)
    wanted = torch.randn(20, 192, generator=torch.Generator().manual_seed(1))
    adam = torch.optim.Adam(matrix.parameters(), lr=0.02)
    for _ in range(10):
        (matrix() - wanted).square().mean().backward()
        adam.step()
        adam.zero_grad()
    assert matrix.moved() > 0
    matrix.hard = True
    stored = matrix.tensor()
    assert stored.encoding == start.encoding
    np.testing.assert_array_equal(matrix().detach().numpy(), stored.dequantize())
    assert (stored.dequantize()[:, :40] == 0).all()


def test_soft_and_hard_agree_when_the_temperature_has_fallen():
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    matrix = ClusteredMatrix(kmeans.compress("m", weight, kmeans.Options(bits=3)), weight, soft_assign, (1e-2, 1e-5))
    distances = []
    for done in (0.0, 1.0):
        matrix.advance(done)
        matrix.hard = False
        soft = [matrix() for _ in range(40)][-1]  # the entries settle
        matrix.hard = True
        distances.append((soft - matrix()).square().mean().item())
    assert distances[1] < 0.2 * distances[0]


LATER = {
    "kmeans": ("16x8", "bits = 3"),
    "edkm": ("16x8", "bits = 3, steps = 2"),
    "dkm": ("unstructured", f'bits = 3, assignment = "hard", {QUICK}'),
    "fine-tune": ("unstructured", QUICK),
}


@pytest.mark.parametrize("method", LATER)
def test_pruned_weights_stay_zero(method, model, text, tmp_path):
    pattern, options = LATER[method]
    prune = step("magnitude", f'bits = 0, share = 0.6, pattern = "{pattern}"', KEEP_EMBEDDING)
    folder = run(model, text, prune + step(method, options), tmp_path / "out")
    before, after = open_checkpoint(model), open_checkpoint(folder)
    for name, kind in before.spec.matrices():
        weight, now = (torch.from_numpy(c.matrix(name).dequantize()) for c in (before, after))
        zero = now == 0
        assert kind != "linear" or zero.float().mean() > 0.59
        assert kind != "embedding" or zero.float().mean() < 0.3
        if kind == "linear" and pattern == "unstructured":
            smallest = weight.abs() <= weight.abs().flatten().kthvalue(round(0.6 * weight.numel())).values
            assert zero[smallest].all()


def test_magnitude_alone_stores_blocks_that_kernels_skip(model, text, tmp_path):
    folder = run(model, text, step("magnitude", "share = 0.5, bits = 4", KEEP_EMBEDDING), tmp_path / "out")
    before, after = open_checkpoint(model), open_checkpoint(folder)
    name = next(name for name, kind in before.spec.matrices() if kind == "linear")
    tensor, weight = after.matrix(name), before.matrix(name).dequantize()
    blocks = weight.reshape(weight.shape[0] // 16, 16, weight.shape[1] // 8, 8)
    energy = np.square(blocks).sum((1, 3))
    kept = tensor.parts["mask"].astype(bool)
    assert str(tensor.encoding) == "sparse4-16x8g64" and kept.mean() == 0.5
    assert energy[kept].min() >= energy[~kept].max()
    pruned = np.where(tensor.encoding.kept(tensor.parts), weight, 0)
    assert np.abs(tensor.dequantize() - pruned).max() < np.abs(weight).max() / 7


def test_wrong_uses_are_refused(model, text, tmp_path):
    def refused(steps, match):
        with pytest.raises(UsageError, match=match):
            run(model, text, steps, tmp_path / "out")

    refused(step("edkm", "bits = 3, dim = 2"), "use dkm")
    refused(step("dkm", "bits = 5"), "bits")
    refused(step("dkm", "temperature = [0.1, 0.0]"), "temperatures")
    refused(step("dkm", "distillation = 1.5"), "distillation")
    refused(step("dkm", "steps = 3", '[{module = "embedding", options = {steps = 4}}]'), "`steps` is for all")
    refused(step("magnitude", 'pattern = "unstructured"'), "unstructured zeros")
    refused(step("magnitude", "bits = 0"), "compresses nothing")
    refused(step("rtn", "bits = 4") + step("magnitude", "bits = 0"), "before any other step")
    refused(step("fine-tune", "steps = 2") + step("rtn", "bits = 4"), "finished model")
    if not torch.cuda.is_available():
        for method in ("dkm", "end-to-end", "fine-tune"):
            start = step("rtn", "bits = 4") if method == "end-to-end" else ""
            refused(start + step(method, 'device = "cuda"'), "no CUDA device")


def test_kmeans_begins_and_a_rule_may_choose_other_clusters(model, text, tmp_path):
    """No training: the tables are those of k-means, but for the rounding of points; rules choose bits by matrix."""
    rules = '[{module = "embedding", exclude = true}, {name = "*.down_proj.weight", options = {bits = 4}}]'
    settings = "bits = 2, steps = 1, weight_rate = 0.0, learning_rate = 0.0"
    folder = run(
        model, text, step("dkm", settings + ', assignment = "hard"', rules) + step("rtn", "bits = 8"), tmp_path / "o"
    )
    after = open_checkpoint(folder)
    encodings = {name.split(".")[-2]: str(encoding) for name, encoding in after.encodings.items()}
    assert encodings["down_proj"].startswith("codebook4") and encodings["q_proj"].startswith("codebook2")
    assert encodings["embed_tokens"].startswith("affine8")
    name = next(name for name in after.encodings if name.endswith("q_proj.weight"))
    weight = torch.from_numpy(open_checkpoint(model).matrix(name).dequantize())
    start = dkm.compress(name, weight, ClusterTraining(bits=2))
    np.testing.assert_allclose(after.matrix(name).dequantize(), start.dequantize(), rtol=1e-3, atol=1e-6)


def test_a_task_loss_of_the_callers_own(model, text, tmp_path):
    """Here the task is to answer one token always, which no text teaches."""

    def say(logits, tokens):
        return -logits.float().log_softmax(-1)[..., 7].mean()

    def likelihood(folder):
        tokens = torch.tensor(tokenizer_of(folder)(TEXT)["input_ids"])[None, :128]
        return -say(build_model(open_checkpoint(folder))(tokens).logits, tokens).item()

    recipe = parse_recipe(HEAD + step("dkm", f'bits = 2, distillation = 0.0, assignment = "hard", {QUICK}'), "test")
    tuned, plain = (
        compress(model, recipe, tmp_path / name, calibration_text=text, task_loss=loss)
        for name, loss in (("tuned", say), ("plain", None))
    )
    assert likelihood(tuned) > likelihood(plain) + 0.5


def test_squared_gradients_begin_closer_to_the_original(model, text, tmp_path):
    """Without a step of training but the last rounding: a learning rate of 0."""
    still = "bits = 2, steps = 1, weight_rate = 0.0, learning_rate = 0.0"
    begun = [
        run(
            model,
            text,
            step("dkm", f'{still}, assignment = "hard", importance = "{importance}"'),
            tmp_path / importance,
        )
        for importance in ("none", "fisher")
    ]
    tokens = torch.tensor(tokenizer_of(model)(TEXT)["input_ids"])[None, :256]
    wanted, *found = (build_model(open_checkpoint(path))(tokens).logits[0].log_softmax(-1) for path in (model, *begun))
    plain, weighted = (torch.nn.functional.kl_div(a, wanted, log_target=True, reduction="batchmean") for a in found)
    assert weighted < plain
