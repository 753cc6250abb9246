"""Sweeps over lengths, threads and clusters of cores, and the turns that a user gives."""

import json

import pytest

from edge.core.errors import DeviceUnavailable, EdgeError, UsageError
from edge.profiles import sweep as sweeping
from edge.profiles.clusters import Cluster, clusters, core_sets, cores_text, parse_cores
from edge.profiles.conversation import turns
from edge.profiles.plan import Plan
from edge.profiles.run import plan_of
from edge.profiles.sustained import GENERATED_TOKENS, LEAST_SECONDS
from edge.profiles.sweep import sweep, variants
from edge.profiles.tests.bigram import make_bundle


def tree(root, *kinds, online=None):
    """kinds: (cores, capacity or None, maximum in kHz or None)."""
    cpus = root / "sys/devices/system/cpu"
    for cores, capacity, khz in kinds:
        for core in cores:
            (cpus / f"cpu{core}/cpufreq").mkdir(parents=True)
            if capacity:
                (cpus / f"cpu{core}/cpu_capacity").write_text(f"{capacity}\n")
            if khz:
                (cpus / f"cpu{core}/cpufreq/cpuinfo_max_freq").write_text(f"{khz}\n")
    if online:
        (cpus / "online").write_text(online + "\n")
    return root


def test_a_phones_clusters(tmp_path):
    root = tree(tmp_path, (range(4), 325, 1803000), (range(4, 7), 871, 2419000), ([7], 1024, 2841000), online="0-7")
    assert clusters(root) == [
        Cluster((7,), 1024, 2841000),
        Cluster((4, 5, 6), 871, 2419000),
        Cluster((0, 1, 2, 3), 325, 1803000),
    ]
    assert core_sets(root) == [[7], [4, 5, 6], [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_cores_that_are_off_are_left_out(tmp_path):
    root = tree(tmp_path, (range(4), 400, 1500000), (range(4, 8), 1024, 2500000), online="0-3,6-7")
    assert core_sets(root) == [[6, 7], [0, 1, 2, 3], [0, 1, 2, 3, 6, 7]]


@pytest.mark.parametrize(
    "kinds",
    [
        [(range(2), None, None)],
        [(range(4), None, 3400000), (range(4, 8), None, 3500000)],  # favoured cores of one kind
        [],
    ],
)
def test_a_machine_of_one_kind_has_nothing_to_sweep(tmp_path, kinds):
    assert core_sets(tree(tmp_path, *kinds)) == [[]]


def test_clusters_by_clock_alone(tmp_path):
    root = tree(tmp_path, (range(4), None, 3000000), (range(4, 12), None, 2000000))
    assert core_sets(root) == [[*range(4)], [*range(4, 12)], [*range(12)]]


@pytest.mark.parametrize(("text", "cores"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("0-1,4,6-7", [0, 1, 4, 6, 7])])
def test_cores_are_written_as_the_kernel_writes_them(text, cores):
    assert parse_cores(text) == cores and cores_text(cores) == text


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,", "-1", "1-"])
def test_what_names_no_cores(text):
    with pytest.raises(UsageError, match="names no cores"):
        parse_cores(text)


def test_every_combination_has_its_file(tmp_path):
    several = variants(prompt_tokens=[16, 32], generated_tokens=[8], threads=[1, 2], cores=[[4, 5], [0, 7]])
    assert [v.suffix for v in several][:3] == ["c4-5-t1-p16", "c4-5-t1-p32", "c4-5-t2-p16"] and len(several) == 8
    assert several[-1].suffix == "c0_7-t2-p32"
    assert several[0].options == {"cores": [4, 5], "threads": 1, "prompt_tokens": 16, "generated_tokens": 8}
    assert several[0].file(tmp_path / "r.json") == tmp_path / "r-c4-5-t1-p16.json"
    assert [(v.suffix, v.options) for v in variants(threads=[2])] == [("", {"threads": 2})]
    assert variants()[0].file(tmp_path / "r.json") == tmp_path / "r.json"


def test_a_sweep_goes_on_after_a_failure_and_ends_with_it(tmp_path, monkeypatch, capsys):
    seen = []

    def measure(bundle, *, output, threads, **common):
        seen.append((threads, output.name, common))
        if threads in failures:
            raise failures[threads]
        return threads

    monkeypatch.setattr(sweeping, "profile", measure)
    bundle, several = make_bundle(tmp_path / "bundle"), variants(threads=[1, 2, 3])
    common = {"output": tmp_path / "r.json", "device": "cpu", "prompt_tokens": 8, "generated_tokens": 4}
    failures = {}
    assert sweep(bundle, several, **common) == [1, 2, 3]
    assert seen[1] == (2, "r-t2.json", {"device": "cpu", "prompt_tokens": 8, "generated_tokens": 4})
    failures = {2: EdgeError("profile.died", "too little memory")}
    with pytest.raises(EdgeError, match="too little memory"):
        sweep(bundle, several, **common)
    assert [threads for threads, *_ in seen[3:]] == [1, 2, 3] and "t2: too little memory" in capsys.readouterr().err
    failures = {1: DeviceUnavailable("device.lost", "gone")}
    with pytest.raises(DeviceUnavailable):
        sweep(bundle, several, **common)
    assert len(seen) == 7


def test_plans_are_checked_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "profile", None)
    with pytest.raises(UsageError, match="context of 64"):
        sweep(make_bundle(tmp_path / "bundle"), variants(prompt_tokens=[8, 64]), generated_tokens=4)


def test_plans_by_mode(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    long = plan_of(bundle, prompt_tokens=8, mode="sustained", generated_tokens=8)
    assert (long.warm_ups, long.min_seconds, long.generated_tokens) == (0, LEAST_SECONDS, 8)
    assert plan_of(bundle, prompt_tokens=8, mode="sustained", generated_tokens=8, max_seconds=9.0).min_seconds == 9
    with pytest.raises(UsageError, match=str(8 + GENERATED_TOKENS)):
        plan_of(bundle, prompt_tokens=8, mode="sustained")
    assert plan_of(bundle, prompt_tokens=8, generated_tokens=4, cores=[2, 3]).threads == 2
    assert plan_of(bundle, prompt_tokens=8, generated_tokens=4, cores=[2, 3], threads=1).threads == 1


def test_turns_as_pairs_and_as_a_file(tmp_path):
    assert turns("64:32, 32:64", tmp_path) == {"turns": [(64, 32), (32, 64)]}
    file = tmp_path / "turns.json"
    file.write_text(json.dumps([[1, 2, 3], {"prompt": [4, 5], "generated_tokens": 9}]))
    found = turns(str(file), tmp_path)
    assert found == {"turns": [(3, 64), (2, 9)], "prompts": [[1, 2, 3], [4, 5]]}
    assert Plan(mode="conversation", **found).prompts == found["prompts"]


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", '[{"prompt": "a", "tokens": 1}]', "["])
def test_a_file_that_has_no_prompts(tmp_path, content):
    file = tmp_path / "turns.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"turns\.json"):
        turns(str(file), tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        turns("64-32", tmp_path)
