"""Drives each client at a bare memcached and through magent, and compares what it says.

A client's script is told host and port. It prints one line a feature:

    works FEATURE | fails FEATURE: why | lacks FEATURE

`lacks` is said of what the client itself cannot do. The farm behind magent is two primaries
and a backup. Ends with a table, and with status 1 if a client does less well through magent.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
EXPORTERS = ("prometheus-memcached-exporter", "memcached_exporter")
SPYMEMCACHED = "/usr/share/java/spymemcached.jar"
# Seconds that one client may take, and that a server may take to listen.
CLIENT_TIME = 120
START_TIME = 10

# What is meant to differ.
KNOWN = {}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_listening(process, port):
    end = time.monotonic() + START_TIME
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    sys.exit(f"{process.args[0]} does not listen on {port}")


class Farm:
    """One memcached alone, and magent before three others."""

    def __init__(self, magent):
        self.processes = []
        self.bare = self.memcached()
        first, second, backup = self.memcached(), self.memcached(), self.memcached()
        self.proxied = free_port()
        # Clients read STAT lines; a bare `stats` is meant for people without the option.
        self.start(
            self.proxied,
            [magent, "-D", "--memcached-stats", "-l", "127.0.0.1", "-p", str(self.proxied)]
            + ["-s", f"127.0.0.1:{first}", "-s", f"127.0.0.1:{second}"]
            + ["-b", f"127.0.0.1:{backup}"],
        )

    def memcached(self):
        port = free_port()
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        self.start(port, ["memcached", *user, "-l", "127.0.0.1", "-U", "0", "-p", str(port)])
        return port

    def start(self, port, command):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        wait_listening(process, port)

    def end(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()


def clients():
    """Name, version, protocol and command of each."""
    python = [sys.executable, os.path.join(HERE, "python", "clients.py")]
    node = ["node", os.path.join(HERE, "node", "clients.js")]
    rust = [os.environ["RUST_CLIENT"]]
    php = ["php", os.path.join(HERE, "php", "clients.php")]
    ruby = ["ruby", os.path.join(HERE, "ruby", "clients.rb")]
    java = ["java", "-cp", SPYMEMCACHED, os.path.join(HERE, "java", "Clients.java")]
    monitors = [sys.executable, os.path.join(HERE, "python", "monitors.py")]
    tools = [sys.executable, os.path.join(HERE, "python", "tools.py")]
    snippets = [sys.executable, os.path.join(HERE, "snippets.py")]
    pinned = open(os.path.join(HERE, "python", "requirements.txt")).read()
    pinned += open(os.path.join(HERE, "node", "package.json")).read()
    pinned += open(os.path.join(HERE, "rust", "Cargo.toml")).read()

    def extension(name):
        return subprocess.run(["php", "-r", f"echo phpversion('{name}');"],
                              capture_output=True, text=True).stdout

    def packaged(name):
        """The version of one of the system's packages, without what Debian adds to it."""
        shown = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", name],
                               capture_output=True, text=True).stdout
        return re.sub(r"^\d+:|[+~-].*$", "", shown)

    def version(name):
        return re.search(rf'^\W*{name}\W+(?:version\W+)?([0-9.]+)', pinned, re.M).group(1)

    help_text = subprocess.run(["memcping", "-V"], capture_output=True, text=True).stdout
    libmemcached = re.search(r"libmemcached v?([0-9.]+)", help_text).group(1)
    return [
        ("pymemcache", version("pymemcache"), "text", python + ["pymemcache"]),
        ("python-memcached", version("python-memcached"), "text", python + ["python-memcached"]),
        ("python-binary-memcached", version("python-binary-memcached"), "binary",
         python + ["python-binary-memcached"]),
        ("pylibmc", version("pylibmc"), "text", python + ["pylibmc"]),
        ("pylibmc", version("pylibmc"), "binary", python + ["pylibmc-binary"]),
        ("emcache", version("emcache"), "text", python + ["emcache"]),
        ("memcached (npm)", version("memcached"), "text", node + ["memcached"]),
        ("memjs (npm)", version("memjs"), "binary", node + ["memjs"]),
        ("memcache (Rust)", version("memcache"), "text", rust + ["ascii"]),
        ("memcache (Rust)", version("memcache"), "binary", rust + ["binary"]),
        ("memcache (Rust)", version("memcache"), "meta", rust + ["meta"]),
        ("memcached (PHP)", extension("memcached"), "text", php + ["memcached"]),
        ("memcached (PHP)", extension("memcached"), "binary", php + ["memcached-binary"]),
        ("memcache (PHP)", extension("memcache"), "text", php + ["memcache"]),
        ("dalli (Ruby)", packaged("ruby-dalli"), "binary", ruby),
        ("spymemcached (Java)", packaged("libspymemcached-java"), "text", java + ["text"]),
        ("spymemcached (Java)", packaged("libspymemcached-java"), "binary", java + ["binary"]),
        ("libmemcached-tools", libmemcached, "text", tools + ["text"]),
        ("libmemcached-tools", libmemcached, "binary", tools + ["binary"]),
        ("memccapable", libmemcached, "text", tools + ["capable-text"]),
        ("memccapable", libmemcached, "binary", tools + ["capable-binary"]),
        ("what README.zh-CN.md shows", "", "text", snippets),
        ("munin's memcached_", packaged("munin-plugins-extra"), "text", monitors + ["munin"]),
        ("collectd", packaged("collectd-core"), "text", monitors + ["collectd"]),
    ] + [
        # Debian has it from 13 on.
        ("memcached_exporter", packaged("prometheus-memcached-exporter") or "own", "text",
         monitors + ["exporter"])
        for _ in [0] if any(map(shutil.which, EXPORTERS))
    ]


def run(command, port):
    """What the client said: feature to (verdict, why)."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            ended = subprocess.run(command + ["127.0.0.1", str(port)], cwd=folder,
                                   stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                   errors="replace", timeout=CLIENT_TIME)
        output, said = ended.stdout, {}
        if ended.returncode != 0:
            said["the script"] = ("fails", (ended.stderr or output).strip()[-500:])
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        said = {"the script": ("fails", f"not done within {CLIENT_TIME} s")}
    for line in output.splitlines():
        verdict, _, rest = line.partition(" ")
        feature, _, why = rest.partition(": ")
        if verdict in ("works", "fails", "lacks"):
            said[feature] = (verdict, why)
    if not said:
        said["the script"] = ("fails", "said nothing")
    return said


def main():
    # So that `timeout` leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    farm = Farm(sys.argv[1])
    rows, worse = [], 0
    try:
        for name, version, protocol, command in clients():
            bare, proxied = run(command, farm.bare), run(command, farm.proxied)
            print(f"\n{name} {version}, {protocol}", flush=True)
            not_working, own_faults = [], []
            for feature in {**bare, **proxied}:
                alone, through = (m.get(feature, ("missing", "")) for m in (bare, proxied))
                note = through[0] + (f": {through[1]}" if through[1] else "")
                if through[0] != alone[0]:
                    note += f"   (at a bare memcached: {alone[0]}{': ' if alone[1] else ''}{alone[1]})"
                    known = feature in KNOWN.get(name, {})
                    worse += not known and (alone[0] == "works" or through[0] == "fails")
                    not_working.append(feature)
                elif through[0] == "fails":
                    own_faults.append(feature)
                print(f"  {feature}: {note}", flush=True)
            works = sum(v == "works" for v, _ in proxied.values())
            faults = (", ".join(f) or "nothing" for f in (not_working, own_faults))
            rows.append((name, version, protocol, str(works), *faults))
    finally:
        farm.end()
    print("\n| client | version | protocol | features that work | worse than at memcached "
          "| wrong at memcached too |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.exit(1 if worse else 0)


main()
