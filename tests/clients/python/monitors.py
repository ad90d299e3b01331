"""Programs that watch memcached: monitors.py munin|collectd|exporter HOST PORT"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

from report import equal, tell

name, host, port = sys.argv[1:]
# Seconds that a program gets to say something.
PATIENCE = 20


def prepare():
    """Something to see: 20 values, a hit and a miss."""
    with socket.create_connection((host, int(port)), PATIENCE) as s:
        f = s.makefile("rb")
        for i in range(20):
            s.sendall(b"set %s-%d 0 0 1\r\nx\r\n" % (name.encode(), i))
            equal(f.readline(), b"STORED\r\n")
        s.sendall(b"get %s-1 none\r\n" % name.encode())
        while f.readline() != b"END\r\n":
            pass


def munin(graph):
    """What the plugin prints for one of its graphs."""
    os.symlink("/usr/share/munin/plugins/memcached_", f"memcached_{graph}")
    env = dict(os.environ, host=host, port=port)
    done = subprocess.run([f"./memcached_{graph}"], env=env, capture_output=True, text=True,
                          timeout=PATIENCE)
    said = dict(re.findall(r"^(\w+)\.value (.*)$", done.stdout, re.M))
    unknown = [field for field, value in said.items() if not value.isdigit()]
    if not said or unknown:
        raise AssertionError(f"{unknown} unknown; {done.stdout}{done.stderr}")
    return said


def munin_counters():
    equal(int(munin("counters")["memcache_curr_items"]) >= 20, True)


def munin_rates():
    said = munin("rates")
    equal(all(int(said[f"memcache_cache_{what}"]) >= 1 for what in ("hits", "misses")), True)


def collectd():
    with open("collectd.conf", "w") as f:
        f.write(f"""
BaseDir "{os.getcwd()}"
PIDFile "{os.getcwd()}/pid"
TypesDB "/usr/share/collectd/types.db"
Interval 1
LoadPlugin memcached
LoadPlugin csv
<Plugin csv>
  DataDir "stdout"
</Plugin>
<Plugin memcached>
  <Instance "magent">
    Host "{host}"
    Port "{port}"
  </Instance>
</Plugin>
""")
    with open("out", "w") as out:
        process = subprocess.Popen(["collectd", "-f", "-C", "collectd.conf"], stdout=out,
                                   stderr=subprocess.STDOUT)
    wanted = {"memcached_items-current", "memcached_connections-current", "df-cache",
              "memcached_command-get", "memcached_command-set", "memcached_ops-hits",
              "memcached_ops-misses", "memcached_ops-evictions", "memcached_octets"}
    end = time.monotonic() + PATIENCE
    try:
        while wanted and time.monotonic() < end:
            with open("out") as out:
                said = out.read()
            # PUTVAL HOST/memcached-magent/TYPE interval=1 TIME:VALUES
            wanted -= set(re.findall(r"PUTVAL \S+/(\S+) interval=\S+ [\d.]+:[\d.:e+]+$", said,
                                     re.M))
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait()
    if wanted:
        raise AssertionError(f"without {sorted(wanted)}: {said[-300:]}")


def exporter():
    names = ("prometheus-memcached-exporter", "memcached_exporter")
    program = next(filter(None, map(shutil.which, names)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{s.getsockname()[1]}"
    process = subprocess.Popen([program, f"--memcached.address={host}:{port}",
                                f"--web.listen-address={at}"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end, text = time.monotonic() + PATIENCE, ""
    try:
        while not text and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://{at}/metrics", timeout=PATIENCE) as page:
                    text = page.read().decode()
            except OSError:
                time.sleep(0.05)
    finally:
        process.terminate()
        process.wait()
    value = dict(re.findall(r"^(memcached_\w+) ([\d.e+]+)$", text, re.M))
    equal(value.get("memcached_up"), "1")
    equal(float(value["memcached_current_items"]) >= 20, True)
    equal(float(value["memcached_max_connections"]) > 0, True)


if __name__ == "__main__":
    tell("set and get before", prepare)
    if name == "munin":
        tell("memcached_rates", munin_rates)
        tell("memcached_bytes", lambda: munin("bytes"))
        tell("memcached_counters", munin_counters)
    elif name == "collectd":
        tell("collectd's memcached plugin", collectd)
    else:
        tell("memcached_up 1", exporter)
