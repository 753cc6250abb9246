#!/bin/sh
# Unpacks ONNX Runtime's official C header into the folder $1 and prints its path, for test_ort_abi.py:
#     EDGE_ORT_HEADER=$(sh kernels/tests/fetch_ort_header.sh build/ort) make test
# Takes libonnxruntime-dev (85 KB) of Debian trixie from the mirror that this Debian machine uses; installs nothing and
# leaves the machine's own package lists alone.
set -eu
sources=/etc/apt/sources.list.d/debian.sources
if [ ! -f "$sources" ]; then
  echo "no $sources: this works on Debian 12 and later" >&2
  exit 1
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
# the first stanza is the main archive; security and the like have no such suite
awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1' "$sources" | sed -E 's/^Suites:.*/Suites: trixie/' > "$work/trixie.sources"
cat > "$work/apt.conf" <<EOF
Dir::Etc::sourcelist "$work/trixie.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
EOF
export APT_CONFIG="$work/apt.conf"
cd "$work"
apt-get update -qq >&2
apt-get download -qq libonnxruntime-dev >&2
dpkg -x libonnxruntime-dev_*.deb "$out"
find "$out" -name onnxruntime_c_api.h
