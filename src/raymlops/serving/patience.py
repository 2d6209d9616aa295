"""How long a caller waits for a challenger before the champion answers in its place.

A dead replica says nothing: Serve's router holds a request until a new replica is there, which takes seconds. What a version
usually takes for an answer tells silence from work, so the wait is a multiple of it and not the whole time limit. What it takes
is best read off its own clock: its first answers, and those after a death, come late and were quickly made.
"""

from __future__ import annotations

from collections import deque

LEAST_S = 0.25
DOUBTED_S = 0.05
_FACTOR = 5.0  # times the 99th percentile
_NEEDED = 5  # answers before anything is usual
_KEPT = 500
_EACH = 25  # answers between two looks at the percentile
_ROWS = 64  # that many and fewer count as an ordinary request; more may take longer in proportion


class Patience:
    """Of one gateway with one version. Not thread-safe.

    Parameters
    ----------
    most_s : seconds that are waited at most, and for each request until :data:`_NEEDED` answers have come
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._took: deque[float] = deque(maxlen=_KEPT)
        self._seen = 0
        self._p99_s: float | None = None
        self._doubted = False

    def limit_s(self, rows: int) -> float:
        """Seconds to wait for the answer to that many rows: five times the usual longest, and 0.25 s at least. While the
        last that is known of the version is its silence: once the usual longest, and 0.05 s at least."""
        if self._p99_s is None:
            return min(self._most_s, LEAST_S) if self._doubted else self._most_s
        wait = max(DOUBTED_S, self._p99_s) if self._doubted else max(LEAST_S, _FACTOR * self._p99_s)
        return min(self._most_s, wait * max(1.0, rows / _ROWS))

    def answered(self, took_s: float) -> None:
        """An answer came, in time or late; the version took ``took_s`` seconds for it."""
        self._doubted = False
        self._took.append(took_s)
        self._seen += 1
        if self._seen % (_NEEDED if self._seen < 2 * _EACH else _EACH) == 0:
            self._p99_s = sorted(self._took)[int(0.99 * (len(self._took) - 1))]

    def silent(self) -> None:
        """No answer came within :meth:`limit_s`."""
        self._doubted = True
