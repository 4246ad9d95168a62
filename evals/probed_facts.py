"""Facts with what the base model answered: how SFT's conversations and the reports know what it knows.

The statuses are defined in probes.py, which writes them beside the conversations (probes.parquet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.facts import sentence

if TYPE_CHECKING:
    import pyarrow as pa

KNOWN, UNSURE, UNKNOWN, INVENTED = "known", "unsure", "unknown", "invented"  # statuses
TRAIN, HELDOUT = "train", "heldout"  # splits


@dataclass(frozen=True)
class Probe:
    """A fact, what the base model answered, and its status. Invented names have no fact behind them."""

    subject: str
    verb: str
    status: str
    split: str
    definiens: str = ""
    completion: str = ""
    record_id: str | None = None
    url: str | None = None

    @property
    def answer(self) -> str:
        """The fact as a sentence."""
        return sentence(self.subject, self.verb, self.definiens)


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    """Parquet of every probe, one row each."""
    import pyarrow as pa

    names = ("subject", "verb", "status", "split", "definiens", "completion", "record_id", "url")
    schema = pa.schema([(name, pa.string()) for name in names])
    write_rows(path, [{name: getattr(p, name) for name in names} for p in probes], schema)


def read_probes(folder: Path) -> list[Probe]:
    """What write_probes wrote into a conversations folder."""
    import pyarrow.parquet as pq

    return [Probe(**row) for row in pq.read_table(Path(folder) / "probes.parquet").to_pylist()]


def write_rows(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Parquet of rows, compressed by zstd."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
