"""Readers of power on simulated files and quoted lines: formats, traps and what is said where there is nothing."""

import ctypes
import importlib.util

import numpy as np
import pytest

from edge.runtimes.probes.power import battery, ina3221, meter_csv, nvml, odpm, powermetrics, tegrastats
from edge.runtimes.probes.power.rails import total_rails
from edge.runtimes.probes.power.series import (
    Accuracy,
    Channel,
    PowerUnavailableError,
    Recorder,
    Series,
    series_of,
    unwrap,
)

NANO = "EMC_FREQ 3%@204 GR3D_FREQ 0%@76 POM_5V_IN 933/933 POM_5V_GPU 0/0 POM_5V_CPU 84/105"
XAVIER = "GPU@28C GPU 1155/1155 CPU 385/385 SOC 2504/2503 CV 0/0 VDDRQ 192/192 SYS5V 2692/2692"
AGX_ORIN = (
    "01-03-2023 16:07:54 RAM 2257/30536MB (lfb 5392x4MB) GR3D_FREQ 0%@0 CV0@-256C VDD_GPU_SOC 2390mW/2390mW "
    "VDD_CPU_CV 796mW/796mW VIN_SYS_5V0 3522mW/3522mW NC 0mW/0mW"
)
ORIN_NANO = (
    "EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off tj@53.968C VDD_IN 12479mW/12479mW "
    "VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
JETPACK_7 = "GR3D_FREQ 12%@[1300,1300] VDD_GPU_SOC 5139mW/5140mW/5141mW"
THOR = "GR3D_FREQ @[1000,1000,1000] VDD_GPU -392mW/0mW/9mW VIN 23000mW/22000mW/30000mW"


@pytest.mark.parametrize(
    ("line", "power_mw", "total"),
    [
        (NANO, {"POM_5V_IN": 933, "POM_5V_GPU": 0, "POM_5V_CPU": 84}, ("POM_5V_IN",)),
        (
            XAVIER,
            {"GPU": 1155, "CPU": 385, "SOC": 2504, "CV": 0, "VDDRQ": 192, "SYS5V": 2692},
            ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        ),
        (
            AGX_ORIN,
            {"VDD_GPU_SOC": 2390, "VDD_CPU_CV": 796, "VIN_SYS_5V0": 3522},
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        (ORIN_NANO, {"VDD_IN": 12479, "VDD_CPU_GPU_CV": 4667, "VDD_SOC": 2817}, ("VDD_IN",)),
        (JETPACK_7, {"VDD_GPU_SOC": 5139}, ("VDD_GPU_SOC",)),
        (THOR, {"VDD_GPU": -392, "VIN": 23000}, ("VIN",)),
    ],
)
def test_tegrastats_gives_the_instantaneous_power_and_the_whole(line, power_mw, total):
    """RAM, swap and temperatures are no rails; NC is none either."""
    found = tegrastats.parse(line).power_mw
    assert found == power_mw and total_rails(found) == total


def test_tegrastats_with_and_without_a_date_and_with_cores_that_are_off():
    cores = "CPU [3%@729,off,off,0%@729] "
    for line in (NANO, XAVIER, AGX_ORIN, ORIN_NANO, JETPACK_7, THOR):
        undated = line.removeprefix("01-03-2023 16:07:54 ")
        assert tegrastats.parse(cores + undated).power_mw == tegrastats.parse(line).power_mw
        assert tegrastats.parse("01-03-2023 16:07:54 " + cores + undated).power_mw == tegrastats.parse(line).power_mw


def test_tegrastats_engines_and_temperatures():
    assert tegrastats.parse(XAVIER).temperature_c == {"GPU": 28.0}
    assert tegrastats.parse(AGX_ORIN).temperature_c == {}  # -256 means none
    orin = tegrastats.parse(ORIN_NANO)
    assert orin.temperature_c == {"tj": 53.968}
    assert orin.engines["EMC_FREQ"] == tegrastats.Engine(43, (2133,))
    assert orin.engines["GR3D_FREQ"] == tegrastats.Engine(63, (621,)) and orin.engines["NVDEC"].clock_mhz == ()
    assert tegrastats.parse(JETPACK_7).engines["GR3D_FREQ"] == tegrastats.Engine(12, (1300, 1300))
    assert tegrastats.parse(THOR).engines["GR3D_FREQ"] == tegrastats.Engine(None, (1000, 1000, 1000))
    assert tegrastats.parse(NANO).engines["GR3D_FREQ"] == tegrastats.Engine(0, (76,))


def test_tegrastats_series_counts_nothing_twice_and_sees_the_sensors_step():
    """AGX Orin's rails step by 398 mW: 20 V at 20 mA."""
    lines = [(i * 10**8, AGX_ORIN.replace("2390mW/", f"{mw}mW/")) for i, mw in enumerate((2390, 2788, 3186))]
    whole, *rails = tegrastats.series(lines, interval_ns=10**8)
    assert whole.value.tolist() == [1000.0 * (mw + 796 + 3522) for mw in (2390, 2788, 3186)]
    assert rails[0].accuracy.resolution == pytest.approx(398_000) and rails[0].accuracy.delay_ns == 10**8
    with pytest.raises(PowerUnavailableError, match="no power"):
        tegrastats.series([(0, "RAM 1/2MB")])


def write(root, files):
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def hwmon(number, *rails):
    chip = f"sys/bus/i2c/devices/1-004{number}/hwmon/hwmon{3 + number}"
    files = {f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/in7_input": 1}
    for n, (name, mv, ma) in enumerate(rails, 1):
        files |= {f"{chip}/in{n}_label": name, f"{chip}/in{n}_input": mv, f"{chip}/curr{n}_input": ma}
        files[f"{chip}/in{n + 3}_input"] = 4000  # shunt µV, not a voltage of a rail
    return files


def iio(*rails):
    chip = "sys/bus/i2c/devices/6-0040/iio:device0"
    files = {}
    for n, (name, mv, ma) in enumerate(rails):
        files |= {f"{chip}/rail_name_{n}": name, f"{chip}/in_voltage{n}_input": mv, f"{chip}/in_current{n}_input": ma}
        files[f"{chip}/in_power{n}_input"] = mv * ma // 1000
    return files


def test_ina3221_of_two_chips_without_an_input_rail(tmp_path):
    """A simulated AGX Orin: the sum is the board's own; DDR is behind the 5 V rail."""
    first = hwmon(0, ("VDD_GPU_SOC", 19800, 120), ("VDD_CPU_CV", 19800, 40), ("VIN_SYS_5V0", 5000, 700))
    write(tmp_path, first | hwmon(1, ("NC", 5000, 9), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0)))
    source = ina3221.open_source(tmp_path, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"])
    assert source.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    power = {channel.name: channel.read() for channel in source.channels}
    assert power == {
        "VDD_GPU_SOC": 19800 * 120,
        "VDD_CPU_CV": 19800 * 40,
        "VIN_SYS_5V0": 5000 * 700,
        "VDDQ_VDD2_1V8AO": 1_000_000,
    }


def test_ina3221_takes_the_input_rail_and_the_shunt_as_they_are(tmp_path):
    files = hwmon(0, ("VDD_IN", 5000, 900), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 200))
    files["sys/bus/i2c/devices/1-0040/hwmon/hwmon3/shunt1_resistor"] = 2000
    source = ina3221.open_source(write(tmp_path, files))
    assert source.total == ("VDD_IN",)
    assert source.channels[0].accuracy.resolution == 5000 * 20 and source.channels[1].accuracy.resolution == 5000 * 8


def test_jetpack_4_names_its_rails_in_iio(tmp_path):
    chip = "sys/bus/i2c/devices/6-0040/iio:device0"
    files = iio(("POM_5V_IN", 5080, 400), ("POM_5V_GPU", 5080, 10), ("POM_5V_CPU", 5080, 90))
    source = ina3221.open_source(write(tmp_path, files))
    assert source.total == ("POM_5V_IN",) and source.channels[0].read() == 5080 * 400
    (tmp_path / chip / "in_current0_input").unlink()
    assert ina3221.open_source(tmp_path).channels[0].read() == 2032 * 1000


def ina238(millivolts, milliamps):
    chip = "sys/bus/i2c/devices/2-0044/hwmon/hwmon9"
    readings = {"in0_input": 7, "in1_input": millivolts, "curr1_input": milliamps}
    readings |= {"name": "ina238", "power1_input": millivolts * milliamps}
    return {f"{chip}/{name}": value for name, value in readings.items()}


def test_thors_input_rail_has_no_label(tmp_path):
    """A simulated AGX Thor: VIN is the whole, the three rails of the INA3221 are behind it."""
    rails = (("VDD_GPU", 20000, 300), ("VDD_CPU_SOC_MSS", 20000, 400), ("VIN_SYS_5V0", 5000, 900))
    source = ina3221.open_source(write(tmp_path, hwmon(0, *rails) | ina238(20000, 1150)))
    assert source.total == ("VIN",) and len(source.channels) == 4
    assert source.channels[-1].read() == 23_000_000


BOARDS = {
    "Orin Nano": hwmon(0, ("VDD_IN", 5000, 900), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 200)),
    "AGX Orin": hwmon(0, ("VDD_GPU_SOC", 19800, 120), ("VDD_CPU_CV", 19800, 40), ("VIN_SYS_5V0", 5000, 700)),
    "AGX Xavier": hwmon(0, ("GPU", 19000, 60), ("CPU", 19000, 20), ("SOC", 19000, 130))
    | hwmon(1, ("CV", 19000, 0), ("VDDRQ", 19000, 10), ("SYS5V", 5000, 540)),
    "Thor": hwmon(0, ("VDD_GPU", 20000, 300), ("NC", 20000, 9), ("VIN_SYS_5V0", 5000, 900)) | ina238(20000, 1150),
    "Nano on JetPack 4": iio(("POM_5V_IN", 5080, 400), ("POM_5V_GPU", 5080, 10), ("POM_5V_CPU", 5080, 90)),
}


@pytest.mark.parametrize("board", BOARDS)
def test_rails_are_those_that_jetson_stats_finds(tmp_path, board):
    """An independent reader of the same simulated trees: every rail, its power in whole mW, and the sum."""
    jtop = pytest.importorskip("jtop.core.power", reason="needs jetson-stats, for tests only")
    devices = write(tmp_path, BOARDS[board]) / "sys/bus/i2c/devices"
    for device in devices.iterdir():
        (device / "name").write_text("ina238" if list(device.glob("hwmon/*/power1_input")) else "ina3221x")
    found = jtop.find_all_i2c_power_monitor(str(devices))
    readings = {name: jtop.read_power_status(data) for name, data in found.items()}
    theirs = {name: one.get("power", one["volt"] * one["curr"] // 1000) for name, one in readings.items()}
    source = ina3221.open_source(tmp_path)
    ours = {channel.name: channel.read() / 1000 for channel in source.channels}
    assert theirs == pytest.approx(ours, abs=1)
    whole, _ = jtop.total_power({name: {"power": mw, "avg": 0} for name, mw in theirs.items()})
    assert whole["power"] == pytest.approx(sum(ours[name] for name in source.total), abs=len(ours))


def test_ina3221_that_is_not_there(tmp_path):
    with pytest.raises(PowerUnavailableError, match="no INA3221"):
        ina3221.open_source(tmp_path)
    write(tmp_path, hwmon(0, ("VDD_IN", "?", 1)))
    with pytest.raises(PowerUnavailableError, match="can't be read"):
        ina3221.open_source(tmp_path)


SUPPLY = "sys/class/power_supply/battery"


@pytest.mark.parametrize(("current", "voltage"), [(-512_000, 3_872_000), (512, 3872), (512_000, 3_872_000)])
def test_battery_in_either_unit_and_sign(tmp_path, current, voltage):
    files = {"type": "Battery", "status": "Discharging", "current_now": current, "voltage_now": voltage}
    source = battery.open_source(write(tmp_path, {f"{SUPPLY}/{name}": value for name, value in files.items()}))
    assert source.channels[0].read() == pytest.approx(512 * 3872) and source.channels[0].source == "gauge"


def test_battery_that_is_charged_tells_nothing(tmp_path):
    with pytest.raises(PowerUnavailableError, match="no battery"):
        battery.open_source(tmp_path)
    files = {"type": "Battery", "status": "Charging", "current_now": 1, "voltage_now": 1}
    with pytest.raises(PowerUnavailableError, match="unplug"):
        battery.open_source(write(tmp_path, {f"{SUPPLY}/{name}": value for name, value in files.items()}))


def test_battery_is_calibrated_by_watching_it():
    times = [i * 10**9 for i in range(60)]
    raw = [-300_000 - 1000 * (i // 5 % 7) for i in range(60)]  # µA, negative out, renewed every 5 s
    found = battery.calibrate(times, raw)
    assert found == battery.Calibration(1, -1, 5 * 10**9)
    series = battery.power_series(times, raw, [4000.0] * 60, found)
    assert len(series.time_ns) == 12 + 1 and series.value[0] == pytest.approx(1.2e6) and series.source == "gauge"
    for bad, reason in (([0] * 60, "reads 0"), ([5] * 30 + [-5] * 30, "sign"), ([7] * 60, "did not change")):
        with pytest.raises(PowerUnavailableError, match=reason):
            battery.calibrate(times, bad)


def test_dumpsys_battery():
    text = "Current Battery Service state:\n  USB powered: true\n  Charge counter: 10000\n  status: 2\n  level: 44\n"
    found = battery.parse_dumpsys(text + "  voltage: 3872\n  temperature: 280\n")
    assert found == battery.DumpsysBattery(3872, 28.0, 44, 10000, True, False)
    stopped = "Current Battery Service state:\n  (UPDATES STOPPED -- use 'reset' to restart)\n  USB powered: false\n"
    assert battery.parse_dumpsys(stopped) == battery.DumpsysBattery(None, None, None, None, False, True)


def test_powermetrics():
    assert powermetrics.parse("Combined Power (CPU + GPU + ANE): 1172 mW") == ("Combined", 1172.0)
    assert powermetrics.parse("GPU Power: 1.5 W") == ("GPU", 1500.0)
    assert powermetrics.parse("E-Cluster HW active frequency: 1020 MHz") is None
    series = powermetrics.series([(0, "CPU Power: 900 mW"), (0, "Combined Power (CPU + GPU + ANE): 1172 mW")], 10**8)
    assert series.value.tolist() == [1_172_000] and series.source == "model"
    with pytest.raises(PowerUnavailableError, match="needs root"):
        powermetrics.series([(0, "CPU Power: 900 mW")], 10**8)


class FakeNvml:
    """Simulated: answers like the driver's library."""

    def __init__(self, energy_status=0, field_status=0):
        self.energy_status, self.field_status = energy_status, field_status

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 0 if index == 0 else 2

    def nvmlDeviceGetName(self, handle, name, size):
        name.value = b"Simulated GPU"
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
        value._obj.value = 123_456_789_012
        return self.energy_status

    def nvmlDeviceGetPowerUsage(self, handle, value):
        value._obj.value = 70_500
        return 0

    def nvmlDeviceGetFieldValues(self, handle, count, field):
        assert field._obj.field_id == 186 and ctypes.sizeof(field._obj) == 40
        field._obj.value, field._obj.status = 71_000, self.field_status
        return 0


def test_nvml_prefers_the_counter():
    channel = nvml.open_source(0, FakeNvml()).channels[0]
    assert channel.kind == "energy" and channel.read() == 123_456_789_012_000
    power = nvml.open_source(0, FakeNvml(energy_status=3)).channels[0]
    assert power.kind == "power" and power.read() == 71_000_000 and power.accuracy.delay_ns == 0
    averaged = nvml.open_source(0, FakeNvml(energy_status=3, field_status=3)).channels[0]
    assert averaged.read() == 70_500_000 and averaged.accuracy.delay_ns == 10**9
    with pytest.raises(PowerUnavailableError, match="no GPU 1"):
        nvml.open_gpu(1, FakeNvml())


def meter_file(tmp_path, text):
    file = tmp_path / "meter.csv"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "time_ns", "power_uw"),
    [
        ("Time(ms),Main(mA),Main Voltage(V),\n0.0,100,4.0,\n0.0002,200,4.0,\n0.0004,300,4.0,\n", 200_000, 800_000),
        ("Time (s),Main Avg Power (mW),Main Avg Current (mA)\n0,1,9\n0.1,2,9\n0.2,3,9\n", 100_000_000, 2000),
        ("time_us,current_A,voltage_mV\n0,1,5000\n1000,2,5000\n2000,3,5000\n", 1_000_000, 10_000_000),
        ("Timestamp [ms];x\n", None, None),
        ("time_ms,USB Current (mA),Main Current (mA),Voltage [V]\n0,9,1,2\n1,9,2,2\n2,9,3,2\n", 1_000_000, 4000),
        ("Time(ms),Main(mA),Main Voltage(V)\n0,np.float64(1),2\n1,np.float64(2.5),2\n2,1,2\n", 1_000_000, 5000),
    ],
)
def test_meter_files(tmp_path, text, time_ns, power_uw):
    """The first is pyMonsoon's: its `Time(ms)` are seconds."""
    if time_ns is None:
        with pytest.raises(PowerUnavailableError, match="needs time and power"):
            meter_csv.read(meter_file(tmp_path, text))
        return
    series = meter_csv.read(meter_file(tmp_path, text))
    assert (series.time_ns[1], series.value[1]) == (time_ns, pytest.approx(power_uw))
    assert series.source == "external_meter"


def test_a_meters_clock_is_found_from_the_loads_pattern():
    """Simulated: 200 Hz, 37 s off and 50 ppm fast."""
    edges = [10**12 + round(1e9 * s) for s in (2, 5, 6, 10, 13, 14.5)]
    here = 10**12 + np.arange(0, 18 * 10**9, 5_000_000)
    on = np.searchsorted(edges, here, "right") % 2
    own = np.round((here - 10**12) * 1.00005 + 37e9).astype(np.int64)
    noise = np.random.default_rng(0).normal(0, 1e5, len(own))
    meter = Series("m", "power", "external_meter", own, 2e6 + 3e6 * on + noise, Accuracy())
    found = meter_csv.align(meter, edges)
    there = meter_csv.aligned(meter, found)
    assert found.edges == 6 and np.abs(there.time_ns - here).max() < 2 * found.doubt_ns
    assert there.accuracy.clock_ns == found.doubt_ns < 10_000_000
    flat = Series("m", "power", "external_meter", own, 2e6 + noise, Accuracy())
    with pytest.raises(PowerUnavailableError, match="not to be seen"):
        meter_csv.align(flat, edges)


@pytest.mark.skipif(importlib.util.find_spec("perfetto") is None, reason="needs perfetto")
def test_rails_of_a_perfetto_trace(tmp_path):
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    trace = Trace()
    clocks = trace.packet.add().clock_snapshot.clocks
    clocks.add(clock_id=6, timestamp=9_000_000_000)
    clocks.add(clock_id=3, timestamp=4_000_000_000)
    for ms, uws in ((9000, 100), (9100, 500)):
        rails = trace.packet.add().power_rails
        rails.energy_data.add(index=0, timestamp_ms=ms, energy=uws)
        rails.energy_data.add(index=1, timestamp_ms=ms, energy=7 * uws)
    for index, name in enumerate(("S2M_VDD_CPUCL2", "L15M_VDD_SLC_M")):
        rails.rail_descriptor.add(index=index, rail_name=name, subsys_name="x")
    (tmp_path / "trace").write_bytes(trace.SerializeToString())
    series = odpm.read_trace(tmp_path / "trace")
    assert [s.name for s in series] == ["S2M_VDD_CPUCL2", "L15M_VDD_SLC_M"]
    assert series[0].time_ns.tolist() == [4_000_000_000, 4_100_000_000] and series[0].value.tolist() == [100, 500]
    assert odpm.whole(series).value.tolist() == [100, 500]  # a buck may feed the linear regulator
    (tmp_path / "trace").write_bytes(Trace().SerializeToString())
    with pytest.raises(PowerUnavailableError, match="no power rails"):
        odpm.read_trace(tmp_path / "trace")


def test_counters_wrap_and_may_be_read_too_rarely():
    times = np.arange(6) * 10**9
    assert unwrap(np.array([80.0, 90, 0, 10, 20, 30]), times, 100, "c").tolist() == [80, 90, 100, 110, 120, 130]
    times = np.array([0, 1, 2, 3, 4, 500]) * 10**9
    with pytest.raises(PowerUnavailableError, match="more than once"):
        unwrap(np.array([0.0, 10, 20, 30, 40, 50]), times, 100, "c")
    with pytest.raises(PowerUnavailableError, match="backwards"):
        unwrap(np.array([5.0, 4.0]), times[:2], None, "c")


def test_a_reading_that_fails_is_a_gap():
    values = iter([1.0, PowerUnavailableError("bus"), 3.0])

    def read():
        value = next(values)
        if isinstance(value, Exception):
            raise value
        return value

    recorder = Recorder([[Channel("r", "power", "gauge", read, Accuracy())]], interval_s=60)
    for _ in range(3):
        recorder.sweep()
    assert recorder.series()[0].value.tolist() == [1.0, 3.0] and recorder.errors == ["bus"]


def test_series_refuse_what_cant_be():
    channel = Channel("r", "power", "gauge", lambda: 0.0, Accuracy())
    with pytest.raises(ValueError, match="don't rise"):
        series_of(channel, [2, 1], [0, 0])
    with pytest.raises(ValueError, match="2 times and 1 values"):
        series_of(channel, [1, 2], [0])
