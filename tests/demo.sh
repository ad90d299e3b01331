#!/usr/bin/env bash
# demo.sh MAGENT: a farm on loopback, and what happens to its keys when servers die.
# Prints what a telnet session would show, checks every answer, and ends with status 0 only if
# each was right. On a terminal the farm then stays until Ctrl-C.
set -uo pipefail

magent=${1:?usage: demo.sh MAGENT}
deadline=10 # seconds that one step may take; all of them take far less
keys=(key1 key2 key3 key4 key5)
values=(reyou hello magent backup "still here")

dir=$(mktemp -d)
declare -A pid=() port=() # by name: primary1 primary2 backup magent

stop() { # stop SIGNAL NAME…: by pid, and only what this script started
    local signal=$1 name
    shift
    for name in "$@"; do
        [ -n "${pid[$name]:-}" ] || continue
        kill "-$signal" "${pid[$name]}" 2>/dev/null
        wait "${pid[$name]}" 2>/dev/null
        unset "pid[$name]"
    done
}

end() {
    local status=$? until=$((SECONDS + 8))
    trap '' INT TERM
    # The shell's jobs are what this script started and has not seen end.
    kill $(jobs -rp) 2>/dev/null
    while [ -n "$(jobs -rp)" ] && [ $SECONDS -lt $until ]; do sleep 0.05; done
    kill -KILL $(jobs -rp) 2>/dev/null
    wait 2>/dev/null
    rm -rf "$dir"
    exit $status
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title() { printf '\n== %s\n' "$*"; }

fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    for log in "$dir"/*.log; do
        [ -s "$log" ] && printf -- '--- %s\n%s\n' "${log##*/}" "$(tail -n 20 "$log")" >&2
    done
    exit 1
}

until_true() { # until_true WHAT COMMAND…: waits for a condition, up to the deadline
    local what=$1 end=$((SECONDS + deadline))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || fail "$what: not within $deadline s"
        sleep 0.05
    done
}

# ask PORT REQUEST [VALUE]: one request on a connection of its own; the answer's lines go to
# $answer, separated by newlines.
ask() {
    local fd line end=0
    answer=
    { exec {fd}<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || return 1
    { printf '%s\r\n' "${@:2}" >&"$fd"; } 2>/dev/null
    while [ $end = 0 ] && IFS= read -r -t "$deadline" -u "$fd" line; do
        line=${line%$'\r'}
        answer+=${answer:+$'\n'}$line
        case $line in
        END | STORED | DELETED | NOT_* | *ERROR*) end=1 ;;
        esac
    done
    exec {fd}>&-
    [ $end = 1 ]
}

# telnet NAME REQUEST [VALUE]: the same, shown as a person would see it.
telnet() {
    local name=$1 line
    shift
    if [ "${connected:-}" != "$name" ]; then
        printf '\n$ telnet 127.0.0.1 %s        # %s\n' "${port[$name]}" "$name"
        connected=$name
    fi
    printf '> %s\n' "$@"
    ask "${port[$name]}" "$@" || fail "$name gave no whole answer to '$1'; it said: ${answer:-nothing}"
    printf '%s\n' "$answer"
}

expect() { # expect ANSWER: the last answer must be exactly this
    [ "$answer" = "$1" ] || fail "expected '$1'"
}

value_of() { # value_of INDEX: what a get of that key answers where it is present
    printf 'VALUE %s 0 %d\n%s\nEND' "${keys[$1]}" "${#values[$1]}" "${values[$1]}"
}

holds() { # holds NAME INDEX: true if that server holds the key
    ask "${port[$1]}" "get ${keys[$2]}" && [ "$answer" = "$(value_of "$2")" ]
}

home_of() { # home_of KEY: by magent's own rule, DJB modulo two primaries
    local h=5381 i
    for ((i = 0; i < ${#1}; i++)); do
        h=$(((h * 33 + $(printf '%d' "'${1:i:1}")) & 0xffffffff))
    done
    echo "primary$(((h & 0x7fffffff) % 2 + 1))"
}

# answers NAME STATS: true if it is the process that we started, and no stranger on its port.
answers() {
    ask "${port[$1]}" "$2" && [[ $'\n'$answer$'\n' == *$'\n'"STAT pid ${pid[$1]}"$'\n'* ]]
}

started() { # started NAME STATS: waits until it answers; false if it ended instead
    local end=$((SECONDS + deadline))
    until answers "$1" "$2"; do
        kill -0 "${pid[$1]}" 2>/dev/null || { stop TERM "$1"; return 1; }
        [ $SECONDS -lt $end ] || fail "$1 does not answer"
        sleep 0.05
    done
}

start_memcached() { # start_memcached NAME: on ${port[NAME]}
    local user=()
    [ "$(id -u)" != 0 ] || user=(-u nobody)
    memcached "${user[@]}" -l 127.0.0.1 -p "${port[$1]}" -U 0 -m 64 >>"$dir/$1.log" 2>&1 &
    pid[$1]=$!
    started "$1" stats
}

start_magent() { # start_magent NAME
    "$magent" -D -l 127.0.0.1 -p "${port[$1]}" --retry 200 \
        -s "127.0.0.1:${port[primary1]}" -s "127.0.0.1:${port[primary2]}" \
        -b "127.0.0.1:${port[backup]}" >>"$dir/$1.log" 2>&1 &
    pid[$1]=$!
    started "$1" 'stats proxy'
}

on_a_free_port() { # on_a_free_port START NAME: ports below those that outgoing connections get
    local try
    for try in {1..20}; do
        port[$2]=$((20000 + RANDOM % 12000))
        ask "${port[$2]}" version && continue
        "$1" "$2" && return
    done
    fail "$2 did not start"
}

states() { # states REGEX: true if magent gives both primaries a state that matches
    local name
    ask "${port[magent]}" 'stats servers' || return 1
    for name in primary1 primary2; do
        grep -qxE "STAT 127\.0\.0\.1:${port[$name]}:state $1" <<<"$answer" || return 1
    done
}

read_all() { # each key, through magent
    local i
    for i in "${!keys[@]}"; do
        telnet magent "get ${keys[$i]}"
        expect "$(value_of "$i")"
    done
}

start_farm() {
    title "Two primaries, one backup, and magent in front of them"
    for name in primary1 primary2 backup; do on_a_free_port start_memcached "$name"; done
    on_a_free_port start_magent magent
    printf '%s -l 127.0.0.1 -p %s -s 127.0.0.1:%s -s 127.0.0.1:%s -b 127.0.0.1:%s\n' \
        "magent" "${port[magent]}" "${port[primary1]}" "${port[primary2]}" "${port[backup]}"
    telnet magent stats
    for name in primary1 primary2; do
        grep -qE "^matrix [12] -> 127\.0\.0\.1:${port[$name]}, pool size [0-9]+$" <<<"$answer" ||
            fail "stats does not name $name"
    done
}

set_keys() {
    title "Keys are set through magent"
    for i in "${!keys[@]}"; do
        telnet magent "set ${keys[$i]} 0 0 ${#values[$i]}" "${values[$i]}"
        expect STORED
    done
}

show_where() {
    title "Each key is on one primary, which its hash chooses, and on the backup"
    local i home other
    for i in "${!keys[@]}"; do
        home=$(home_of "${keys[$i]}")
        other=primary$((3 - ${home#primary}))
        telnet "$home" "get ${keys[$i]}"
        expect "$(value_of "$i")"
        ask "${port[$other]}" "get ${keys[$i]}"
        [ "$answer" = END ] || fail "${keys[$i]} is on $other too"
    done
    for i in "${!keys[@]}"; do
        until_true "${keys[$i]} on the backup" holds backup "$i"
        telnet backup "get ${keys[$i]}"
        expect "$(value_of "$i")"
    done
}

kill_primaries() {
    title "Both primaries are killed; the backup answers"
    printf '\n$ kill -9 %s %s        # primary1 primary2\n' "${pid[primary1]}" "${pid[primary2]}"
    stop KILL primary1 primary2
    connected=
    read_all
    until_true "both primaries down" states down
}

restart_primaries() {
    title "Both primaries are started again, empty; nobody misses a key"
    for name in primary1 primary2; do
        until_true "port ${port[$name]}" start_memcached "$name"
        telnet "$name" "get key1"
        expect END
    done
    until_true "both primaries back" states '(warming|up)'
    read_all
}

show_copies() {
    title "What was read is on its primary again"
    local i home
    for i in "${!keys[@]}"; do
        home=$(home_of "${keys[$i]}")
        until_true "${keys[$i]} on $home" holds "$home" "$i"
        telnet "$home" "get ${keys[$i]}"
        expect "$(value_of "$i")"
    done
}

refilled() { # true if magent says that the backup was refilled
    ask "${port[magent]}" 'stats servers' &&
        grep -qxF "STAT 127.0.0.1:${port[backup]}:refill done" <<<"$answer"
}

restart_backup() {
    title "The backup restarts empty, and is filled"
    # A restart is told by an uptime that is over 2 s less.
    until_true "an uptime that can fall" old_enough
    printf '\n$ kill -9 %s        # backup\n' "${pid[backup]}"
    stop KILL backup
    until_true "port ${port[backup]}" start_memcached backup
    connected=
    telnet backup "get key1"
    expect END
    until_true "the backup to be refilled" refilled
    local i
    for i in "${!keys[@]}"; do
        telnet backup "get ${keys[$i]}"
        expect "$(value_of "$i")"
    done
}

old_enough() { # true if the backup runs for 3 s: memcached begins to count at 2
    ask "${port[backup]}" stats && [[ $answer =~ "STAT uptime "([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 5 ]
}

command -v memcached >/dev/null || fail "memcached is not installed; .ci/need memcached does it"
start_farm
set_keys
show_where
kill_primaries
restart_primaries
show_copies
restart_backup

title "Every step held"
if [ -t 0 ] && [ -t 1 ]; then
    trap 'exit 0' INT
    for name in magent primary1 primary2 backup; do
        printf '%-9s telnet 127.0.0.1 %s        # kill -9 %s\n' "$name" "${port[$name]}" "${pid[$name]}"
    done
    printf 'In magent try: stats, stats servers, stats route key1, get key1. Ctrl-C ends the farm.\n'
    wait "${pid[magent]}"
    unset "pid[magent]"
    fail "magent ended by itself"
fi
exit 0
