"""What runs on a device: POSIX shell, for toybox, busybox and dash alike. Nothing is written into a script; what
varies comes as its arguments.
"""

ENDED = b"\nedge: ended "
"""What a wrapper writes last on stderr, with the exit code. Without it the connection broke, whatever the client says:
adb's and ssh's own exit codes can be a program's as well."""

# Runs "$@" until it ends or stdin does: whoever loses the connection, or is killed, leaves nothing behind. A background
# job's stdin is /dev/null before its redirections are done, so the real one waits as 3.
LEASHED = """
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
{ read -r _; kill "$child"; } <&3 >/dev/null 2>&1 &
leash=$!
exec 3<&-
wait "$child"
code=$?
kill -9 "$leash" 2>/dev/null  # mksh can lose a TERM that comes before its new process has settled
printf '\\nedge: ended %s\\n' "$code" >&2
exit "$code"
"""

# Runs "$@" with what comes on stdin.
FED = """
"$@"
code=$?
printf '\\nedge: ended %s\\n' "$code" >&2
exit "$code"
"""

# LOG PROGRAM ARGS..: a session of its own where there is setsid, so that nothing that ends the connection ends it too.
START = """
log=$1
shift
command -v "$1" >/dev/null || { echo "$1: not found, or not to be run" >&2; exit 127; }
mkdir -p "${log%/*}" && : >>"$log" || exit
if command -v setsid >/dev/null; then
  setsid "$@" </dev/null >>"$log" 2>&1 &
else
  nohup "$@" </dev/null >>"$log" 2>&1 &
fi
echo "$!"
"""

# PID: a process that has ended and that nobody has asked about yet (Z) isn't running.
ALIVE = """
[ -r "/proc/$1/status" ] || exit 1
while read -r key value _; do
  [ "$key" = State: ] || continue
  case $value in [ZX]*) exit 1 ;; *) exit 0 ;; esac
done <"/proc/$1/status"
exit 1
"""

# PID SIGNAL: to its whole group where it leads one, as what START started does.
KILL = """
kill -"$2" -"$1" 2>/dev/null || kill -"$2" "$1" 2>/dev/null || :
"""

# FILE: size of it, size of the part that an earlier try left, the file system's line of df.
INSPECT = """
[ ! -d "$1" ] || { echo "$1 is a folder" >&2; exit 1; }
mkdir -p "${1%/*}" || exit
for file in "$1" "$1.part"; do stat -c %s "$file" 2>/dev/null || echo -1; done
df -Pk "${1%/*}" | tail -n 1
"""

APPEND = 'cat >>"$1.part"'
DROP = 'rm -f "$1.part"'
FINISH = 'chmod "$2" "$1.part" && mv -f "$1.part" "$1"'

# FOLDER, or empty for the usual one: `key=value` lines; after `cpuinfo=`, what /proc/cpuinfo says.
FACTS = r"""
say() { [ -z "$2" ] || printf '%s=%s\n' "$1" "$2"; }
first() { { tr -d '\0' <"$1" | head -n 1; } 2>/dev/null; }
say machine "$(uname -m)"
say kernel_arch "$(first /proc/sys/kernel/arch)"
say bits "$(getconf LONG_BIT 2>/dev/null)"
say memory_kib "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null)"
if command -v getprop >/dev/null 2>&1; then
  for key in ro.product.manufacturer ro.product.model ro.soc.manufacturer ro.soc.model ro.board.platform ro.hardware \
      ro.product.cpu.abi ro.build.version.release ro.build.version.sdk ro.kernel.qemu ro.boot.qemu; do
    say "$key" "$(getprop "$key")"
  done
  folder=/data/local/tmp/edge
  say android 1
  { [ -e /system/bin/linker64 ] || [ -e /system/bin/linker ]; } && say bionic 1
else
  folder=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/edge/device
  say model "$(first /proc/device-tree/model)"
  say compatible "$(tr '\0' '\n' 2>/dev/null </proc/device-tree/compatible | tail -n 1)"
  say os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '"')"
  say kernel "$(uname -sr)"
fi 2>/dev/null
[ -z "$1" ] || folder=$1
say folder "$folder"
there=$folder
while [ -n "$there" ] && [ ! -d "$there" ]; do there=${there%/*}; done
say df "$(df -Pk "${there:-/}" 2>/dev/null | tail -n 1)"
[ -w "${there:-/}" ] && say writable 1
battery=
for supply in /sys/class/power_supply/*; do
  [ "$(first "$supply/type")" = Battery ] && [ "$(first "$supply/scope")" != Device ] || continue
  battery=$(first "$supply/capacity")
  [ -z "$battery" ] || break
done
[ -n "$battery" ] || battery=$(dumpsys battery 2>/dev/null | sed -n 's/^ *level: *//p')
say battery "$battery"
echo cpuinfo=
grep -E '^(processor|model name|Hardware|Model|physical id|core id|CPU implementer|CPU part)' /proc/cpuinfo 2>/dev/null
exit 0
"""
