#!/usr/bin/env bash
# documents.sh PROGRAM: whatever the documents say to type is typed, as it stands, on a host of its own: with its own
# network, so that their ports are free, its own processes, and its own /usr/local and /etc/default. PROGRAM is what
# `make` left. Needs root. `make interop` runs it.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
[ "$(id -u)" = 0 ] || { echo "documents.sh: needs root, for namespaces" >&2; exit 1; }

fail() {
    echo "documents.sh: ${story:-}: $*" >&2
    exit 1
}

# block FILE N: the Nth block of shell in a document.
block() {
    awk -v wanted="$2" '
        $0 == "```sh" || $0 == "```bash" { n++; inside = 1; next }
        $0 == "```" { inside = 0 }
        inside && n == wanted { print; found = 1 }
        END { exit !found }
    ' "$top/$1" || fail "$1 has no block $2"
}

# Every block has its story below; a new one wants one too.
count() {
    [ "$(grep -c -x -e '```sh' -e '```bash' "$top/$1")" = "$2" ] || fail "$1 has other blocks than these stories know"
}

# type FILE N: types a block into this shell.
type_block() {
    local text
    text=$(block "$@")
    # Where not even root may have so many descriptors.
    (ulimit -Hn 60000) 2>/dev/null || text=${text//-n 51200/-n 4096}
    printf '%s\n' "$text" | sed 's/^/    $ /'
    eval "$text"
}

# ask HOST PORT LINE…: what a server answers.
ask() {
    local fd host=$1 port=$2
    shift 2
    exec {fd}<>"/dev/tcp/$host/$port" || return 1
    printf '%s\r\n' "$@" quit >&$fd
    tr -d '\r' <&$fd
    exec {fd}>&-
}

# Waits for what "$@" says, 10 s at most.
wait_for() {
    for _ in $(seq 100); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "10 s passed without: $*"
}

serves() { ask 127.0.0.1 "$1" version | grep -q '^VERSION '; }

# Ends all that have this name: of this host, which has no other processes.
end_all() {
    local own
    [ $$ = 1 ] || fail "this is no host of its own"
    for own in /proc/[0-9]*; do
        [ "$(cat "$own/comm" 2>/dev/null)" != "$1" ] || kill "-${2:-TERM}" "${own#/proc/}"
    done
    wait_for gone "$1"
}

gone() { ! readlink /proc/[0-9]*/exe | grep -q "/$1\( \|$\)"; }

has_links() { [ "$(ask 127.0.0.1 12000 stats | grep -c ', pool size 1$')" = "$1" ]; }

round_trip() { # round_trip HOST PORT KEY
    [ "$(ask "$1" "$2" "set $3 0 0 5" reyou "get $3")" = $'STORED\nVALUE '"$3"$' 0 5\nreyou\nEND' ] || fail "$1:$2: $3"
}

install_it() {
    (cd "$dir/clone" && make install >"$dir/install.log")
    PATH=/usr/local/bin:$PATH
    [ "$(command -v magent)" = /usr/local/bin/magent ] || fail "magent is not on the path"
}

# The session that a README shows, typed as a person types it: what stands behind `> `, then the answer below it.
session() {
    sed -n '/^\$ telnet /,/^```/p' "$top/$1" | grep -v -e '^\$ ' -e '^```' | python3 -c '
import itertools, socket, sys
s = socket.create_connection(("127.0.0.1", 12000))
f = s.makefile("r", newline="\r\n")
rounds = 0
for typed, lines in itertools.groupby(sys.stdin, lambda l: l.startswith("> ")):
    if typed:
        s.sendall("".join(l[2:].rstrip("\n") + "\r\n" for l in lines).encode())
        continue
    rounds += 1
    for line in lines:
        told = f.readline().rstrip("\r\n")
        if told != line.rstrip("\n"):
            sys.exit(f"shown {line!r}, told {told!r}")
if rounds < 3:
    sys.exit("no session")
' || fail "the session of $1 is another one"
}

# make test is what the rest of the tests is about.
story_demo() {
    cd "$dir/clone"
    [ "$(block README.md 1 | sed 's/ *#.*//')" = $'make demo\nmake test' ] || fail "README.md begins otherwise"
    make demo </dev/null >"$dir/demo.log" 2>&1 || fail "$(cat "$dir/demo.log")"
    grep -q '^== Every step held' "$dir/demo.log" || fail "$(cat "$dir/demo.log")"
}

story_install() {
    # Root may have no cargo.
    (cd "$dir/clone" && type_block README.md 2 && type_block README.zh-CN.md 1) >"$dir/install.log"
    hash -r
    magent -V | grep -q '^magent ' || fail "nothing was installed"
}

story_one_host() {
    install_it
    type_block "$1" "$2"
    # Servers that are not asked for anything have a connection after a second.
    wait_for has_links 2
    session "$1"
    round_trip 127.0.0.1 12000 key2
    end_all memcached KILL
    ask 127.0.0.1 12000 'get key1' | grep -q SERVER_ERROR || fail "all servers are dead"
}

holds_both() { [ "$(ask "$1" 11211 'get key1 key2' | grep -c '^VALUE ')" = 2 ]; }

story_two_hosts() {
    install_it
    for host in 10.0.0.1 10.0.0.2; do
        ip address add $host/32 dev lo
        memcached -d -u nobody -l $host -p 11211
    done
    type_block "$1" "$2"
    wait_for serves 12000
    for key in key1 key2; do round_trip 10.0.0.2 12000 $key; done
    # Each has a copy on the other host.
    for host in 10.0.0.1 10.0.0.2; do
        wait_for holds_both $host
    done
}

story_one_for_each_host() {
    install_it
    for host in 10.0.0.1 10.0.0.2; do
        ip address add $host/32 dev lo
        memcached -d -u nobody -l $host -p 11211
    done
    type_block docs/migration.md 1
    round_trip 10.0.0.1 12000 key1
    round_trip 10.0.0.2 12000 key2
}

story_monitors() {
    install_it
    for port in 11211 11212 11213; do memcached -d -u nobody -l 127.0.0.1 -p $port; done
    type_block README.zh-CN.md 5
    wait_for serves 12000
    ask 127.0.0.1 12000 stats | grep -q '^STAT curr_items ' || fail "stats is not memcached's"
}

nutcracker_file() {
    block docs/migration.md 3 | sed -n "/^cat > nutcracker.yml/,/^END/p" >"$dir/file.sh"
    # shellcheck disable=SC1091
    . "$dir/file.sh"
}

story_nutcracker() {
    install_it
    cd "$dir"
    nutcracker_file
    type_block "$1" "$2"
    wait_for serves 22121
}

story_walk_through() {
    install_it
    cd "$dir"
    local said
    said=$(block docs/migration.md 3 | bash 2>"$dir/walk.log") || fail "$(cat "$dir/walk.log")"
    # Each line that the text promises, in its order.
    local wanted=(STORED 'STAT primary 127.0.0.1:21211' 'SERVER_ERROR 127.0.0.1:21211 ' END STORED 'VALUE key1 0 3' new
        END STORED 'SERVER_ERROR 127.0.0.1:21211 ' END)
    local rest=$said line
    for line in "${wanted[@]}"; do
        [[ $rest == *"$line"* ]] || fail "no $line in: $said"
        rest=${rest#*"$line"}
    done
    [ "$(grep -c ':state up' <<<"$said")" = 3 ] || fail "not all are up again: $said"
}

# As much of systemctl as the documents use: it runs what the installed units say.
systemctl() {
    local verb=$1 unit name start
    shift
    for unit in "$@"; do
        case $unit in -*|MainPID) continue ;; esac
        name=${unit%@*}
        [ "$name" = "$unit" ] && name=$unit.service || name=$name@.service
        name=/usr/local/lib/systemd/system/$name
        [ -e "$name" ] || fail "there is no $name"
        case $verb in
        enable)
            # shellcheck disable=SC1091
            . /etc/default/magent
            mkdir -p "/run/magent" "/run/magent-${unit#*@}"
            start=$(sed -n "s/^ExecStart=//p" "$name" | sed "s/%i/${unit#*@}/g; s/\$MAGENT_OPTIONS/$(sed 's/[&/]/\\&/g' <<<"$MAGENT_OPTIONS")/")
            (exec $start -u nobody) >"$dir/$unit.log" 2>&1 &
            echo $! >"$dir/$unit.pid"
            ;;
        disable)
            kill "$(cat "$dir/$unit.pid")"
            wait "$(cat "$dir/$unit.pid")" || fail "$unit ended badly: $(cat "$dir/$unit.log")"
            ;;
        reload) kill -HUP "$(cat "$dir/$unit.pid")" ;;
        show) cat "$dir/$unit.pid" ;;
        *) fail "systemctl $verb" ;;
        esac
    done
}

sudo() { "$@"; }

sudoedit() { echo 'MAGENT_OPTIONS="-l 127.0.0.1 -p 12000 -s 127.0.0.1:11211 -b 127.0.0.1:11212"' >"$1"; }

# What the door of a unit says of a number.
number() { # number SOCKET NAME
    python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"stats proxy\r\nquit\r\n")
text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
print([l.split()[2] for l in text.splitlines() if l.startswith("STAT " + sys.argv[2] + " ")][0])
' "$1" "$2"
}

story_service() {
    for port in 11211 11212; do memcached -d -u nobody -l 127.0.0.1 -p $port; done
    (cd "$dir/clone" && make install >"$dir/install.log")
    cd "$dir/clone"
    # Its third command waits for nothing.
    eval "$(block "$1" "$2" | sed '$d')"
    wait_for serves 12000
    eval "$(block "$1" "$2" | tail -n 1)"
    round_trip 127.0.0.1 12000 key1
    # Over to another program.
    cp /usr/local/bin/magent /usr/local/bin/new
    echo >>/usr/local/bin/new
    mv /usr/local/bin/new /usr/local/bin/magent
    type_block docs/operations.md 1
    wait_for sh -c "[ \"\$(readlink /proc/$(cat "$dir/magent.pid")/exe)\" = /usr/local/bin/magent ]"
    round_trip 127.0.0.1 12000 key2
    [ "$(number /run/magent/admin.sock upgrades)" = 1 ] || fail "$(cat "$dir/magent.log")"
    # Several processes on its port.
    type_block docs/operations.md 2
    for n in 1 2; do wait_for test -S /run/magent-$n/admin.sock; done
    for n in $(seq 40); do round_trip 127.0.0.1 12000 "key$n"; done
    for n in 1 2; do
        [ "$(number /run/magent-$n/admin.sock total_connections)" -gt 0 ] || fail "process $n has no clients"
    done
}

if [ "${1:-}" = --story ]; then
    story=${*:2}
    dir=$DOCUMENTS_DIR
    ip link set lo up
    for place in /usr/local /etc/default /run; do
        mkdir -p "$dir/host$place"
        mount --bind "$dir/host$place" $place
    done
    "story_$2" "${@:3}"
    echo "documents.sh: $story: as written"
    exit
fi

program=$(realpath "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
count README.md 5
count README.zh-CN.md 6
count docs/operations.md 2
count docs/migration.md 3
# A clone, with what `make` leaves in it.
git clone --quiet "$top" "$dir/clone"
cp "$program" "$dir/clone/magent"
mkdir -p "$dir/clone/target/release"
cp "$program" "$dir/clone/target/release/magent"
touch "$dir/clone/magent"

# It was built: make finds it there, and cargo has nothing to do.
export CARGO=true

# In a host of its own each.
host() {
    rm -rf "$dir/host"
    DOCUMENTS_DIR=$dir unshare --net --mount --pid --fork --mount-proc --kill-child "$0" --story "$@" </dev/null ||
        fail "$*: $(cat "$dir"/*.log 2>/dev/null)"
}
host demo
host install
host one_host README.md 3
host one_host README.zh-CN.md 2
host two_hosts README.md 4
host two_hosts README.zh-CN.md 3
host service README.md 5
host service README.zh-CN.md 4
host monitors
host nutcracker docs/migration.md 2
host nutcracker README.zh-CN.md 6
host one_for_each_host
host walk_through
