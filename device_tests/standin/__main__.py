"""Runs a command with stand-in devices to hand: python -m device_tests.standin -- edge devices"""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from edge.core.errors import EdgeError

from . import Bench, fetch_tools

EXAMPLES = """\
examples, from the top of the repository:
  python -m device_tests.standin -- edge devices
  python -m device_tests.standin --phones 2 --jetsons 0 -- sh -c 'adb devices -l; adb -s $PHONE0 shell getprop'
  python -m device_tests.standin -- sh -c 'ssh $JETSON0 uname -m'
  python -m device_tests.standin -- edge profile BUNDLE --device ssh:standin-jetson0
  python -m device_tests.standin                          a shell
The command finds $PHONE0, $PHONE1 (adb serials), $JETSON0 (a name for ssh), and each device's folder on this machine in
$PHONE0_FOLDER and so on: data/ is a phone's /data, home/ the Jetson's home, sys/ their /sys. adb and ssh are the real
ones, with a server, keys and a configuration of their own. There is no network but the devices'. All of it ends with
the command. Programs on the devices run under QEMU: nothing measured there means anything.
"""


def main() -> int:
    name, form = "python -m device_tests.standin", argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(name, description=__doc__, epilog=EXAMPLES, formatter_class=form)
    parser.add_argument("--phones", type=int, default=1, help="how many phones (default 1)")
    parser.add_argument("--jetsons", type=int, default=1, help="how many Jetsons (default 1)")
    parser.add_argument("command", nargs="*", default=["bash"], help="after --: what to run (default: a shell)")
    options = parser.parse_args()
    try:
        bench = Bench()
    except pytest.skip.Exception as skipped:
        print(skipped, file=sys.stderr)
        return 1
    try:
        fetch_tools()
    except EdgeError as error:
        print(f"edge profile will not work there: {error}", file=sys.stderr)
    with bench:
        names = {}
        for number in range(options.phones):
            phone = bench.phone()
            names |= {f"PHONE{number}": phone.serial, f"PHONE{number}_FOLDER": str(phone.folder)}
        for number in range(options.jetsons):
            jetson = bench.jetson()
            names |= {f"JETSON{number}": jetson.alias, f"JETSON{number}_FOLDER": str(jetson.folder)}
        return subprocess.run(options.command, env={**bench.environment, **names}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
