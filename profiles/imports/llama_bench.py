"""llama.cpp's `llama-bench -o json` and `-o jsonl`: speeds of prompts and of generation, measured apart.

The format is that of llama.cpp's tools/llama-bench/README.md; fields that are not named here only tell tests apart.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from statistics import fmean
from typing import Any

import msgspec

from edge.core.console import info
from edge.core.errors import EdgeError, UsageError
from edge.core.measurement import Measurement, Protocol, Repetition
from edge.profiles.imports import imported, no_record

DESCRIPTION = "llama-bench's JSON or JSON lines (-o json, -o jsonl)"
RESULTS = {"n_prompt", "n_gen", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"}
MOST_TOKENS, MOST_NS = 10**8, 10**15
NOTE = (
    "from llama-bench, which times prompts and generation apart and without picking tokens; {depth}times per token are "
    "means of a repetition; load time, memory, energy and operators are not told"
)


class Test(msgspec.Struct, frozen=True):
    """One row: `n_prompt` tokens read in `samples_ns`, or `n_gen` made, repetition by repetition."""

    n_prompt: int
    n_gen: int
    samples_ns: list[int]
    avg_ns: int
    n_threads: int
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_depth: int = 0
    cpu_info: str = ""
    gpu_info: str = ""
    backends: str = ""
    build_commit: str = ""
    build_number: int = 0
    test_time: str = ""

    def problem(self) -> str:
        """What is impossible about it, empty where nothing is."""
        counts = (self.n_prompt, self.n_gen, self.n_depth, self.n_threads)
        if not all(0 <= count <= MOST_TOKENS for count in counts) or not self.n_prompt + self.n_gen:
            return "n_prompt, n_gen, n_depth or n_threads is out of range"
        if self.model_size <= 0 or self.model_n_params <= 0:
            return "model_size or model_n_params is not above 0"
        if not self.samples_ns or not all(0 < ns <= MOST_NS for ns in self.samples_ns):
            return "samples_ns is empty or out of range"
        if abs(self.avg_ns - fmean(self.samples_ns)) > 0.01 * self.avg_ns + 1:
            return "avg_ns is not the mean of samples_ns"
        return ""


def recognizes(head: bytes) -> bool:
    """llama-bench writes these fields, the first of them first."""
    return re.match(rb'\s*(\[\s*)?\{\s*"build_commit"', head) is not None and b'"model_filename"' in head


def read(path: Path, record: Path | None) -> list[Measurement]:
    """A measurement for every prompt length with every generation length that share all settings."""
    no_record(record)
    groups: dict[str, list[Test]] = defaultdict(list)
    for number, row in enumerate(_rows(path), 1):
        test = _test(path, number, row)
        if test.n_prompt and test.n_gen:
            info(f"{path}: left out row {number}: its time is of prompt and generation together")
            continue
        settings = {name: value for name, value in row.items() if name not in RESULTS}
        groups[json.dumps(settings, sort_keys=True)].append(test)
    found = [measurement for tests in groups.values() for measurement in _measurements(path, tests)]
    if not found:
        hint = "run llama-bench with -p and -n, not with -pg alone"
        raise UsageError("import.empty", f"{path} has no time of a prompt or of generation alone", hint)
    return found


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    text = path.read_bytes()
    try:
        if text.lstrip().startswith(b"["):
            return msgspec.json.decode(text, type=list[dict[str, Any]])
        return [msgspec.json.decode(line, type=dict[str, Any]) for line in text.splitlines() if line.strip()]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeError("file.corrupt", f"{path}: {error}", "the file is damaged: write it again") from error


def _test(path: Path, number: int, row: dict[str, Any]) -> Test:
    try:
        test = msgspec.convert(row, Test)
        problem = test.problem()
    except msgspec.ValidationError as error:
        problem = str(error)
    if problem:
        hint = "the file is damaged, or of a llama-bench that edge doesn't know"
        raise EdgeError("file.corrupt", f"{path}, row {number}: {problem}", hint)
    return test


def _measurements(path: Path, tests: list[Test]) -> Iterable[Measurement]:
    prompts: list[Test | None] = [test for test in tests if test.n_prompt]
    generations: list[Test | None] = [test for test in tests if test.n_gen]
    for prompt in prompts or [None]:
        for generation in generations or [None]:
            yield _measurement(path, prompt, generation)


def _measurement(path: Path, prompt: Test | None, generation: Test | None) -> Measurement:
    """Either may be missing: then its tokens and times are 0, or there are none."""
    test = prompt or generation
    if test is None:
        raise ValueError("neither a prompt nor a generation")
    read, made = prompt.n_prompt if prompt else 0, generation.n_gen if generation else 0
    repetitions = [
        Repetition(read, prefill_ns, _spread(decode_ns, made), 0, [])
        for prefill_ns, decode_ns in _side_by_side(prompt, generation)
    ]
    device = {"cpu": test.cpu_info, "gpu": test.gpu_info if "CPU" not in test.backends.split(",") else ""}
    build = f"{test.build_number} ({test.build_commit})"
    depth = f"each starts at a depth of {test.n_depth} tokens; " if test.n_depth else ""
    # edge counts the first token, which comes with the prompt, among the generated ones.
    protocol = Protocol(read, made + 1 if made else 0, 0, len(repetitions), test.n_threads)
    return imported(
        path,
        protocol,
        NOTE.format(depth=depth),
        bundle=PureWindowsPath(test.model_filename).name,
        name=PureWindowsPath(test.model_filename).stem,
        kernels=test.backends or "its own",
        runtime="llama.cpp",
        recipe=test.model_type,
        stored_bytes=test.model_size,
        bits_per_weight=8 * test.model_size / test.model_n_params,
        device={**{name: value for name, value in device.items() if value}, "libraries": {"llama.cpp": build}},
        repetitions=repetitions,
        measured_at=test.test_time,
    )


def _side_by_side(prompt: Test | None, generation: Test | None) -> Iterable[tuple[int, int]]:
    """Times of the same repetition of both, 0 for what wasn't timed; as many as both have."""
    count = min(len(test.samples_ns) for test in (prompt, generation) if test)
    sides = [test.samples_ns if test else [0] * count for test in (prompt, generation)]
    return zip(*sides, strict=False)


def _spread(total_ns: int, tokens: int) -> list[int]:
    """As many times as tokens, with this sum."""
    if not tokens:
        return []
    share, rest = divmod(total_ns, tokens)
    return [share + (index < rest) for index in range(tokens)]
