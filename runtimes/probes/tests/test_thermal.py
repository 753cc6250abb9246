"""Temperatures from a simulated tree and from quoted text."""

from edge.runtimes.probes.thermal import Temperature, ThermalService, parse_thermalservice, zones

DUMP = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
 Temperature{mValue=99.0, mType=3, mName=TYPE_SKIN, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
 Temperature{mValue=25.3, mType=4, mName=TYPE_SKIN, mStatus=0}
 Temperature{mValue=-99.9, mType=0, mName=CPU0, mStatus=0}
Current cooling devices from HAL:
 CoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
"""


def test_thermalservice_tells_what_is_current():
    """Cached values and sensors without a reading are no temperatures."""
    assert parse_thermalservice(DUMP) == ThermalService(0, True, [Temperature("TYPE_SKIN", 25.3, 4, 0)])
    assert parse_thermalservice("Can't find service") == ThermalService(None, False, [])


def test_zones_in_the_kernels_order(tmp_path):
    for number, (kind, temp) in {
        0: ("cpu", "41500"),
        10: ("gpu", "-256000"),
        2: ("skin", "30000"),
        3: ("off", ""),
    }.items():
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{temp}\n")
    assert zones(tmp_path) == [Temperature("cpu", 41.5), Temperature("skin", 30.0)]
    assert zones(tmp_path / "absent") == []
