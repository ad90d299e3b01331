"""libmemcached's tools: tools.py text|binary|capable-text|capable-binary HOST PORT"""

import re
import subprocess
import sys

from report import HUGE, LARGE, Lacks, equal, tell

kind, host, port = sys.argv[1:]
servers = f"--servers={host}:{port}"
protocol = ["--binary"] if kind == "binary" else []


def tool(name, *arguments, status=0):
    done = subprocess.run([name, servers, *protocol, *arguments], capture_output=True,
                          text=True, timeout=30)
    if done.returncode != status:
        raise AssertionError(f"{name} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def copy(name, text, *options):
    with open(name, "w") as f:
        f.write(text)
    tool("memccp", *options, name)


def value(key, want):
    equal(tool("memccat", key).rstrip("\n"), want)


def ping():
    if protocol:
        raise Lacks
    tool("memcping")


def store():
    copy("tools-a", "one")
    value("tools-a", "one")


def add_replace():
    copy("tools-b", "one", "--add")
    copy("tools-b", "two", "--replace")
    value("tools-b", "two")


def several():
    copy("tools-c", "one")
    copy("tools-d", "two")
    equal(tool("memccat", "tools-c", "tools-d").split(), ["one", "two"])


def large():
    copy("tools-large", LARGE)
    value("tools-large", LARGE)
    copy("tools-huge", HUGE)
    value("tools-huge", HUGE)


def exist():
    copy("tools-e", "one")
    tool("memcexist", "tools-e")
    tool("memcexist", "tools-none", status=1)


def touch():
    copy("tools-t", "one")
    tool("memctouch", "--expire=100", "tools-t")
    value("tools-t", "one")
    tool("memctouch", "--expire=100", "tools-none", status=1)


def remove():
    copy("tools-r", "one")
    tool("memcrm", "tools-r")
    tool("memccat", "tools-r", status=1)


def stat():
    # magent's own bare `stats` (text) is the one of every magent session ever published.
    said = tool("memcstat")
    if "pid:" not in said and "Server:" not in said:
        raise AssertionError(said)


def stat_groups():
    copy("tools-s", "one")
    for group in ("items", "slabs", "sizes", "settings"):
        equal("Server:" in tool("memcstat", f"--args={group}"), True)
    value("tools-s", "one")


def dump():
    if protocol:
        raise Lacks
    tool("memcdump")


def stat_version():
    equal("1.6.18" in tool("memcstat", "--server-version"), True)


def slap():
    for test in ("set", "get", "mget"):
        tool("memcslap", f"--test={test}", "--concurrency=4", "--execute-number=200",
             "--initial-load=500")


def flush():
    copy("tools-f", "one")
    tool("memcflush")
    tool("memccat", "tools-f", status=1)


def capable():
    # The suite numbers its tests' lines "name   [pass]".
    option = "-a" if kind == "capable-text" else "-b"
    done = subprocess.run(["memccapable", "-h", host, "-p", port, option, "-t", "5"],
                          capture_output=True, text=True, timeout=100)
    found = re.findall(r"^(.+?)\s+\[(\w+)\]\s*$", done.stdout + done.stderr, re.M)
    for name, verdict in found:
        print(f"works {name}" if verdict == "pass" else f"fails {name}: {verdict}")
    if not found:
        raise AssertionError(done.stdout + done.stderr)


if kind.startswith("capable"):
    capable()
else:
    tell("memcping", ping)
    tell("memccp, memccat", store)
    tell("memccp --add, --replace", add_replace)
    tell("memccat of several keys", several)
    tell("values of 100 KB and 1 MB", large)
    tell("memcexist", exist)
    tell("memctouch", touch)
    tell("memcrm", remove)
    tell("memcstat", stat)
    tell("memcstat --args=items, slabs, sizes, settings", stat_groups)
    tell("memcstat --server-version", stat_version)
    tell("memcdump", dump)
    tell("memcslap", slap)
    tell("memcflush", flush)
