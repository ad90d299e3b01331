"""What the client scripts print."""

LARGE = "x" * 100_000
HUGE = "y" * 1_000_000


class Lacks(Exception):
    """The client itself cannot do it."""


def equal(got, want):
    if got != want:
        raise AssertionError(f"{str(got)[:100]!r} instead of {str(want)[:100]!r}")


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
