"""The report from made-up results, in a real browser too."""

import importlib.util
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edge.core.bundle import Gates
from edge.core.errors import EdgeError, UsageError
from edge.core.files import write_json
from edge.core.measurement import Energy, EnergyWindow
from edge.report import card, html, method, plots, table
from edge.report.results import gates_of, join, load_results

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
evaluation, measurement = synthetic.evaluation, synthetic.measurement

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=8000"),
    *("--enable-logging=stderr", "--v=0", "--dump-dom"),
]
ATTACK = "<script>boom()</script>\"'|*x* </style><!-- ‖ é"


def open_in_browser(page, profile):
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={profile}.json", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    net = json.loads(Path(f"{profile}.json").read_text())
    urls = {event["params"]["url"] for event in net["events"] if "url" in event.get("params", {})}
    console = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if ":CONSOLE" in line]
    return done.stdout.decode(), console, urls


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt install chromium")
def test_the_page_draws_its_plots_and_loads_nothing(tmp_path):
    evaluations = [evaluation(), evaluation(subject="b2", recipe=ATTACK, perplexity=4e5)]
    measurements = [measurement(), measurement(9.0, 1, bundle="b2", name=ATTACK, kernels="builtin")]
    measurements += [synthetic.phone(bundle="b3"), synthetic.sustained(), synthetic.conversation(), *synthetic.sweep()]
    page = html.write(evaluations, measurements, tmp_path / "new" / "report.html", title=ATTACK)
    dom, console, urls = open_in_browser(page, tmp_path / "profile")
    assert console == []
    drawn = re.findall(r'<div class="plot js-plotly-plot" id="([^"]+)"', dom)
    names = [figure.name for section in plots.sections(join(evaluations, measurements)) for figure in section.figures]
    assert drawn == names and len(names) == len(set(names)) == 23
    assert dom.count("main-svg") >= len(names)
    assert not [url for url in urls if page.name in url and not url.startswith("file:")]
    assert not [url for url in urls if "plotly" in url or "cdn" in url or "font" in url]
    assert "boom()</script>" not in dom.partition("<script>")[0]  # only as text, before plotly's own code
    assert "&lt;script&gt;boom()" in dom


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt install chromium")
def test_the_check_for_errors_and_loads_sees_them(tmp_path):
    page = tmp_path / "bad.html"
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src 'unsafe-inline'\">"
    page.write_text(f"{policy}<script src='http://127.0.0.1:9/x.js'></script><script>nothing.at.all</script>")
    _, console, _ = open_in_browser(page, tmp_path / "profile")
    assert len(console) == 2


class Loads(HTMLParser):
    """Collects whatever an HTML file would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "srcset", "action", "data")]
        self.found += [value for name, value in attributes if name == "href" and value != "data:,"]


def test_the_file_names_nothing_to_load():
    page = html.render([evaluation()], [measurement()], title="t")
    loads = Loads()
    loads.feed(page)
    assert loads.found == []
    assert "default-src 'none'" in page
    styles = (html.TEMPLATES / "report.css").read_text()
    assert "url(" not in styles and "@import" not in styles


def test_sections_appear_only_with_data():
    rows = join([], [measurement(operators=[], memory=[])])
    assert [section.title for section in plots.sections(rows)] == ["Latency"]
    assert [section.title for section in plots.sections(join([evaluation()], []))] == ["Quality against size"]
    page = html.render([evaluation()], [], title="t")
    assert "Latency" not in page and "Export gates" not in page and "Speed and memory" not in page
    shown = [head.value for head, _ in table.build(join([evaluation(kl_divergence=None)], [])).rows]
    assert shown == ["Size", "Perplexity"]


def test_results_of_one_bundle_share_a_row():
    rows = join(
        [
            evaluation(recipe="float32", kind="torch", subject="elsewhere"),
            evaluation(subject="moved"),
            evaluation(recipe="int3, edge kernels", subject="b3"),
        ],
        [measurement(), measurement(bundle="b3", recipe="other"), measurement(recipe="int8")],
    )
    found = [(row.label, row.evaluation and row.evaluation.subject, row.measurement is not None) for row in rows]
    assert found == [
        ("int4, edge kernels", "moved", True),  # joined by name and recipe
        ("other, edge kernels", "b3", True),  # joined by path
        ("int8, edge kernels", None, True),
        ("float32 in PyTorch", "elsewhere", False),
    ]
    again = [row.label for row in join([], [measurement(), measurement(), measurement(name="other")])]
    same = "SmolLM2-135M-Instruct · int4, edge kernels"
    assert again == [same, f"{same} (2)", "other · int4, edge kernels"]


def test_numbers_of_the_table():
    cells = {head.value: column[0] for head, column in table.build(join([evaluation()], [measurement()])).rows}
    assert (cells["Size"].value, cells["Size"].note) == ("79.3 MB", "4.71 bits per weight")
    assert cells["Perplexity"].note == "original 38.88, +8.8%"
    assert cells["KL divergence"].note == "top-1 agreement 86.2%"
    assert cells["Load time"].value == "84.0 ms" and cells["Peak memory"].value == "249 MB"
    assert (cells["Energy"].value, cells["Energy"].note) == (
        "not available",
        "no RAPL counter under /sys/class/powercap",
    )
    decode = float(cells["Decode"].value.split()[0])
    assert 1000 / 5.6 < decode < 1000 / 4.8 and cells["Decode"].note.startswith("p10–p90 ")


def test_energy_is_gross_and_net_with_its_doubt():
    """9 J over 2 s for 100 tokens; 1.5 W idle, which moved by 0.1 W: 90 mJ gross, 60 net, 2 in doubt."""
    measured = Energy("hardware_counter", "RAPL", 9_000_000, 1_500_000, 100_000, int(2e9), 100)
    cell = table.energy(measured)
    assert cell.value == "90.0 mJ/token" and "net of idle 60.0 ± 2.00" in cell.note
    drowned = Energy("hardware_counter", "RAPL", 3_010_000, 1_500_000, 100_000, int(2e9), 100)
    assert "below resolution" in table.energy(drowned).note


def test_energy_of_prefill_and_decode_apart():
    def window(name, status, net_uj):
        return EnergyWindow(name, status, 100, int(1e9), 9_000_000, 300_000, net_uj, 200_000, {"gain": 100_000.0})

    told = {"tokens": 101, "uncertainty_uj": 400_000, "net_uj": 6_000_000, "net_uncertainty_uj": 300_000}
    windows = [window("prefill", "below_resolution", 50_000), window("decode", "ok", 6_000_000)]
    measured = Energy("hardware_counter", "RAPL: package-0", 18_000_000, 1_500_000, 9, **told, windows=windows)
    cell = table.energy(measured)
    assert cell.value == "60.0 ± 2.00 mJ/token" and "k = 2 (0.017 mWh/token)" in cell.note
    for said in ("prefill below resolution", "gross 18.0 J", "hardware counter", "RAPL: package-0"):
        assert said in cell.note
    gauge = Energy("gauge", "battery", 18_000_000, 1_500_000, 9, **told, windows=windows)
    rows = join([], [measurement(energy=measured), measurement(recipe="int8", energy=gauge)])
    assert "different kinds of source" in " ".join(method.caveats(rows))


def test_noise_and_other_doubts_are_said():
    steady, shaky = measurement(), measurement(seed=1, recipe="int8", device={"cpu": "another"})
    slow = [
        r if i % 2 else type(r)(r.prompt_tokens, r.prefill_ns, [3 * ns for ns in r.decode_ns], r.cpu_ns, [])
        for i, r in enumerate(shaky.repetitions)
    ]
    shaky = measurement(recipe="int8", device={"cpu": "another"}, repetitions=slow)
    said = " ".join(method.caveats(join([evaluation(), evaluation(subject="x", text_sha256="0")], [steady, shaky])))
    for doubt in ("for int8", "virtual machine", "same machine", "same text", "No energy is given: no RAPL"):
        assert doubt in said
    assert "noisy: CV" in str(table.build(join([], [shaky])))
    assert "varied" not in " ".join(method.caveats(join([], [steady])))


def test_a_result_that_has_hardly_any_fields_filled():
    rows = join([], [measurement(device={}, operators=[], memory=[], phases=[])])
    assert "not known" in str(method.facts(rows))
    assert card.render([], [measurement(device={})], title="t")


def test_gates_come_from_the_very_bundle(tmp_path):
    gates = Gates(0.001, 0.1, 0.99, 0.2, True, ["lm_head"])
    assert gates_of(measurement(bundle=str(tmp_path))) is None
    (tmp_path / "manifest.json").write_text("{}")
    assert gates_of(measurement(bundle=str(tmp_path))) is None  # another bundle took its place
    assert ("Slower than fp32", "lm_head") in method._gates(gates)


def test_files_of_both_kinds_are_read(tmp_path):
    write_json(tmp_path / "e.json", evaluation())
    write_json(tmp_path / "m.json", measurement())
    loaded = load_results([tmp_path / "m.json", tmp_path / "e.json"])
    assert loaded.evaluations == [evaluation()] and loaded.measurements == [measurement()]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ('{"schema": 1}', "report.kind"),
        ("not json", "file.corrupt"),
        ("[]", "report.kind"),
        ("3", "file.corrupt"),
        ('{"schema": 1, "perplexity": 3.0}', "file.corrupt"),
        ('{"schema": 2, "perplexity": 3.0}', "file.newer"),
    ],
)
def test_files_that_are_no_results(tmp_path, content, code):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(EdgeError) as error:
        load_results([tmp_path / "x.json"])
    assert error.value.code == code and error.value.hint


def test_nothing_to_report(tmp_path):
    for call in (lambda: load_results([tmp_path / "absent.json"]), lambda: html.write([], [], tmp_path / "r.html")):
        with pytest.raises(UsageError):
            call()


def test_card_is_plain_markdown(tmp_path):
    page = card.write([evaluation(recipe=ATTACK, subject="x")], [measurement()], tmp_path / "card.md", title="a\nb|c")
    text = page.read_text()
    assert text.startswith("# a b\\|c\n")
    assert "<script>" not in text and "&lt;script&gt;" in text and "\\*x\\*" in text
    tables = [[row for row in block.splitlines() if row.startswith("| ")] for block in text.split("\n\n")]
    widths = [{len(re.findall(r"(?<!\\)\|", row)) for row in rows} for rows in tables if rows]
    assert all(len(width) == 1 for width in widths) and max(map(len, tables)) >= 10
    assert "tokens/s (p10–p90 " in text
    assert "## Keep in mind" in text
