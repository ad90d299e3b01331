"""The programs that README.zh-CN.md shows: snippets.py HOST PORT. Prints a line for each.

Each is run as it stands, but for the port, and has to print what is expected here.
"""

import os
import re
import subprocess
import sys

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SPYMEMCACHED = "/usr/share/java/spymemcached.jar"
EXPECTED = [
    ("PHP, memcached", "Array\n(\n    [name] => 小明\n    [age] => 20\n)\n1\n"),
    ("PHP, memcache", "reyou\n"),
    ("Java, spymemcached", "reyou\n"),
]


def command(language, text):
    """Writes the program into the current directory; how it is run."""
    file = "example.php" if language == "php" else "Example.java"
    with open(file, "w", encoding="utf-8") as f:
        f.write(text)
    return ["php", file] if language == "php" else ["java", "-cp", SPYMEMCACHED, file]


def main():
    _, host, port = sys.argv
    with open(os.path.join(TOP, "README.zh-CN.md"), encoding="utf-8") as f:
        shown = re.findall(r"^```(php|java)\n(.*?)^```", f.read(), re.M | re.S)
    if len(shown) != len(EXPECTED):
        sys.exit(f"{len(shown)} programs are shown, {len(EXPECTED)} are known here")
    for (language, text), (name, expected) in zip(shown, EXPECTED):
        if text.count("127.0.0.1") != 1 or text.count("12000") != 1:
            sys.exit(f"{name}: one address and port 12000")
        text = text.replace("127.0.0.1", host).replace("12000", port)
        ended = subprocess.run(command(language, text), stdin=subprocess.DEVNULL,
                               capture_output=True, text=True, encoding="utf-8")
        if ended.stdout == expected and ended.returncode == 0:
            print(f"works {name}")
        else:
            said = (ended.stdout + ended.stderr).strip()[-300:].replace("\n", " ")
            print(f"fails {name}: {said}")


main()
