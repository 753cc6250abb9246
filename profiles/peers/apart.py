"""Processes that are measured: each has its engine, its memory and its threads to itself; they answer in JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from edge.core.errors import EdgeError
from edge.profiles.worker import environment

Handler = Callable[[Any], Iterator[Any]]


class Worker:
    """`python -m module`, kept alive between requests. What it prints otherwise is shown only where it dies."""

    def __init__(self, module: str, extra_environment: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**environment(), **(extra_environment or {})},
            text=True,
        )

    def ask(self, request: Any) -> Iterator[Any]:
        """What the worker answers, value by value. Raises the `EdgeError` that it raised, or one where it died."""
        requests, answers = self._process.stdin, self._process.stdout
        try:
            print(json.dumps(request), file=requests, flush=True)
        except BrokenPipeError:
            raise self._died() from None
        for line in answers or ():
            answer = json.loads(line)
            if "error" in answer:
                raise EdgeError(*answer["error"])
            if "value" not in answer:
                return
            yield answer["value"]
        raise self._died()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _died(self) -> EdgeError:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return EdgeError("bench.died", f"the measured process {ended}", lines[-1] if lines else "it said nothing")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(handle: Handler) -> None:
    """The worker's side: answer each request on stdin with what `handle` yields for it.

    Engines print as they like: what they write to stdout goes to stderr.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    for line in sys.stdin:
        try:
            for value in handle(json.loads(line)):
                send(value=value)
            send()
        except EdgeError as error:
            send(error=[error.code, error.message, error.hint])
