"""Made-up results, labelled so: for tests of the report alone."""

from hashlib import sha256

import numpy as np

from edge.core.measurement import (
    Energy,
    EnergyWindow,
    Evaluation,
    Measurement,
    MemorySample,
    Parity,
    Phase,
    Protocol,
    Repetition,
    SamplerCost,
    Track,
)
from edge.core.session import OperatorTime
from edge.profiles.compare import Change, Comparison

DEVICE = {
    "cpu": "Synthetic CPU",
    "cores": 2,
    "isa": ["avx2", "avx512_vnni"],
    "virtual_machine": True,
    "caches": {"L1 data": "48K", "L2": "1024K"},
    "memory_bytes": 25_000_000_000,
    "governor": None,
    "os": "Debian GNU/Linux 12",
    "kernel": "6.1.0",
    "libraries": {"onnxruntime": "1.31.1"},
}
LAYER_US = {
    "self_attn.q_proj, k_proj, v_proj": 21,
    "self_attn.o_proj": 12,
    "mlp.gate_proj, up_proj": 62,
    "mlp.down_proj": 34,
    "self_attn": 14,
    "input_layernorm": 3,
    "post_attention_layernorm": 3,
}


def evaluation(**changes):
    fields = {
        "subject": "out/bundle",
        "kind": "artefact",
        "name": "SmolLM2-135M-Instruct",
        "recipe": "int4, edge kernels",
        "text": "synthetic.txt",
        "text_sha256": "ab" * 32,
        "context_length": 1024,
        "tokens": 11943,
        "perplexity": 42.31,
        "word_perplexity": 93.1,
        "bits_per_byte": 1.21,
        "original": "out/original",
        "perplexity_original": 38.88,
        "kl_divergence": 0.0732,
        "top1_agreement": 0.862,
        "stored_bytes": 79_300_000,
        "bits_per_weight": 4.71,
    }
    return Evaluation(**{**fields, **changes})


def measurement(step_ms=5.2, seed=0, memory_mb=240.0, **changes):
    random = np.random.default_rng(seed)
    repetitions = [
        Repetition(128, int(random.normal(158, 4) * 1e6), _steps(random, step_ms), 900_000_000, [2_600_000, 2_590_000])
        for _ in range(6)
    ]
    fields = {
        "bundle": "out/bundle",
        "bundle_sha256": sha256(changes.get("bundle", "out/bundle").encode()).hexdigest(),
        "name": "SmolLM2-135M-Instruct",
        "kernels": "edge",
        "runtime": "onnx",
        "recipe": "int4",
        "stored_bytes": 79_300_000,
        "bits_per_weight": 4.71,
        "device": DEVICE,
        "protocol": Protocol(128, 64, 3, 6, 0),
        "load_ns": 84_000_000,
        "repetitions": repetitions,
        "operators": _operators(step_ms),
        "peak_bytes": int((memory_mb + 9) * 1e6),
        "memory": _memory(random, memory_mb),
        "phases": [
            Phase("load", 0, 90_000_000),
            Phase("warm-up", 95_000_000, 1_600_000_000),
            Phase("measured", 1_605_000_000, 4_900_000_000),
        ],
        "energy": Energy("not_available", "no RAPL counter under /sys/class/powercap"),
    }
    return Measurement(**{**fields, **changes})


def _steps(random, step_ms):
    return [int(ns) for ns in random.lognormal(np.log(step_ms * 1e6), 0.06, 63)]


def _operators(step_ms):
    rows = [
        OperatorTime(f"/{i}/{part}", _operator(part), f"model.layers.{i}.{part}", 191, int(191e3 * us * step_ms / 5))
        for i in range(30)
        for part, us in LAYER_US.items()
    ]
    return [*rows, OperatorTime("/head", "Linear", "lm_head", 191, int(191e3 * 620 * step_ms / 5))]


def _operator(part):
    if part == "self_attn":
        return "GroupQueryAttention"
    return "SkipSimplifiedLayerNormalization" if part.endswith("norm") else "Linear"


def _memory(random, memory_mb):
    times = np.arange(0, 5.0, 0.02)
    ramp = 95 + (memory_mb - 95) * np.clip((times - 0.02) / 0.5, 0, 1) + random.normal(0, 0.4, len(times))
    return [MemorySample(int(t * 1e9), int(mb * 1e6)) for t, mb in zip(times, ramp, strict=True)]


PHONE = {
    "cpu": "CPU implementer 0x41 part 0xd44",
    "model": "Synthetic Phone 9",
    "soc": "SC9000",
    "platform": "android-arm64",
    "architecture": "arm64",
    "cores": 8,
    "isa": ["asimddp", "i8mm"],
    "memory_bytes": 8_000_000_000,
    "governor": "schedutil",
    "os": "Android 16",
    "kernel": "6.6.1",
    "libraries": {"onnxruntime": "1.31.1"},
}
BOARD = {**PHONE, "cpu": "", "model": "Jetson Orin Nano (synthetic)", "soc": "Orin", "platform": "linux-arm64"}
CLUSTERS = [(range(4), 1_800_000), (range(4, 6), 2_350_000), (range(6, 8), 2_850_000)]
SECOND = 1_000_000_000
HOT_S = 22.0  # from here on the large cluster is capped


def phone(step_ms=14.0, seed=3, **changes):
    """A run of 40 s under the native runner, watched, throttled from its 22nd second on."""
    random = np.random.default_rng(seed)
    repetitions = _placed(random, step_ms)
    end = (repetitions[-1].start_ns + repetitions[-1].prefill_ns + sum(repetitions[-1].decode_ns)) / SECOND
    fields = {
        "device": PHONE,
        "engine": "runner",
        "repetitions": repetitions,
        "protocol": Protocol(128, 64, 3, len(repetitions), 4, cores=[4, 5, 6, 7], cool_down_s=1.0, start_below_c=40.0),
        "memory": [],
        "phases": _spans(repetitions, end),
        "tracks": tracks(random, end + 4),
        "parity": Parity(0.0012, 0.05, True),
        "sampler": SamplerCost(10.0, 0.004),
        "state": {"screen": "on", "screen set": "off", "charging": "no", "airplane mode": "on"},
        "measured_at": "2026-11-22T13:05:00Z",
        "energy": energy("hardware_counter", "ODPM rails", decode_uj=95_000),
    }
    return measurement(step_ms, seed, **{**fields, **changes})


def board(**changes):
    random = np.random.default_rng(8)
    rails = {"VDD_IN": (5.2e6, 11.8e6), "VDD_CPU_GPU_CV": (0.9e6, 6.1e6), "VDD_SOC": (1.4e6, 2.2e6)}
    found = phone(9.0, 8, device=BOARD)
    end = found.tracks[0].time_ns[-1] / SECOND
    kept = [track for track in found.tracks if not track.name.startswith("energy/")]
    power = [_power(random, name, "uW", end, *span) for name, span in rails.items()]
    told = energy("hardware_counter", "INA3221: VDD_IN", decode_uj=61_000, prefill="below_resolution")
    return phone(9.0, 8, **{"device": BOARD, "tracks": kept + power, "energy": told, "state": {}, **changes})


def stand_in(**changes):
    """What the emulated phone gives."""
    return phone(900.0, 5, **{"device": {**PHONE, "model": "Stand-in phone"}, "emulated": True, **changes})


def failed(**changes):
    problem = "the runner was killed (signal 9): too little memory on the device"
    none = {"repetitions": [], "operators": [], "memory": [], "tracks": [], "phases": [], "load_ns": 0, "peak_bytes": 0}
    return phone(**{**none, "problem": problem, "recipe": "float32", "energy": Energy("not_available", ""), **changes})


def imported(**changes):
    """Another tool's result: the speeds alone."""
    repetitions = [Repetition(128, 640_000_000, [12_000_000] * 63, 0, []) for _ in range(5)]
    none = {"operators": [], "memory": [], "tracks": [], "phases": [], "load_ns": 0, "peak_bytes": 0}
    none |= {"parity": None, "sampler": None, "state": {}}
    fields = {
        "engine": "imported",
        "kernels": "",
        "runtime": "llama.cpp",
        "recipe": "Q4_0",
        "state": {},
        "sampler": None,
    }
    fields |= {"repetitions": repetitions, "energy": Energy("not_available", "llama-bench tells none")}
    return phone(**{**none, **fields, **changes})


def energy(source, reason, decode_uj, prefill="ok"):
    """decode_uj: net per token."""
    windows = [
        EnergyWindow("prefill", prefill, 768, 4 * SECOND, 9_000_000, 300_000, 2_600_000, 700_000, {"gain": 350_000.0}),
        EnergyWindow("decode", "ok", 378, 6 * SECOND, 60 * decode_uj, 10, 378 * decode_uj, 1_900_000, {"idle": 9e5}),
    ]
    whole = {"tokens": 384, "uncertainty_uj": 2_000_000, "net_uj": 40_000_000, "net_uncertainty_uj": 2_100_000}
    return Energy(source, reason, 58_000_000, 1_500_000, 20_000, 10 * SECOND, **whole, windows=windows)


def tracks(random, end):
    """Clocks and caps of 8 cores, 7 zones, 6 energy counters, memory and the battery's level, at 10 Hz."""
    times = np.arange(0.05, end, 0.1)
    busy = (times > 3) & (times < end - 4)
    found = []
    for cores, top in CLUSTERS:
        cap = np.where((times > HOT_S) & (top > 2_000_000), 0.66 * top, top)
        for core in cores:
            clock = np.where(busy, cap, 0.35 * top) * random.uniform(0.97, 1.0, len(times))
            found.append(_track(f"frequency/cpu{core}", "kHz", times, clock))
            found.append(_track(f"cap/cpu{core}", "kHz", times, cap))
    for i, zone in enumerate(("big", "little", "gpu", "skin", "battery", "modem", "charger")):
        warm = 30 + i + 28 / (i + 1) ** 1.4 * (1 - np.exp(-np.clip(times - 3, 0, None) / 9))
        found.append(_track(f"temperature/{zone}", "C", times, np.round(warm + random.normal(0, 0.1, len(times)), 1)))
    rails = {"S2M_VDD_CPUCL2": 3.1e6, "S3M_VDD_CPUCL1": 1.1e6, "S4M_VDD_CPUCL0": 0.4e6, "S10M_VDD_TPU": 0.05e6}
    rails |= {"S1M_VDD_MIF": 0.9e6, "L15M_VDD_SLC_M": 0.2e6}
    found += [_power(random, name, "uJ", end, 0.1 * watts, watts) for name, watts in rails.items()]
    resident = 9e7 + 1.6e8 * np.clip((times - 0.5) / 1.5, 0, 1)
    return [*found, _track("memory/resident", "B", times, resident), _track("battery/level", "percent", [1.0], [71])]


def _power(random, name, unit, end, low, high):
    times = np.arange(0.05, end, 0.1)
    busy = (times > 3) & (times < end - 4)
    fall = np.where(times > HOT_S, 0.62, 1.0)
    watts = np.where(busy, low + (high - low) * fall, low) * random.normal(1, 0.03, len(times))
    kind = "power" if unit == "uW" else "energy"
    return _track(f"{kind}/{name}", unit, times, watts if unit == "uW" else np.cumsum(watts * 0.1))


def _track(name, unit, times, values):
    return Track(name, unit, [int(t * SECOND) for t in times], [float(v) for v in values])


def _placed(random, step_ms):
    """Seven repetitions, a second apart; two of them fall into the hot time and are slower."""
    found, at = [], 8.0
    for _ in range(7):
        slow = 1.45 if at > HOT_S else 1.0
        steps = [int(ns * slow) for ns in random.lognormal(np.log(step_ms * 1e6), 0.05, 63)]
        prefill = int(random.normal(55 * step_ms * slow, step_ms) * 1e6)
        fields = {"start_ns": int(at * SECOND), "throttled": slow > 1, "temperature_c": 34.0 + at / 3}
        found.append(Repetition(128, prefill, steps, 4 * sum(steps), [2_350_000] * 4, **fields))
        at += (prefill + sum(steps)) / SECOND + 1.0
    return found


def _spans(repetitions, end):
    spans = [("load", 0.3, 2.1), ("warm-up", 2.2, 5.0), ("idle before", 5.1, 7.9), ("measured", 8.0, end)]
    for repetition in repetitions:
        start = repetition.start_ns / SECOND
        middle = start + repetition.prefill_ns / SECOND
        stop = middle + sum(repetition.decode_ns) / SECOND
        spans += [("prefill", start, middle), ("decode", middle, stop), ("cool-down", stop, min(stop + 1, end))]
    spans.append(("idle after", end + 0.1, end + 3))
    return [Phase(name, int(start * SECOND), int(stop * SECOND)) for name, start, stop in spans if stop > start]


def sweep():
    """One model on every cluster and on 1 to 8 threads of all cores."""
    speeds = {1: 31.0, 2: 18.0, 4: 11.5, 8: 10.8}
    quiet = {"tracks": [], "phases": [], "operators": []}
    threads = [measurement(ms, n, protocol=Protocol(128, 64, 3, 6, n), device=PHONE) for n, ms in speeds.items()]
    cores = {(0, 1, 2, 3): 29.0, (4, 5): 17.0, (6, 7): 12.0}
    kept = [
        phone(ms, 3, recipe="int8", bundle="b8", protocol=Protocol(128, 64, 3, 6, len(on), cores=list(on)), **quiet)
        for on, ms in cores.items()
    ]
    lengths = [
        phone(14.0 + n / 256, 3, protocol=Protocol(n, 64, 3, 6, 4), recipe="int2", bundle="b2", **quiet)
        for n in (128, 512, 1024)
    ]
    return threads + kept + lengths


def sustained(seed=11, recipe="int4", fall=0.7, **changes):
    """Forty rounds of 8 s; the cap of the large cores falls after 90 s, and the speed with it."""
    random = np.random.default_rng(seed)
    found, at = [], 1.0
    for i in range(40):
        hot = at > 90
        ms = (15.2 if i == 0 else 14.0) / (fall if hot else 1.0)
        steps = [int(ns) for ns in random.lognormal(np.log(ms * 1e6), 0.03, 255)]
        told = {"start_ns": int(at * SECOND), "throttled": hot, "temperature_c": 35 + min(at / 4, 40)}
        found.append(Repetition(128, int(40 * ms * 1e6), steps, 4 * sum(steps), [], **told))
        at = tracks_end(found[-1])
    times = np.arange(0.1, at, 1.0)
    watched = [_track(f"cap/cpu{n}", "kHz", times, np.where(times > 89, 1_880_000, 2_850_000)) for n in (6, 7)]
    watched += [_track(f"frequency/cpu{n}", "kHz", times, np.where(times > 89, 1_870_000, 2_840_000)) for n in (6, 7)]
    watched += [_track("temperature/big", "C", times, 35 + np.clip(times / 4, 0, 40))]
    fields = {"protocol": Protocol(128, 256, 0, 40, 2, mode="sustained", cores=[6, 7], min_seconds=180.0)}
    fields |= {"repetitions": found, "tracks": watched, "phases": [Phase("measured", SECOND, int(at * SECOND))]}
    return phone(**{**fields, "recipe": recipe, "energy": Energy("not_available", "no rails"), **changes})


def tracks_end(repetition):
    return (repetition.start_ns + repetition.prefill_ns + sum(repetition.decode_ns)) / SECOND


def conversation(**changes):
    """Five times three turns, each on a longer context."""
    random = np.random.default_rng(2)
    turns, at, found = [(64, 64), (32, 64), (32, 64)], 6.0, []
    for _ in range(5):
        for turn, (reads, makes) in enumerate(turns):
            steps = [int(ns) for ns in random.lognormal(np.log((12 + 1.5 * turn) * 1e6), 0.04, makes - 1)]
            prefill = int(reads * (4 + turn) * 1e6 * random.normal(1, 0.02))
            found.append(Repetition(reads, prefill, steps, 0, [], start_ns=int(at * SECOND), turn=turn))
            at = tracks_end(found[-1]) + 0.01
    plan = Protocol(128, 192, 3, 5, 0, mode="conversation", turns=turns)
    fields = {"repetitions": found, "protocol": plan, "phases": [Phase("measured", 6 * SECOND, int(at * SECOND))]}
    return phone(**{**fields, "tracks": tracks(random, at + 1), **changes})


def comparison():
    """Two bundles in turns, A B B A; B is faster."""
    runs_a = [phone(14.0, seed) for seed in (1, 2)]
    runs_b = [phone(11.0, seed, recipe="int8", bundle="b8") for seed in (3, 4)]
    changes = [
        Change("decode", "tokens/s", "better", "faster", 71.0, 91.0, 1.28, 1.27, 1.29, 0.01),
        Change("net energy per token", "mJ", "can't tell", "can't tell", why="no rails"),
    ]
    told = {"floor": "interleaved runs", "max_regression_percent": 0.0, "changes": changes, "regressions": []}
    runs = [runs_a[0], runs_b[0], runs_a[1], runs_b[1]]
    return Comparison(a="int4", b="int8", runs_a=2, runs_b=2, **told, notes=["A note."], runs=runs)
