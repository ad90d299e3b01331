#!/usr/bin/env bash
# package.sh DIRECTORY: the life of the Debian package in DIRECTORY, in a fresh tree of this
# system: installed, upgraded while it serves, removed, purged. Needs root, and the network for
# debootstrap. `make interop` runs it.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
dir=$(cd "$1" && pwd)
tree=$dir/tree
[ "$(id -u)" = 0 ] || { echo "package.sh: needs root, for debootstrap and chroot" >&2; exit 1; }

fail() {
    echo "package.sh: $*" >&2
    exit 1
}

pid= other=
end() {
    [ -z "$pid$other" ] || kill $pid $other 2>/dev/null || true
    umount "$tree/proc" 2>/dev/null || true
    rm -rf --one-file-system "$tree"
}
trap end EXIT

inside() { chroot "$tree" env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@"; }

# Waits for what "$@" says, 10 s at most.
wait_for() {
    for _ in $(seq 100); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "10 s passed without: $*"
}

# Two packages of the same program: the second is newer.
old=$(VERSION=0.0.1 "$top/dist/debian/build" "$dir")
new=$("$top/dist/debian/build" "$dir")
lintian --fail-on error "$new"

# shellcheck disable=SC1091
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
end
debootstrap --variant=minbase --include=adduser "$suite" "$tree" >"$dir/debootstrap.log" ||
    fail "debootstrap failed: $dir/debootstrap.log"
mount -t proc proc "$tree/proc"
cp "$old" "$tree/old.deb"
cp "$new" "$tree/new.deb"
before=$(inside find /etc /lib /usr /var /run -path /var/lib/dpkg -prune -o -print | sort)

inside dpkg -i /old.deb
[ "$(inside magent -V)" = "$("$top/magent" -V)" ] || fail "another program is installed"
inside getent passwd magent >/dev/null || fail "there is no user magent"
inside test -e /lib/systemd/system/magent.service || fail "there is no unit"
for unit in magent.service magent@.service; do
    grep -q '^ExecStart=/usr/bin/magent ' "$tree/lib/systemd/system/$unit" || fail "$unit runs something else"
done
wanted=$tree/etc/systemd/system
[ -L "$wanted/multi-user.target.wants/magent.service" ] || fail "the service is not enabled"
[ ! -L "$wanted/sockets.target.wants/magent.socket" ] || fail "the socket is enabled"

# The operator changes the options. systemd does not run here: magent is started by hand, and a
# systemctl that says so stands in for the real one.
options='MAGENT_OPTIONS="-l 127.0.0.1 -p 0 -f /run/magent.sock -s 127.0.0.1:1"'
echo "$options" >"$tree/etc/default/magent"
(exec chroot "$tree" /usr/bin/magent -D -p 0 -f /run/magent.sock -s 127.0.0.1:1) >"$dir/magent.log" 2>&1 &
pid=$!
# And an instance of magent@.service.
(exec chroot "$tree" /usr/bin/magent -D --reuseport -p 0 -f /run/other.sock -s 127.0.0.1:1) >"$dir/other.log" 2>&1 &
other=$!
wait_for test -S "$tree/run/magent.sock"
wait_for test -S "$tree/run/other.sock"
for one in $pid $other; do
    [ "$(cat "/proc/$one/comm")" = magent ] || fail "process $one is not magent"
done
mkdir -p "$tree/run/systemd/system" "$tree/usr/local/sbin"
cat >"$tree/usr/local/sbin/systemctl" <<END
#!/bin/sh
echo "\$*" >>/systemctl.log
case "\$*" in
list-units*) printf '%s\n' 'magent.service loaded active running x' 'magent@1.service loaded active running x' ;;
show*magent.service) echo $pid ;;
show*magent@1.service) echo $other ;;
kill*magent.service) kill -USR2 $pid ;;
kill*magent@1.service) kill -USR2 $other ;;
esac
END
chmod +x "$tree/usr/local/sbin/systemctl"

# A client that stays while the package is upgraded.
coproc CLIENT { python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
for line in sys.stdin:
    s.sendall(b"version\r\n")
    print(s.recv(100).decode().strip(), flush=True)
' "$tree/run/magent.sock"; }
ask() {
    echo version >&"${CLIENT[1]}"
    read -r -t 10 answer <&"${CLIENT[0]}" && [[ $answer == VERSION\ * ]]
}
ask || fail "the client got no answer"
inside dpkg -i /new.deb
ask || fail "the client did not survive the upgrade: $(cat "$dir/magent.log")"
for one in $pid $other; do
    [ "$(readlink "/proc/$one/exe")" = "$tree/usr/bin/magent" ] || fail "process $one runs the old program"
done
[ "$(cat "$tree/etc/default/magent")" = "$options" ] || fail "the upgrade changed /etc/default/magent"
! grep -q -E '^(restart|stop|try-restart)' "$tree/systemctl.log" || fail "the upgrade restarted it: $(cat "$tree/systemctl.log")"

for one in $pid $other; do
    kill "$one"
    wait "$one" || fail "magent ended with $?"
done
pid= other=
rm -r "$tree/usr/local/sbin/systemctl" "$tree/run/systemd"
inside dpkg -r magent
[ "$(cat "$tree/etc/default/magent")" = "$options" ] || fail "removing changed /etc/default/magent"
inside dpkg -P magent
after=$(inside find /etc /lib /usr /var /run -path /var/lib/dpkg -prune -o -print | sort)
left=$(comm -13 <(echo "$before") <(echo "$after") | grep magent || true)
[ -z "$left" ] || fail "left behind: $left"
echo "package.sh: installed, upgraded while it served a client, removed, purged"
