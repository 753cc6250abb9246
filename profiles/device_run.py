"""One plan on one device: start the native runner there, follow its journal, fetch what it wrote.

The runner goes on by itself while nobody is connected, and its journal stays on the device. The host keeps a copy and
asks for what it hasn't got yet, so either side may go away and come back: nothing is lost or counted twice.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from edge.core.bundle import Bundle
from edge.core.console import Ticker, info, progress
from edge.core.errors import EdgeError
from edge.core.files import full_disk_is_an_error
from edge.core.session import OperatorTime
from edge.core.transport import Connection, DeviceLost
from edge.profiles import journal, runner_files
from edge.profiles.deploy import RECONNECT_S, Deployed, persist
from edge.profiles.plan import Plan, turns_of

POLL_S = 0.5
STARTS = 5  # of a runner that dies without having finished anything more


@dataclass
class Run:
    """One plan on one device. `local` is the host's folder of it, `remote` the device's."""

    connection: Connection
    bundle: Bundle
    plan: Plan
    digest: str
    deployed: Deployed
    watched: dict[str, list[str]]
    columns: str
    local: Path = field(init=False)
    remote: str = field(init=False)

    def __post_init__(self) -> None:
        self.local = journal.run_folder(self.connection.device.name, self.digest)
        self.remote = f"{self.connection.folder}/runs/{self.digest[:16]}"
        with full_disk_is_an_error(self.local):
            self.local.mkdir(parents=True, exist_ok=True)

    @property
    def journal(self) -> Path:
        return self.local / journal.NAME

    def entries(self) -> list[journal.Entry]:
        return journal.read(self.journal)

    def send(self) -> None:
        """Bring the plan there, and the journal where the device has lost its own."""
        with TemporaryDirectory() as folder:
            texts = {"samples.bin": runner_files.samples(self.bundle), "columns": self.columns.encode()}
            tokens = runner_files.prompts(self.plan, self.bundle.manifest.vocab_size)
            texts |= {f"turn{i}": prompt for i, prompt in enumerate(tokens)}
            texts["plan"] = self._plan().encode()
            for name, content in texts.items():
                file = Path(folder) / name
                file.write_bytes(content)
                persist(self.connection, lambda f=file: self.connection.push(f, f"{self.remote}/{f.name}"))
        if self.journal.exists() and self._remote_size("journal") < self.journal.stat().st_size:
            persist(self.connection, lambda: self.connection.push(self.journal, f"{self.remote}/journal"))

    def _plan(self, **more: str) -> str:
        there = self.deployed
        files = {"model": there.model, "onnxruntime": there.onnxruntime, "samples": f"{self.remote}/samples.bin"}
        files |= {"kernels": there.kernels} if there.kernels else {}
        files |= {f"turn{i}": f"{self.remote}/turn{i}" for i in range(len(turns_of(self.plan)))}
        text = runner_files.runner_plan(self.plan, self.bundle, self.digest, files, self.watched)
        return text + "".join(f"{name} {value}\n" for name, value in more.items())

    def _remote_size(self, name: str) -> int:
        found = persist(self.connection, lambda: self.connection.run(["wc", "-c", f"{self.remote}/{name}"]))
        return int(found.stdout.split()[0]) if found.code == 0 else 0

    def follow(self) -> journal.End:
        """Until the run has ended, through lost connections and dead processes. Shows how far it is."""
        ended = len(self.entries())  # a failure from before is not this time's
        title = f"profile {self.bundle.manifest.name} on {self.connection.device.name}"
        with progress(title, self.plan.warm_ups + self.plan.repetitions) as tick:
            shown, starts, finished = 0, 0, -1
            while True:
                try:
                    found = self.fetch()
                    shown = self._show(found, shown, tick)
                    end = found[-1] if found else None
                    if isinstance(end, journal.End) and (end.code == "ok" or len(found) > ended):
                        return end
                    if not self._running(found):
                        done = sum(isinstance(entry, journal.Repeated) for entry in found)
                        starts = starts + 1 if done == finished else 1
                        finished = done
                        self._start(found, starts)
                    time.sleep(POLL_S)
                except DeviceLost as error:
                    info(f"{self.connection.device.name} is gone ({error.message}); waiting for it to come back")
                    self.connection.reconnect(RECONNECT_S)

    def fetch(self) -> list[journal.Entry]:
        """Bring over what the journal has grown by; all entries so far."""
        self._bring("journal", self.journal)
        return self.entries()

    def _bring(self, name: str, file: Path) -> None:
        """Add to a local copy what the device's file has more, from the last whole line on.

        A torn line is left out: the device may have cut it off since.
        """
        with full_disk_is_an_error(file):
            file.touch()
            whole = file.read_bytes().rfind(b"\n") + 1
            os.truncate(file, whole)
            try:
                self.connection.pull(f"{self.remote}/{name}", file, offset=whole)
            except EdgeError as error:
                if error.code != "device.missing":
                    raise

    def _running(self, found: list[journal.Entry]) -> bool:
        """Whether the process that last took the journal up is still there: not after another boot."""
        begins = [entry for entry in found if isinstance(entry, journal.Begin)]
        if not begins or begins[-1].boot != self._boot():
            return False
        return self.connection.alive(begins[-1].pid)

    def _boot(self) -> str:
        return self.connection.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.decode().strip()

    def _start(self, found: list[journal.Entry], starts: int) -> None:
        """Start the runner under the sampler, and wait until it has taken up the journal or died."""
        if starts > STARTS:
            log = self.connection.run(["tail", "-n", "3", f"{self.remote}/log"]).stdout.decode(errors="replace")
            if "No space left" in log:  # not even the journal's end could be written
                hint = "make room there and run the same command again: what is finished is kept"
                raise EdgeError("profile.disk", f"the disk of {self.connection.device.name} is full", hint)
            message = f"the runner on {self.connection.device.name} dies again and again: {' '.join(log.split())}"
            raise EdgeError("profile.died", message, "a signal 9 mostly means too little memory there")
        begins = sum(isinstance(entry, journal.Begin) for entry in found)
        sampler = [self.deployed.sampler, "--interval-ms", str(self.plan.sample_ms)]
        sampler += ["--columns", f"{self.remote}/columns", "--out", f"{self.remote}/samples-{begins}"]
        runner = [self.deployed.runner, f"{self.remote}/plan", f"{self.remote}/journal"]
        pid = self.connection.start([*sampler, "--", *runner], log=f"{self.remote}/log")
        while self.connection.alive(pid):
            if sum(isinstance(entry, journal.Begin) for entry in self.fetch()) > begins:
                return
            time.sleep(POLL_S / 5)

    def _show(self, found: list[journal.Entry], shown: int, tick: Ticker) -> int:
        """Move the bar on by what is new."""
        for entry in found[shown:]:
            if isinstance(entry, journal.Repeated):
                speed = f"{len(entry.decode_ns) / (sum(entry.decode_ns) / 1e9):.1f} tokens/s" if entry.decode_ns else ""
                tick(
                    1 if entry.index < self.plan.repetitions else 0, speed + (", throttled" if entry.throttled else "")
                )
            elif isinstance(entry, journal.Span) and entry.name == "warm-up":
                tick(self.plan.warm_ups, "warmed up")
        return len(found)

    def samples(self) -> bytes:
        """What the samplers of all processes of this run wrote, one file each: a device may lose some."""
        files = [f"samples-{i}" for i in range(len(journal.attempts(self.entries())))]
        for name in files:
            persist(self.connection, lambda n=name: self._bring(n, self.local / n))
        return b"".join((self.local / name).read_bytes() for name in files)

    def operators(self) -> list[OperatorTime]:
        """Rows of single-token steps, from a process of their own: the engine's profiler slows it down."""
        from edge.runtimes.onnx import operator_times

        with TemporaryDirectory() as folder:
            plan = Path(folder) / "trace.plan"
            plan.write_text(self._plan(profile=f"{self.remote}/trace"))
            trace = Path(folder) / "trace"
            remote = f"{self.remote}/trace.plan"

            def run() -> None:
                trace.unlink(missing_ok=True)
                self.connection.push(plan, remote)
                command = [self.deployed.runner, remote, f"{self.remote}/trace.journal"]
                self.connection.run(["rm", "-f", f"{self.remote}/trace.journal"])
                done = self.connection.run(command, timeout_s=900)
                if done.code:
                    lines = done.stderr.decode(errors="replace").split("\n")
                    raise EdgeError("profile.operators", f"no operator profile: {lines[0]}", "see the log there")
                self.connection.pull(f"{self.remote}/trace", trace)

            persist(self.connection, run)
            return operator_times(trace, self.bundle.manifest.layer_of_node)

    def remove(self) -> None:
        """Forget the run on the device; tools and bundles stay there for the next one."""
        persist(self.connection, lambda: self.connection.run(["rm", "-rf", self.remote]))

    def forget(self) -> None:
        """Start anew: what an earlier process of the host has fetched goes."""
        for file in self.local.iterdir():
            file.unlink()
