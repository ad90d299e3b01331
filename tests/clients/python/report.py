"""What the client scripts print."""

import time

LARGE = "x" * 100_000
HUGE = "y" * 1_000_000


class Lacks(Exception):
    """The client itself cannot do it."""


def equal(got, want):
    if got != want:
        raise AssertionError(f"{str(got)[:100]!r} instead of {str(want)[:100]!r}")


def eventually(get, want):
    """What a server does by its own clock, or on another connection, may come a moment later."""
    end = time.monotonic() + 5
    while (got := get()) != want and time.monotonic() < end:
        time.sleep(0.01)
    equal(got, want)


def tell(feature, check):
    """Runs one check and prints what came of it."""
    try:
        check()
        print(f"works {feature}", flush=True)
    except Lacks:
        print(f"lacks {feature}", flush=True)
    except Exception as e:  # A failure of any kind is this feature's.
        why = f"{type(e).__name__} {e}".replace("\n", " ")
        print(f"fails {feature}: {why[:300]}", flush=True)
