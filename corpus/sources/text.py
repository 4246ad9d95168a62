"""Text that others have made ready, read through `datasets`: from the Hugging Face hub, or files of the same forms.

Notable: each row becomes a WARC `conversion` record, as in Common Crawl's WET files, and goes through the same door
as any page; a row without text becomes an empty record, so that it gets its row in the ledger too. The hub's
revision is resolved to a commit first, so the same version is read to the end, and the manifest names it. Rows are
streamed; after an interruption those of finished files are skipped. JSON lines are parsed one by one, because the
Arrow reader gives up a whole file for one broken line; such a line is kept as it is, as a record that is no text.
"""

import hashlib
import itertools
import json
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from corpus.sources.source import Brought, Place, at_least, local_files, place_file
from corpus.sources.warc_files import find_files
from corpus.warc_writer import WarcWriter

FORMATS = {  # how a file's name ends -> the reader of `datasets`, and what it is told
    ".jsonl": ("text", {"encoding_errors": "replace"}),  # parsed here, line by line
    ".ndjson": ("text", {"encoding_errors": "replace"}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".txt": ("text", {"sample_by": "document", "encoding_errors": "replace"}),  # one text a file
}
JSON_LINES = (".jsonl", ".ndjson")
PACKED = re.compile(r"\.(gz|zst|xz|bz2)$")
UNKNOWN_DATE = "1970-01-01T00:00:00Z"
BATCH = 500  # rows read at a time
LOOKED_AT = 100  # lines of JSON, to learn the names of the columns
CONTROL = re.compile(r"[\x00-\x20\x7f]+")  # nothing of the kind may stand in a WARC header field


class BrokenLine(str):
    """A line that is no JSON object."""


@dataclass(frozen=True)
class ReadyText:
    """dataset: a name on the hub, or a glob of local files or an fsspec URL (jsonl, parquet, arrow, csv, tsv, txt;
    relative to the project). config, split, revision, data_files: as `datasets.load_dataset` has them.

    text_column holds the text. url_column, date_column and id_column default to `url`, `date` and `id` where there
    are such; an id of the form <urn:…> becomes the record's id. limit: rows to read. rows_per_file: of the WARC
    files that are written.
    """

    dataset: str = field(metadata={"needs": "a name on the Hugging Face hub or a glob of files"})
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | list | dict | None = None
    text_column: str = "text"
    url_column: str | None = None
    date_column: str | None = None
    id_column: str | None = None
    limit: int | None = None
    rows_per_file: int = 50_000

    def __post_init__(self):
        at_least(self, limit=1, rows_per_file=1)

    @classmethod
    def shorthand(cls, words: str) -> dict[str, Any]:
        """A glob of files, or a name on the hub: HuggingFaceFW/fineweb, HuggingFaceFW/fineweb:sample-10BT"""
        if _reader(words) or "://" in words:
            return {"dataset": words}
        dataset, _, config = words.partition(":")
        return {"dataset": dataset, **({"config": config} if config else {})}

    def check(self, name: str, root: Path) -> None:
        if _reader(self.dataset) and "://" not in self.dataset:
            find_files(name, self.dataset, root)

    def build(self, place: Place) -> Brought:
        """Write text-00000.warc.gz and so on. Raises ValueError, a sentence, where the rows cannot be read."""
        options, version = self._options(place)
        work = self._work(place, version)
        written = sorted(work.glob("text-*.warc.gz"))
        rows = self._rows(place, options, skip=len(written) * self.rows_per_file)
        for number in itertools.count(len(written)):
            first = next(rows, None)
            if first is None:
                break
            path = work / f"text-{number:05}.warc.gz"
            with WarcWriter(path) as warc:
                for row in itertools.chain([first], itertools.islice(rows, self.rows_per_file - 1)):
                    self._write(warc, *row)
            written.append(path)
        if not written:
            raise ValueError(f"crawl {place.name}: {self.dataset} holds no rows.")
        for path in written:
            place_file(path, place.out / path.name)
        return Brought(self._words(version), local_files(place.out))

    def _words(self, version: str) -> str:
        parts = [f"text of {self.dataset}", self.config, f"split {self.split}", version]
        return ", ".join(part for part in [*parts, self.limit and f"first {self.limit:,} rows"] if part)

    def _options(self, place: Place) -> tuple[dict[str, Any], str]:
        """What load_dataset is told, and the version of the data in words."""
        reader = _reader(self.dataset)
        if not reader:
            revision = self._commit(place)
            named = {"path": self.dataset, "name": self.config, "data_files": self.data_files}
            return {**named, "revision": revision}, f"commit {revision}"
        name, told = reader
        if "://" in self.dataset:
            return {"path": name, "data_files": self.dataset, **told}, "version unknown (by URL)"
        files = find_files(place.name, self.dataset, place.root)
        digest = hashlib.sha256()
        for path, shown in files:
            with Path(path).open("rb") as file:
                digest.update(f"{shown} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        version = f"{len(files):,} files with sha256 {digest.hexdigest()}"
        return {"path": name, "data_files": [path for path, _ in files], **told}, version

    def _commit(self, place: Place) -> str:
        """The commit that the revision (default: the newest) stands for."""
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.dataset, revision=self.revision).sha
        except Exception as error:  # no network, no such name, no right to it: the hub's words say which
            raise ValueError(
                f"crawl {place.name}: the hub does not give the dataset {self.dataset!r} "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). "
                "For files of your own, name them with their ending, as in texts/*.jsonl."
            ) from error

    def _work(self, place: Place, version: str) -> Path:
        """The folder of finished files; emptied if they are of another version or were cut otherwise."""
        work, about = place.work / "text", [version, self.rows_per_file, *vars(self).values()]
        words = json.dumps(about, default=str)
        if not (work / "about.json").is_file() or (work / "about.json").read_text() != words:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            (work / "about.json").write_text(words)
        return work

    def _rows(
        self, place: Place, options: dict[str, Any], skip: int
    ) -> Iterator[tuple[int, Any, str, str, str]]:
        """(number, text, url, date, id) of each row from `skip` on. Raises ValueError, a sentence."""
        from tqdm import tqdm

        bar = tqdm(
            desc=f"reading {self.dataset}",
            unit=" rows",
            total=self.limit,
            initial=skip,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )
        number = skip
        try:
            columns, batches = self._open(options, skip)
            with bar:
                for batch in batches:
                    for values in zip(
                        *(batch[c] if c else itertools.repeat(None) for c in columns), strict=False
                    ):
                        yield number, *values
                        number += 1
                    bar.update(number - bar.n)
        except Exception as error:  # whatever the reader raises, the place is known and the sentence tells it
            raise ValueError(
                f"crawl {place.name}: {self.dataset} cannot be read behind row {number:,} "
                f"({type(error).__name__}: {str(error)[:300]})."
            ) from error

    def _open(self, options: dict[str, Any], skip: int) -> tuple[list[str | None], Iterator[dict[str, list]]]:
        """The names of the columns text, url, date and id (None: there is no such), and batches of rows."""
        from datasets import load_dataset

        data = load_dataset(**options, split=self.split, streaming=True)
        lines = PACKED.sub("", self.dataset).endswith(JSON_LINES)
        if lines:
            data = data.filter(lambda row: bool(row["text"].strip()))
            names = list(
                dict.fromkeys(name for row in data.take(LOOKED_AT) for name in _parse(row["text"]) or ())
            )
        else:
            names = data.column_names or list(next(iter(data), {}))
        wanted = {"url": self.url_column, "date": self.date_column, "id": self.id_column}
        columns = [self.text_column, *(column or name for name, column in wanted.items())]
        missing = [c for c in (self.text_column, *wanted.values()) if c and c not in names]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(names) or 'none'}")
        columns = [column if column in names else None for column in columns]
        if not lines:
            data = data.select_columns(sorted({column for column in columns if column}))
        if self.limit is not None:
            data = data.take(self.limit)
        batches = (data.skip(skip) if skip else data).iter(batch_size=BATCH)
        return columns, (_parsed(batch["text"], columns) for batch in batches) if lines else batches

    def _write(self, warc: WarcWriter, number: int, text: Any, url: Any, date: Any, row_id: Any) -> None:
        """One row as a record."""
        place = f"{_host(self.dataset)}/{self.config or 'default'}/{self.split}/{number}"
        urn = _field(row_id).strip("<>")
        known = urn.startswith("urn:") and len(urn) > 8
        broken = isinstance(text, BrokenLine)
        warc.write(
            "resource" if broken else "conversion",
            urn if known else f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, place)}",
            _warc_date(date),
            ("" if text is None else str(text)).encode("utf-8", "replace"),
            url=_field(url or "") or f"http://{place}",
            content_type="application/x-broken-json" if broken else "text/plain; charset=utf-8",
            extra={"X-Source-Row": str(number)} | ({"X-Source-ID": urn} if row_id is not None else {}),
        )


def _parse(line: str) -> dict[str, Any] | None:
    """The object that a line holds, or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _parsed(lines: list[str], columns: list[str | None]) -> dict[str, list]:
    """Lines of JSON as columns; of a broken one the line itself stands for the text."""
    rows = [{columns[0]: BrokenLine(line)} if (row := _parse(line)) is None else row for line in lines]
    return {column: [row.get(column) for row in rows] for column in columns if column}


def _reader(dataset: str) -> tuple[str, dict[str, Any]] | None:
    """The reader for files whose name ends so; None for a name on the hub."""
    plain = PACKED.sub("", dataset)
    return next((reader for ending, reader in FORMATS.items() if plain.endswith(ending)), None)


def _field(value: Any) -> str:
    """What may stand in a field of a WARC header."""
    return CONTROL.sub("", str(value)).encode("utf-8", "replace").decode()


def _host(dataset: str) -> str:
    """A host name for rows without a URL, under a domain that can never exist (RFC 2606)."""
    words = re.findall(r"[a-z0-9]+", PACKED.sub("", dataset).lower())
    return "-".join(words)[-60:].strip("-") + ".invalid"


def _warc_date(value: Any) -> str:
    """ISO 8601 in UTC with seconds; a date that cannot be read is UNKNOWN_DATE."""
    try:
        when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        return when.strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return UNKNOWN_DATE
