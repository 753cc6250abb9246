"""Tasks of EleutherAI's lm-evaluation-harness on any session: checkpoints in PyTorch, bundles in their runtime.

A task's data comes from its own place; where that can't be reached, that is what is said of the task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.core.errors import EdgeError, EngineMissing, nearest
from edge.core.session import Session, generate
from edge.evaluate.divergence import log_softmax

FILES = (".yaml", ".yml")
METRICS = ("acc", "exact_match", "word_perplexity")  # which one stands for a task that has several


class TaskScore(msgspec.Struct, frozen=True):
    """value of `metric` with its standard error; or why there is none."""

    task: str
    metric: str = ""
    value: float | None = None
    stderr: float | None = None
    problem: str = ""


def score_tasks(
    session: Session, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None
) -> Iterator[TaskScore]:
    """A score for each task, in order. tasks: names that lm-eval knows, or YAML files of a user's own.

    limit: documents of each at most. Raises `EngineMissing` without lm-eval.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        hint = "pip install 'edge-deploy[tasks]'"
        raise EngineMissing("tasks.missing", f"lm-eval can't be imported: {error}", hint) from error
    model = language_model(session, tokenizer)
    manager = TaskManager(include_path=sorted({str(Path(task).parent) for task in tasks if task.endswith(FILES)}))
    for name in tasks:
        task = Path(name).stem if name.endswith(FILES) else name
        try:
            known = _known(name, manager)
            found = lm_eval.simple_evaluate(
                model=model, tasks=[known], limit=limit, task_manager=manager, bootstrap_iters=100, log_samples=False
            )
            yield _score(task, next(iter(found["results"].values())))
        except OSError as error:  # what lies on a network that isn't there, ConnectionError too
            yield TaskScore(task, problem=f"its data isn't here: {_line(error)}")
        except Exception as error:  # one task of many, each with code of its own
            yield TaskScore(task, problem=_line(error))


def _known(task: str, manager: Any) -> str:
    """What lm-eval calls it. Raises `EdgeError` for what it doesn't know."""
    name = _file_task(task) if task.endswith(FILES) else task
    if name not in manager.all_tasks:
        raise EdgeError("tasks.unknown", "lm-eval has no such task", nearest(name, manager.all_tasks))
    return name


def _file_task(path: str) -> str:
    """The name that a YAML file gives its task."""
    import yaml

    try:
        return str(yaml.safe_load(Path(path).read_text())["task"])
    except (FileNotFoundError, yaml.YAMLError, KeyError, TypeError) as error:
        hint = "lm-eval's guide to new tasks says what is in one"
        raise EdgeError("tasks.file", f"{path} is no task file: {_line(error)}", hint) from error


def _line(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())[:200]


def _score(task: str, results: dict[str, Any]) -> TaskScore:
    """The most telling of a task's metrics, which lm-eval keys as `metric,filter`."""
    values = {key.partition(",")[0]: key for key, value in results.items() if isinstance(value, float) and "," in key}
    metrics = [name for name in values if not name.endswith("_stderr")]
    if not metrics:
        return TaskScore(task, problem="it has no single figure")
    metric = next((name for name in METRICS if name in metrics), metrics[0])
    doubt = results.get(values.get(f"{metric}_stderr", ""))  # "N/A" has no key here
    return TaskScore(task, metric, results[values[metric]], doubt)


def language_model(session: Session, tokenizer: Any) -> Any:
    """A session as lm-eval's model: continuations scored, texts scored in windows, greedy answers."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class SessionModel(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            bos = tokenizer.bos_token_id
            return self.eot_token_id if bos is None else int(bos)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            special = add_special_tokens if add_special_tokens is not None else True
            return list(tokenizer.encode(string, add_special_tokens=special))

        def _loglikelihood_tokens(self, requests: Iterable[Any], **_: Any) -> list[tuple[float, bool]]:
            return [continuation_score(session, context, wanted) for _, context, wanted in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [self._rolling(*request.args) for request in requests]

        def _rolling(self, text: str) -> float:
            tokens = self.tok_encode(text, add_special_tokens=False)
            length = session.context_length - 1
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, length, 1)
            return sum(continuation_score(session, *make_disjoint_window(window))[0] for window in windows)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return [self._answer(*request.args) for request in requests]

        def _answer(self, context: str, settings: dict[str, Any]) -> str:
            until = settings.get("until") or []
            most = int(settings.get("max_gen_toks", 256))
            prompt = self.tok_encode(context)[-(session.context_length - most) :]
            made: list[int] = []
            text = ""
            for token in generate(session, prompt, max_tokens=most, stop=[self.eot_token_id]):
                made.append(token)
                text = tokenizer.decode(made, skip_special_tokens=True)
                if ends := [text.index(stop) for stop in until if stop in text]:
                    return text[: min(ends)]
            return text

    return SessionModel()


def continuation_score(session: Session, context: Sequence[int], wanted: Sequence[int]) -> tuple[float, bool]:
    """log p(wanted | context) in nats, and whether greedy decoding would say it. A long context loses its beginning."""
    tokens = [*context, *wanted][-(session.context_length + 1) :]
    logits = session.prefill(tokens[:-1], all_logits=True)[-len(wanted) :]
    targets = np.asarray(tokens[-len(logits) :])
    likelihood = float(log_softmax(logits)[np.arange(len(targets)), targets].sum())
    return likelihood, bool((logits.argmax(axis=1) == targets).all())
