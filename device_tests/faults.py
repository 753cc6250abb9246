"""Kills and disconnects at random times while `edge profile` runs on stand-ins: is anything lost or counted twice?

    python -m device_tests.faults --faults 25 --transport adb --seed 1

A run that ends is held against what the device itself wrote; then the next one begins, until all faults were made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from edge.core.measurement import Measurement

from .standin import Bench, Jetson, Phone, fetch_tools
from .standin.device import StandIn

KINDS = ("disconnect", "reboot", "host", "runner", "sampler", "client")
WEIGHTS = (4, 2, 2, 2, 1, 2)
REPETITIONS, TOKENS, REST_S = 15, 6, 0.1
"""Four times as many are made: emulated times vary more than the protocol likes."""
LONGEST_PAUSE_S, LONGEST_AWAY_S = 6.0, 3.0
EARLY = 0.25
"""How many of the faults may come while files are brought there and the runner starts."""
UNAVAILABLE = 3
PATIENCE_S = 300.0


class LostError(AssertionError):
    """A repetition was lost, or counted twice, or the run did not come through."""


@dataclass
class Faults:
    """Runs of `bundle` on one device, and what happens to them."""

    bench: Bench
    device: StandIn
    bundle: Path
    random: random.Random
    made: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    repetitions: int = 0

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="faults-", dir=self.device.folder))
        self.out = self.folder / "result.json"
        self.log = self.folder / "log"

    def make(self, count: int) -> None:
        while sum(self.made.values()) < count:
            self._one_run(count)

    def _one_run(self, count: int) -> None:
        """One plan until it has ended well; whoever kills the host's process starts it again."""
        self._kept = _Kept(self.device, self.folder / f"run{self.runs}")
        self._process, begun = self._start("--fresh"), time.monotonic()
        self._arm()
        while (code := self._process.poll()) != 0:
            if time.monotonic() - begun > PATIENCE_S:
                raise LostError(f"no end after {PATIENCE_S:.0f} s, {dict(self.made)}: {self._words()}")
            self._kept.look()
            if code is not None and code not in (UNAVAILABLE, -signal.SIGKILL):
                raise LostError(f"exit code {code} after {dict(self.made)}: {self._words()}")
            if code is not None:
                self._process = self._start()
            if self._due() and sum(self.made.values()) < count:
                self._fault()
                self._arm()
                begun = time.monotonic()
            time.sleep(0.02)
        self._kept.look()
        self.repetitions += self._kept.check(msgspec.json.decode(self.out.read_bytes(), type=Measurement))
        self.runs += 1

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        command = ["edge", "profile", str(self.bundle), "--device", self.device.name, "--output", str(self.out), *more]
        command += ["-p", str(TOKENS), "-n", str(TOKENS), "-r", str(REPETITIONS), "--cool-down", str(REST_S)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self.bench.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _arm(self) -> None:
        """The next fault: mostly some time after the run has got further, or at any time."""
        self._lines = -1 if self.random.random() < EARLY else self._kept.count()
        self._pause, self._from = self.random.uniform(0.05, LONGEST_PAUSE_S), 0.0

    def _due(self) -> bool:
        if not self._from and self._kept.count() > self._lines:
            self._from = time.monotonic()
        return bool(self._from) and time.monotonic() > self._from + self._pause

    def _fault(self) -> None:
        (kind,) = self.random.choices(KINDS, WEIGHTS)
        if kind in ("runner", "sampler"):
            happened = self.device.kill(kind) > 0
        elif kind == "client":
            happened = self._kill_client()
        else:
            getattr(self, f"_{kind}")()
            happened = True
        if happened:
            self.made[kind] += 1
            print(f"{self.device.name}: {kind}, {self._kept.count()} lines", file=sys.stderr, flush=True)

    def _disconnect(self) -> None:
        self.device.disconnect()
        time.sleep(self.random.uniform(0, LONGEST_AWAY_S))
        self.device.reconnect()

    def _reboot(self) -> None:
        self.device.reboot()

    def _host(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _kill_client(self) -> bool:
        """Any of the processes by which this machine talks to the device: adb's server, ssh's shared connection."""
        mine = str(self.bench.ssh_config) if isinstance(self.device, Jetson) else self.bench.adb
        found = [process for process in psutil.process_iter(["cmdline"]) if mine in (process.info["cmdline"] or ())]
        here = os.readlink("/proc/self/ns/net")
        found = [process for process in found if _network_of(process) == here]
        if found:
            self.random.choice(found).kill()
        return bool(found)

    def _words(self) -> str:
        return self.log.read_text()[-2000:]


def _network_of(process: psutil.Process) -> str:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/net")
    except OSError:
        return ""


class _Kept:
    """The device's journal as it was seen to grow, kept when edge has tidied up there."""

    def __init__(self, device: StandIn, folder: Path) -> None:
        self.device, self.folder = device, folder
        folder.mkdir()
        self.seen: list[str] = []
        self._files: list[Path] = []

    def look(self) -> None:
        """Raises where lines that were there are there no more, or are others."""
        for journal in self.device.edge_folder.glob("runs/*/journal"):
            try:
                if not self._files or not journal.samefile(self._files[-1]):
                    self._files.append(self.folder / str(len(self._files)))
                    os.link(journal, self._files[-1])
            except FileNotFoundError:  # it is over, or has just been replaced
                self._files = [file for file in self._files if file.exists()]
        if self._files:
            *lines, _torn = self._files[-1].read_text().split("\n")
            if lines[: len(self.seen)] != self.seen:
                if lines != self.seen[: len(lines)]:
                    raise LostError(f"the journal's lines changed: {self.folder}")
                return  # the host is about to give them back
            self.seen = lines

    def count(self) -> int:
        return len(self.seen)

    def check(self, result: Measurement) -> int:
        """Hold the result against the journal; the number of repetitions."""
        entries = [json.loads(line) for line in self.seen]
        numbers = [entry["seq"] for entry in entries]
        if numbers != list(range(len(entries))):
            raise LostError(f"the journal's numbers are not continuous: {numbers}")
        repeated = [entry for entry in entries if entry["type"] == "repetition"]
        indices = [entry["index"] for entry in repeated]
        if indices != list(range(len(indices))) or len(indices) < REPETITIONS:
            raise LostError(f"repetitions {indices}")
        if (entries[-1]["type"], entries[-1].get("code")) != ("end", "ok"):
            raise LostError(f"it ended with {entries[-1]}")
        told = [(entry["prefill_ns"], entry["decode_ns"]) for entry in repeated]
        if told != [(repetition.prefill_ns, repetition.decode_ns) for repetition in result.repetitions]:
            raise LostError(f"{len(told)} repetitions there, {len(result.repetitions)} here, or others")
        if not result.emulated:
            raise LostError("the result doesn't say that it was emulated")
        return len(told)


def make_bundle(folder: Path) -> Path:
    """The smallest model that is one: emulated processors take their time."""
    from edge import api
    from edge.models.testing import tiny_model

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_model("llama", folder / "tiny", num_hidden_layers=1, **sizes)
    api.export(model, folder / "tiny.bundle", target="cpu", runtime="onnx")
    return folder / "tiny.bundle"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m device_tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=25, help="of each transport (default 25)")
    parser.add_argument("--transport", choices=("adb", "ssh"), action="append", help="default: both, one by one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    fetch_tools()
    with tempfile.TemporaryDirectory() as folder, Bench() as bench:
        bundle = make_bundle(Path(folder))
        for transport in options.transport or ("adb", "ssh"):
            device: Phone | Jetson = bench.phone() if transport == "adb" else bench.jetson()
            faults = Faults(bench, device, bundle, random.Random(f"{options.seed} {transport}"))
            start = time.monotonic()
            faults.make(options.faults)
            said = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.made.items()))
            seconds = time.monotonic() - start
            print(
                f"{transport}: {said}; {faults.runs} runs, {faults.repetitions} repetitions, each once; {seconds:.0f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
