"""Joules per token of a CUDA decode loop, by NVIDIA's own counters: proves the energy arithmetic on real hardware.

    python -m edge.profiles.peers.nvml_energy result.json

The load (nvml_load.py) runs in a process of its own and tells when it did what; this one reads the GPU's energy counter
and its power 50 times a second, subtracts the idle baseline and compares the two ways. Needs torch, transformers and
NumPy, and an NVIDIA driver; nothing else of edge's dependencies. The whole board is measured: other users of the GPU
would be counted. Takes about two and a half minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edge.profiles.energy import Estimate, Idle, Window, WindowEnergy, idle_baseline, total, window_energy
from edge.runtimes.probes.power import nvml
from edge.runtimes.probes.power.series import Accuracy, PowerUnavailableError, Recorder, Series, refreshed

LOAD = Path(__file__).with_name("nvml_load.py")
INTERVAL_S = 0.02
SAME_SENSOR = ("gain",)  # both ways read one sensor: its gain is no reason for them to disagree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="do the arithmetic again on the readings in the file")
    options, load_options = parser.parse_known_args()
    result = again(options.output) if options.again else measure(options.gpu, load_options)
    write(options.output, result)
    show(result)


def measure(index: int, load_options: list[str]) -> dict[str, Any]:
    """Run the load and read the counters meanwhile."""
    try:
        gpu = nvml.open_gpu(index)
        channels = [nvml.energy_channel(gpu), nvml.power_channel(gpu)]
    except PowerUnavailableError as error:
        sys.exit(f"not available: {error}")
    recorder = Recorder([[channel] for channel in channels], INTERVAL_S)
    with recorder.running():
        told = run_load(load_options)
    return report(gpu.name, told, [recorder.series(0)[0], recorder.series(1)[0]], len(recorder.errors))


def write(file: Path, result: dict[str, Any]) -> None:
    """Readable, but for the raw readings, which go on one line."""
    text = json.dumps({**result, "raw": None}, indent=1)
    file.write_text(text.replace('"raw": null', f'"raw": {json.dumps(result["raw"], separators=(",", ":"))}') + "\n")


def again(file: Path) -> dict[str, Any]:
    """What was read then, by today's arithmetic."""
    old = json.loads(file.read_text())
    told = [old["load"], *({"kind": "window", **window} for window in old["windows"])]
    raw = []
    for reading in old["readings"]:
        time_ns, value = old["raw"][reading["kind"]]
        stated = Accuracy(gain=reading["gain"], resolution=reading["resolution"], note=reading["note"])
        array = np.asarray(time_ns, np.int64), np.asarray(value, np.float64)
        raw.append(Series(reading["name"], reading["kind"], "hardware_counter", *array, stated))
    return {**report(old["gpu"], told, raw, old["failed_readings"]), "python": old["python"]}


def run_load(options: list[str]) -> list[dict[str, Any]]:
    """What the load says, line by line. This repository is taken off its path: it needs nothing of it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = []
    with subprocess.Popen([sys.executable, str(LOAD), *options], stdout=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stdout or ():
            print(line.rstrip(), file=sys.stderr)
            told.append(json.loads(line))
    if process.returncode:
        sys.exit(f"the load ended with code {process.returncode}")
    return told


def report(name: str, told: list[dict[str, Any]], raw: list[Series], failed: int) -> dict[str, Any]:
    """Everything that was found, and the raw readings."""
    windows = [Window(w["name"], w["start_ns"], w["end_ns"], w["tokens"]) for w in told if w["kind"] == "window"]
    series = [refreshed(one) for one in raw]
    lengths = sorted({int(w.name.split()[1]) for w in windows if w.name.startswith("decode")})
    return {
        "schema": 1,
        "what": "CUDA decode loop, NVML, net of idle; expanded uncertainties, k = 2",
        "source": "hardware_counter",
        "gpu": name,
        "python": platform.python_version(),
        "load": next(line for line in told if line["kind"] == "model"),
        "readings": [
            {"name": s.name, "kind": s.kind, "count": len(s.time_ns), "polled": len(r.time_ns), **asdict(s.accuracy)}
            for s, r in zip(series, raw, strict=True)
        ],
        "failed_readings": failed,
        "results": [one for length in lengths for one in of_length(length, windows, series)],
        "windows": [asdict(window) for window in windows],
        "raw": {r.kind: [r.time_ns.tolist(), r.value.astype(int).tolist()] for r in raw},
    }


def of_length(length: int, windows: list[Window], series: list[Series]) -> list[dict[str, Any]]:
    """Prefill and decode at one length, by the counter and by the integrated power."""
    before, after = (next(w for w in windows if w.name == f"idle {when} {length}") for when in ("before", "after"))
    idles = [idle_baseline(one, before, after) for one in series]
    found = []
    for phase in ("prefill", "decode"):
        mine = [window for window in windows if window.name == f"{phase} {length}"]
        repeated = [[window_energy(one, w, idle) for w in mine] for one, idle in zip(series, idles, strict=True)]
        ways = [total(energies, f"{phase} {length}") for energies in repeated]
        found.append(
            {
                "phase": phase,
                "length": length,
                "tokens": ways[0].tokens,
                "seconds": ways[0].seconds,
                "tokens_per_s": ways[0].tokens / ways[0].seconds,
                "counter": energy_row(ways[0], idles[0], repeated[0]),
                "integrated_power": energy_row(ways[1], idles[1], repeated[1]),
                "agreement": agreement(ways[0], ways[1]),
            }
        )
    return found


def energy_row(energy: WindowEnergy, idle: Idle, repetitions: list[WindowEnergy]) -> dict[str, Any]:
    return {
        "status": energy.net.status,
        "gross_uj": energy.gross.energy_uj,
        "gross_expanded_uj": energy.gross.expanded_uj,
        "net_uj": energy.net.energy_uj,
        "net_expanded_uj": energy.net.expanded_uj,
        "net_joules_per_token": energy.joules_per_token,
        "net_expanded_joules_per_token": energy.expanded_joules_per_token,
        "net_milliwatt_hours_per_token": energy.milliwatt_hours_per_token,
        "gross_power_uw": energy.gross.energy_uj / energy.seconds,
        "idle_power_uw": idle.power_uw,
        "net_budget_uj": energy.net.budget_uj,
        "net_joules_per_token_by_repetition": [one.joules_per_token for one in repetitions],
    }


def agreement(counter: WindowEnergy, power: WindowEnergy) -> dict[str, Any]:
    """Difference of the gross energies against what both ways leave open, the sensor's gain apart."""
    difference = counter.gross.energy_uj - power.gross.energy_uj
    band = math.hypot(*(without_gain(way.gross).expanded_uj for way in (counter, power)))
    return {
        "gross_difference_uj": difference,
        "band_uj": band,
        "relative": difference / counter.gross.energy_uj,
        "relative_band": band / counter.gross.energy_uj,
        "within_band": abs(difference) <= band,
    }


def without_gain(estimate: Estimate) -> Estimate:
    kept = {name: u for name, u in estimate.budget_uj.items() if name not in SAME_SENSOR}
    return Estimate(estimate.energy_uj, kept)


def show(result: dict[str, Any]) -> None:
    print(result["gpu"], result["load"])
    for row in result["results"]:
        print(f"{row['phase']} {row['length']}: {row['tokens_per_s']:.1f} tokens/s, {row['seconds']:.1f} s")
        for way in ("counter", "integrated_power"):
            one = row[way]
            doubt, gross_w, idle_w = (
                one["net_expanded_joules_per_token"],
                one["gross_power_uw"],
                one["idle_power_uw"][0],
            )
            print(f"  {way}: {one['net_joules_per_token']:.4f} ± {doubt:.4f} J/token net ({one['status']})", end="")
            print(f", gross {gross_w / 1e6:.1f} W, idle {idle_w / 1e6:.1f} W")
        same = row["agreement"]
        band = f"band ±{same['relative_band']:.2%}: {'within' if same['within_band'] else 'OUTSIDE'}"
        print(f"  counter - power: {same['relative']:+.2%} of gross, {band}")


if __name__ == "__main__":
    main()
