"""lm-eval's tasks on a session: what a continuation scores, and what is said where the harness or its data is not."""

import json
import sys

import numpy as np
import pytest

from edge.core.errors import EngineMissing
from edge.evaluate.subject import open_path
from edge.evaluate.tasks import continuation_score, score_tasks
from edge.models.testing import tiny_model

YAML = """
task: harbour
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


class Successor:
    """Token n is followed by n + 1, with probability e / (e + 9)."""

    context_length, vocab_size = 4, 10

    def prefill(self, tokens, *, all_logits=False):
        assert all_logits and len(tokens) <= self.context_length
        return np.eye(10, dtype=np.float32)[(np.array(tokens) + 1) % 10]


def test_a_continuation_scores_its_log_probability():
    right, wrong = np.log(np.e / (np.e + 9)), np.log(1 / (np.e + 9))
    assert continuation_score(Successor(), [1, 2], [3, 4]) == (pytest.approx(2 * right, rel=1e-6), True)
    assert continuation_score(Successor(), [1, 2], [3, 5]) == (pytest.approx(right + wrong, rel=1e-6), False)
    assert continuation_score(Successor(), [7, 7, 7, 0, 1, 2], [3])[1]  # a context that is too long loses its beginning


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EngineMissing, match=r"edge-deploy\[tasks\]"):
        list(score_tasks(Successor(), None, ["arc_easy"]))


def test_a_task_of_ones_own_is_scored_and_one_without_data_says_so(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [{"question": f"The harbour lay {i}", "choices": [" quiet", " loud"], "answer": i % 2} for i in range(6)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "harbour.yaml").write_text(YAML.format(data=tmp_path / "data.json"))
    session, tokenizer = open_path(tiny_model("llama", tmp_path / "model"))
    own, unknown = score_tasks(session, tokenizer, [str(tmp_path / "harbour.yaml"), "arc_eazy"])
    assert (own.task, own.metric) == ("harbour", "acc") and 0 <= own.value <= 1 and own.problem == ""
    assert unknown.value is None and "arc_easy" in unknown.problem
