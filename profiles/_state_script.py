"""What reads and sets a device's state, on the device: one POSIX shell script, nothing is ever written into it.

`ACTION FOLDER ROOT ..`; FOLDER is where the state to give back lies, ROOT what is before /sys. Actions: `read`; `put`
and `restore` with lines `name value`; `keep` stores such lines; `beat N` says that the host is
there; `guard SECONDS STEP` restores by itself when that wasn't heard for SECONDS, and ends when FOLDER goes. `restore`
takes the lines in FOLDER, and those on stdin where FOLDER is gone.
"""

SCRIPT = r"""
action=$1 folder=$2 root=$3
LC_ALL=C
has() { command -v "$1" >/dev/null 2>&1; }
tell() { [ -z "$2" ] || printf '%s\t%s\n' "$1" "$2"; }
governor() { echo "$root/sys/devices/system/cpu/${1#governor-}/cpufreq/scaling_governor"; }

get() {
  case $1 in
  governor-cpu*) cat "$(governor "$1")" ;;
  *) has settings || return 0 ;;
  esac
  case $1 in
  brightness) settings get system screen_brightness ;;
  brightness-mode) settings get system screen_brightness_mode ;;
  screen-timeout) settings get system screen_off_timeout ;;
  airplane) settings get global airplane_mode_on ;;
  battery-saver) settings get global low_power ;;
  screen) case $(dumpsys power | grep -m 1 mWakefulness=) in *=Awake*) echo on ;; *=*) echo off ;; esac ;;
  esac
}

set_or_delete() { if [ "$3" = null ]; then settings delete "$1" "$2"; else settings put "$1" "$2" "$3"; fi; }

put() {
  case $1 in
  brightness) set_or_delete system screen_brightness "$2" ;;
  brightness-mode) set_or_delete system screen_brightness_mode "$2" ;;
  screen-timeout) set_or_delete system screen_off_timeout "$2" ;;
  battery-saver) set_or_delete global low_power "$2" ;;
  airplane)
    if [ "$2" = 1 ]; then cmd connectivity airplane-mode enable
    else cmd connectivity airplane-mode disable; fi ;;
  fixed-performance)
    if [ "$2" = 1 ]; then cmd power set-fixed-performance-mode-enabled true
    else cmd power set-fixed-performance-mode-enabled false; fi ;;
  screen) if [ "$2" = on ]; then input keyevent 224; else input keyevent 223; fi ;;
  governor-cpu*) echo "$2" >"$(governor "$1")" ;;
  *) return 1 ;;
  esac
}

put_all() {
  while read -r name value; do
    if put "$name" "$value" </dev/null >/dev/null 2>&1; then result=done; else result=refused; fi
    printf '%s\t%s\t%s\n' "$name" "$result" "$(get "$name" </dev/null 2>/dev/null | head -n 1)"
  done
}

give_back() {
  mv "$folder/restore" "$folder/restoring" 2>/dev/null
  [ -f "$folder/restoring" ] || return 0
  put_all <"$folder/restoring" >/dev/null
  : >"$folder/restored"
  rm -f "$folder/restoring" "$folder/beat"
}

case $action in
read)
  for name in brightness brightness-mode screen-timeout airplane battery-saver screen; do
    tell "$name" "$(get "$name" 2>/dev/null | head -n 1)"
  done
  for file in "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
    cpu=${file%/cpufreq/*}
    [ -r "$file" ] && tell "governor-${cpu##*/}" "$(cat "$file" 2>/dev/null)"
  done
  for file in "$root"/sys/class/power_supply/*/online; do
    [ -r "$file" ] && tell "online-$(cat "${file%online}type" 2>/dev/null)" "$(cat "$file" 2>/dev/null)"
  done
  has nvpmodel && tell nvpmodel "$(nvpmodel -q 2>/dev/null | sed -n 's/.*Power Mode: *//p' | head -n 1)"
  has dumpsys && { printf 'battery:\n'; dumpsys battery; printf 'thermal:\n'; dumpsys thermalservice; } 2>/dev/null
  exit 0 ;;
put) put_all ;;
keep)
  mkdir -p "$folder" && rm -f "$folder/restored" || exit
  cat >"$folder/restore.new" && echo 0 >"$folder/beat" && mv "$folder/restore.new" "$folder/restore" ;;
beat)
  [ -f "$folder/restore" ] || { echo gone; exit 0; }
  echo "$4" >"$folder/beat" ;;
restore)
  give_back
  [ -f "$folder/restored" ] || put_all >/dev/null
  rm -rf "$folder" ;;
guard)
  quiet=0 last=
  while [ -f "$folder/beat" ]; do
    sleep "$5"
    read -r now <"$folder/beat" || now=
    if [ "$now" = "$last" ]; then quiet=$((quiet + $5)); else quiet=0 last=$now; fi
    [ "$quiet" -lt "$4" ] || give_back
  done 2>/dev/null ;;
*) exit 2 ;;
esac
"""
