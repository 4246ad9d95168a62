"""Progress bars on stderr: often on a terminal, seldom in a log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

DECIDES_NOTHING = "how work is shown while it runs"


def interval() -> float:
    """Seconds between two drawings: half a second on a terminal, ten in a log file."""
    return 0.5 if sys.stderr.isatty() else 10.0


def progress_bar(total: float | None, what: str, unit: str = "it", **options: Any) -> tqdm:
    """A tqdm bar on stderr that is drawn every `interval()`; `options` are tqdm's own."""
    from tqdm import tqdm

    every = interval()
    style = {"mininterval": every, "maxinterval": every, "dynamic_ncols": True, "file": sys.stderr}
    return tqdm(total=total, desc=what, unit=unit, **style | options)
