"""Text datasets, read through `datasets`: from the Hugging Face hub, or local and remote files in the same formats.

Notable: each row becomes a WARC `conversion` record, as in Common Crawl's WET files, and is cleaned like any page; a
row without text becomes an empty record, so that it gets its row in the ledger too. The hub's revision is resolved to
a commit first, so one version is read to the end, and the manifest names it. Rows are streamed; after an interruption
those of finished files are skipped. JSON lines are parsed one by one, because the Arrow reader gives up a whole file
for one broken line; such a line is kept as it is, as a record that is no text.
"""

import hashlib
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError
from core.files import write_atomically
from core.hashing import file_sha256
from core.progress import progress_bar
from corpus.sources.source import (
    BuildContext,
    FetchedFiles,
    link_or_copy,
    local_files,
    require_at_least,
)
from corpus.sources.warc_files import find_files
from corpus.warc_writer import WarcWriter

Reader = tuple[str, dict[str, Any]]  # the builder's name for `datasets.load_dataset`, and its options
FORMATS: dict[str, Reader] = {  # how a file's name ends -> its reader
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
COMPRESSED = re.compile(r"\.(gz|zst|xz|bz2)$")
UNKNOWN_DATE = "1970-01-01T00:00:00Z"
BATCH = 500  # rows read at a time
COLUMN_SAMPLE = 100  # lines of JSON that are read to learn the names of the columns
CONTROL = re.compile(r"[\x00-\x20\x7f]+")  # characters that may not occur in a WARC header field


class BrokenLine(str):
    """A line that is no JSON object."""


@dataclass(frozen=True)
class TextDataset:
    """A dataset on the hub, or files. Columns that are not named default to `url`, `date` and `id` if present."""

    dataset: str = field(  # a name on the hub, or a glob (relative to the project) or URL of files: FORMATS
        metadata={"needs": "a name on the Hugging Face hub or a glob of files"}
    )
    config: str | None = None  # as datasets.load_dataset has it, like split, revision and data_files
    split: str = "train"
    revision: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    text_column: str = "text"
    url_column: str | None = None
    date_column: str | None = None
    id_column: str | None = None  # an id of the form <urn:…> becomes the record's id
    limit: int | None = None  # rows to read
    rows_per_file: int = 50_000  # of the WARC files that are written

    def __post_init__(self) -> None:
        require_at_least(self, limit=1, rows_per_file=1)

    @classmethod
    def shorthand(cls, argument: str) -> dict[str, Any]:
        """A glob of files, or a name on the hub: HuggingFaceFW/fineweb, HuggingFaceFW/fineweb:sample-10BT"""
        if _reader(argument) or "://" in argument:
            return {"dataset": argument}
        dataset, _, config = argument.partition(":")
        return {"dataset": dataset, **({"config": config} if config else {})}

    def check(self, name: str, root: Path) -> None:
        """Raises MissingError for a glob that matches nothing; the hub is not asked."""
        if _reader(self.dataset) and "://" not in self.dataset:
            find_files(name, self.dataset, root)

    def build(self, context: BuildContext) -> FetchedFiles:
        """Write text-00000.warc.gz and so on. Raises ConfigError or DataError where the rows cannot be read."""
        options, version = self._options(context)
        work = self._work(context, version)
        written = sorted(work.glob("text-*.warc.gz"))
        rows = self._rows(context, options, skip=len(written) * self.rows_per_file)
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
            raise DataError(f"crawl {context.name}: {self.dataset} holds no rows.")
        for path in written:
            link_or_copy(path, context.out / path.name)
        return FetchedFiles(self._description(version), local_files(context.out))

    def _description(self, version: str) -> str:
        parts = [f"text of {self.dataset}", self.config, f"split {self.split}", version]
        return ", ".join(part for part in [*parts, self.limit and f"first {self.limit:,} rows"] if part)

    def _options(self, context: BuildContext) -> tuple[dict[str, Any], str]:
        """The options for load_dataset, and a description of the data's version."""
        reader = _reader(self.dataset)
        if not reader:
            revision = self._commit(context)
            named = {"path": self.dataset, "name": self.config, "data_files": self.data_files}
            return {**named, "revision": revision}, f"commit {revision}"
        name, options = reader
        if "://" in self.dataset:
            return {"path": name, "data_files": self.dataset, **options}, "version unknown (by URL)"
        files = find_files(context.name, self.dataset, context.root)
        digest = hashlib.sha256()
        for path, shown in files:
            digest.update(f"{shown} {file_sha256(Path(path))}\n".encode())
        version = f"{len(files):,} files with sha256 {digest.hexdigest()}"
        return {"path": name, "data_files": [path for path, _ in files], **options}, version

    def _commit(self, context: BuildContext) -> str | None:
        """The commit that the revision (default: the newest) stands for."""
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.dataset, revision=self.revision).sha
        except Exception as error:  # no network, no such name, no permission: the hub's message says which
            raise ConfigError(
                f"crawl {context.name}: the hub does not give the dataset {self.dataset!r} "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). "
                "For files of your own, name them with their ending, as in texts/*.jsonl."
            ) from error

    def _work(self, context: BuildContext, version: str) -> Path:
        """The folder of finished files; emptied if they are of another version or of other settings."""
        work = context.work / "text"
        state = json.dumps([version, self.rows_per_file, *vars(self).values()], default=str)
        if not (work / "about.json").is_file() or (work / "about.json").read_text() != state:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_atomically(work / "about.json", state)
        return work

    def _rows(
        self, context: BuildContext, options: dict[str, Any], skip: int
    ) -> Iterator[tuple[int, Any, Any, Any, Any]]:
        """(number, text, url, date, id) of each row from `skip` on. Raises DataError."""
        number = skip
        try:
            with progress_bar(self.limit, f"reading {self.dataset}", " rows", initial=skip) as bar:
                columns, batches = self._open(options, skip)
                for batch in batches:
                    text, url, date, row_id = (batch[c] if c else itertools.repeat(None) for c in columns)
                    for values in zip(text, url, date, row_id, strict=False):
                        yield number, *values
                        number += 1
                    bar.update(number - bar.n)
        except Exception as error:  # whatever the reader raises: name the place
            raise DataError(
                f"crawl {context.name}: {self.dataset} cannot be read behind row {number:,} "
                f"({type(error).__name__}: {str(error)[:300]})."
            ) from error

    def _open(
        self, options: dict[str, Any], skip: int
    ) -> tuple[list[str | None], Iterator[dict[str, list[Any]]]]:
        """The names of the columns text, url, date and id (None: there is no such), and batches of rows."""
        from datasets import load_dataset

        data: Any = load_dataset(**options, split=self.split, streaming=True)
        json_lines = COMPRESSED.sub("", self.dataset).endswith(JSON_LINES)
        if json_lines:
            data = data.filter(lambda row: bool(row["text"].strip()))
            sample = data.take(COLUMN_SAMPLE)
            names = list(dict.fromkeys(name for row in sample for name in _parse(row["text"]) or ()))
        else:
            names = data.column_names or list(next(iter(data), {}))
        optional = {"url": self.url_column, "date": self.date_column, "id": self.id_column}
        missing = [c for c in (self.text_column, *optional.values()) if c and c not in names]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(names) or 'none'}")
        wanted = [self.text_column, *(column or name for name, column in optional.items())]
        columns = [column if column in names else None for column in wanted]
        if not json_lines:
            data = data.select_columns(sorted({column for column in columns if column}))
        if self.limit is not None:
            data = data.take(self.limit)
        batches = (data.skip(skip) if skip else data).iter(batch_size=BATCH)
        if json_lines:
            return columns, (_parse_batch(batch["text"], columns) for batch in batches)
        return columns, batches

    def _write(self, warc: WarcWriter, number: int, text: Any, url: Any, date: Any, row_id: Any) -> None:
        """One row as a record."""
        place = f"{_host(self.dataset)}/{self.config or 'default'}/{self.split}/{number}"
        urn = _header_value(row_id).strip("<>")
        known = urn.startswith("urn:") and len(urn) > 8
        broken = isinstance(text, BrokenLine)
        warc.write(
            "resource" if broken else "conversion",
            urn if known else f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, place)}",
            _warc_date(date),
            ("" if text is None else str(text)).encode("utf-8", "replace"),
            url=_header_value(url or "") or f"http://{place}",
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


def _parse_batch(lines: list[str], columns: list[str | None]) -> dict[str, list[Any]]:
    """Lines of JSON as columns, the first that of the text; of a broken line the line itself is the text."""
    text = columns[0] or ""
    rows = [{text: BrokenLine(line)} if (row := _parse(line)) is None else row for line in lines]
    return {column: [row.get(column) for row in rows] for column in columns if column}


def _reader(dataset: str) -> Reader | None:
    """The reader for files whose name ends so; None for a name on the hub."""
    plain = COMPRESSED.sub("", dataset)
    return next((reader for ending, reader in FORMATS.items() if plain.endswith(ending)), None)


def _header_value(value: Any) -> str:
    """What may be the value of a WARC header field."""
    return CONTROL.sub("", str(value)).encode("utf-8", "replace").decode()


def _host(dataset: str) -> str:
    """A host name for rows without a URL, under a domain that can never exist (RFC 2606)."""
    words = re.findall(r"[a-z0-9]+", COMPRESSED.sub("", dataset).lower())
    return "-".join(words)[-60:].strip("-") + ".invalid"


def _warc_date(value: Any) -> str:
    """ISO 8601 in UTC with seconds; a date that cannot be read is UNKNOWN_DATE."""
    try:
        when = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
        return when.strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return UNKNOWN_DATE
