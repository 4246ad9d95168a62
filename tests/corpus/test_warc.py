"""Reading WARC, ARC and WET: every record gets a row, its position is right, and damage loses only what it hits."""

import gzip
import re
import zlib
from collections import Counter
from pathlib import Path

import pytest

from corpus import warc
from corpus.warc import BrokenRecord, Record, fetch_record, read_records
from corpus.warc_writer import WarcWriter, stored_gzip

PAGE = b"<!doctype html><html><body><h1>Title %d</h1><p>Some text of page %d.</p></body></html>"


def response(
    body: bytes, headers: str = "Content-Type: text/html; charset=UTF-8\r\n", status: str = "200 OK"
) -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body


def record(number: int, block: bytes, warc_type: str = "response", length: int | None = None) -> bytes:
    return (
        (
            f"WARC/1.0\r\nWARC-Type: {warc_type}\r\nWARC-Record-ID: <urn:test:{number}>\r\n"
            f"WARC-Target-URI: http://a.example/{number}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
            f"Content-Type: application/http; msgtype=response\r\n"
            f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
        ).encode()
        + block
        + b"\r\n\r\n"
    )


def pages(count: int) -> list[bytes]:
    return [record(n, response(PAGE % (n, n))) for n in range(count)]


def read(path: Path, **options) -> list[Record | BrokenRecord]:
    return list(read_records(path, path.name, **options))


def written(folder: Path, data: bytes, name: str = "a.warc.gz") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def one(folder: Path, block: bytes, **options) -> Record | BrokenRecord:
    (found,) = read(written(folder, record(0, block), "a.warc"), **options)
    return found


LAYOUTS = {
    "plain": lambda records: b"".join(records),
    "one member a record": lambda records: b"".join(map(gzip.compress, records)),
    "one member in all": lambda records: gzip.compress(b"".join(records)),
    "stored members": lambda records: b"".join(map(stored_gzip, records)),
    "a record over two members": lambda records: b"".join(
        gzip.compress(r[:250]) + gzip.compress(r[250:]) for r in records
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_record_is_fetched_again_by_its_byte_range(tmp_path, layout):
    path = written(tmp_path, LAYOUTS[layout](pages(5)))
    found = read(path)
    assert [r.payload for r in found] == [PAGE % (n, n) for n in range(5)]
    for r in found:
        alone = fetch_record(path, path.name, r.warc_offset, r.warc_length, r.record_id)
        assert (alone.record_id, alone.url, alone.payload) == (r.record_id, r.url, r.payload)
    if layout != "one member in all":
        ends = [r.warc_offset + r.warc_length for r in found]
        assert [r.warc_offset for r in found] == [0, *ends[:-1]]
        assert ends[-1] == path.stat().st_size


def test_a_byte_range_of_another_file_is_refused(tmp_path):
    path = written(tmp_path, b"".join(map(gzip.compress, pages(2))))
    with pytest.raises(LookupError, match="changed since"):
        fetch_record(path, path.name, 0, 400, "urn:test:7")


@pytest.mark.parametrize("layout", ["plain", "one member a record", "stored members"])
def test_a_file_cut_at_any_byte_keeps_all_before_the_cut(tmp_path, layout):
    pack = LAYOUTS[layout]
    records = pages(3)
    whole = pack(records)
    starts = [len(pack(records[:n])) for n in range(4)]
    for cut in range(1, len(whole), 3):
        found = read(written(tmp_path, whole[:cut]))
        complete = [n for n in range(3) if starts[n + 1] <= cut]
        good = [r.record_id for r in found if isinstance(r, Record)]
        # Of a plain file the CRLFs behind the last record may be missing: the page is whole all the same.
        assert good[: len(complete)] == [f"urn:test:{n}" for n in complete]
        assert len(good) <= len(complete) + (layout == "plain")
        assert len(found) - len(complete) in (0, 1)
        if len(found) > len(good):
            assert found[-1].rule in ("truncated", "not_a_record", "bad_length", "no_pages"), cut


@pytest.mark.parametrize("layout", ["one member a record", "stored members"])
def test_a_damaged_member_costs_one_record(tmp_path, layout):
    pack = LAYOUTS[layout]
    members = [pack([r]) for r in pages(5)]
    at = len(b"".join(members[:2]))
    for hit in range(at + 12, at + len(members[2]), 7):
        damaged = bytearray(b"".join(members))
        damaged[hit] ^= 0xFF
        found = read(written(tmp_path, bytes(damaged)))
        broken = [r for r in found if isinstance(r, BrokenRecord)]
        assert [r.record_id for r in found if isinstance(r, Record)] == [
            f"urn:test:{n}" for n in (0, 1, 3, 4)
        ]
        assert [r.rule for r in broken] == ["corrupt_gzip"]
        assert broken[0].warc_offset == at


def test_a_length_that_would_swallow_the_next_records_costs_one_record(tmp_path):
    records = pages(4)
    records[1] = record(1, response(PAGE % (1, 1)), length=100_000)
    found = read(written(tmp_path, b"".join(records), "a.warc"))
    assert [getattr(r, "rule", "") for r in found] == ["", "bad_length", "", ""]


def test_a_length_some_bytes_too_small_keeps_the_page_complete(tmp_path):
    records = pages(3)
    block = response(PAGE % (1, 1))
    records[1] = record(1, block, length=len(block) - 3)
    found = read(written(tmp_path, b"".join(records), "a.warc"))
    assert [r.payload for r in found] == [PAGE % (n, n) for n in range(3)]


def test_bodies_are_unpacked(tmp_path):
    import brotli
    import zstandard

    page = PAGE % (1, 1)
    raw = zlib.compressobj(wbits=-15)
    coded = {
        "gzip": gzip.compress(page),
        "x-gzip": gzip.compress(page),
        "deflate": zlib.compress(page),
        "Deflate": raw.compress(page) + raw.flush(),
        "br": brotli.compress(page),
        "zstd": zstandard.compress(page),
        "gzip ": page,  # stored unpacked under its old header
        "br ": page,
        "identity": page,
        "no-such-coding": page,
        "deflate, gzip": gzip.compress(zlib.compress(page)),
    }
    for coding, body in coded.items():
        found = one(tmp_path, response(body, f"Content-Type: text/html\r\nContent-Encoding: {coding}\r\n"))
        assert found.payload == page, coding
    chunks = b"".join(
        b"%x;ext=1\r\n%s\r\n" % (len(page[i : i + 9]), page[i : i + 9]) for i in range(0, len(page), 9)
    )
    for body in (chunks + b"0\r\n\r\n", chunks, page):
        found = one(tmp_path, response(body, "Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n"))
        assert found.payload == page
    broken = one(tmp_path, response(gzip.compress(page)[:10] + b"\x07" * 9, "Content-Encoding: gzip\r\n"))
    assert broken.rule == "bad_encoding"


def test_a_decompression_bomb_and_a_huge_record_are_too_large(tmp_path):
    bomb = gzip.compress(gzip.compress(bytes(200 << 20)))
    headers = "Content-Type: text/html\r\nContent-Encoding: gzip, gzip\r\n"
    assert one(tmp_path, response(bomb, headers)).rule == "too_large"
    path = written(tmp_path, b"".join(map(gzip.compress, [record(0, response(bytes(5000))), *pages(2)])))
    found = read(path, limit=4000)
    assert [getattr(r, "rule", "") for r in found] == ["too_large", "", ""]
    assert found[0].warc_length == found[1].warc_offset


def test_records_are_classified(tmp_path):
    latin = one(tmp_path, response(b"<html>", 'Content-Type: Text/HTML ; charset="ISO-8859-1"\r\n'))
    assert (latin.content_type, latin.http_charset, latin.kind) == ("text/html", "iso-8859-1", "html")
    assert one(tmp_path, response(b"gone", status="404")).status == 404
    assert one(tmp_path, response(b"  <!DOCTYPE html><html>", "")).kind == "html"
    assert one(tmp_path, response(b"\x89PNG", "Content-Type: image/png\r\n")).kind == "other"
    assert one(tmp_path, b"no http at all").rule == "bad_http"
    changed = record(0, b"x").replace(b"Content-Type", b"WARC-Block-Digest: sha1:AAAA\r\nContent-Type", 1)
    assert read(written(tmp_path, changed))[0].rule == "bad_digest"


def test_repeated_ids_in_a_file_get_a_number(tmp_path):
    found = read(written(tmp_path, b"".join(map(gzip.compress, [*pages(2), *pages(2)]))))
    assert [r.record_id for r in found] == ["urn:test:0", "urn:test:1", "urn:test:0#2", "urn:test:1#2"]
    last = found[-1]
    assert fetch_record(tmp_path / "a.warc.gz", "a", last.warc_offset, last.warc_length, last.record_id)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"not a crawl at all\n" * 9, gzip.compress(b"hello"), b"\x1f\x8b\x08"],
    ids=["empty", "blank", "text", "gzip", "cut"],
)
def test_a_file_without_records_gives_one_row(tmp_path, data):
    (found,) = read(written(tmp_path, data))
    assert found.rule in ("no_pages", "not_a_record", "truncated")


def test_an_independent_reader_reads_what_the_writer_writes(tmp_path):
    from fastwarc import ArchiveIterator

    path = tmp_path / "a.warc.gz"
    with WarcWriter(path) as writer:
        for n in range(3):
            writer.write(
                "response", f"urn:test:{n}", "2026-01-01T00:00:00Z", response(PAGE % (n, n)), url="http://a"
            )
    theirs = [(r.record_id.strip("<>"), r.stream_pos, r.reader.read()) for r in ArchiveIterator(str(path))]
    assert theirs == [(r.record_id, r.warc_offset, r.payload) for r in read(path)]
    with gzip.open(path) as file:
        assert file.read().count(b"WARC/1.1\r\n") == 3


ARC_RECORDS = {
    "bad.arc": 4,
    "pywb-bad.arc": 4,
    "example.arc": 2,
    "example.arc.gz": 2,
    "example-space-in-url.arc": 2,
}
BROKEN = {  # counted by hand; all other fixtures have none
    "bad.arc": Counter(bad_length=2),
    "pywb-bad.arc": Counter(bad_length=2),
    "example-digest.warc": Counter(no_pages=1),
    "example-bad-non-chunked.warc.gz": Counter(bad_digest=1),
    "example-wrong-chunks.warc.gz": Counter(bad_digest=1),
}
NOT_PAGES = {"warcinfo", "request", "metadata", "filedesc"}


def test_every_record_of_every_fixture_is_read(shared_data):
    fixtures = sorted((shared_data / "warc-fixtures").iterdir())
    assert len(fixtures) == 24
    for path in fixtures:
        counts: Counter[str] = Counter()
        found = read(path, counts=counts)
        assert found, path.name
        assert Counter(r.rule for r in found if isinstance(r, BrokenRecord)) == BROKEN.get(
            path.name, Counter()
        )
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        there = ARC_RECORDS.get(path.name) or len(re.findall(rb"(?m)^WARC-Type: ", data))
        assert counts.total() == there, path.name
        rows = sum(n for kind, n in counts.items() if kind not in NOT_PAGES)
        assert len(found) == rows + (path.name == "example-digest.warc")


def test_every_fixture_record_is_fetched_again_by_its_byte_range(shared_data):
    for path in sorted((shared_data / "warc-fixtures").iterdir()):
        for r in read(path):
            if isinstance(r, Record) and not r.record_id.startswith("urn:stemma"):
                alone = fetch_record(path, path.name, r.warc_offset, r.warc_length, r.record_id)
                assert (alone.url, alone.payload, alone.status) == (r.url, r.payload, r.status), path.name


def test_real_pages_are_read_as_an_independent_reader_reads_them(shared_data):
    from fastwarc import ArchiveIterator, WarcRecordType

    path = shared_data / "crawl" / "real-web-00.warc.gz"
    ours = read(path)
    pages_there = ArchiveIterator(str(path), record_types=WarcRecordType.response)
    theirs = [(r.record_id.strip("<>"), r.stream_pos, r.reader.read()) for r in pages_there]
    assert [(r.record_id, r.warc_offset, r.payload) for r in ours] == theirs
    assert len(ours) == 547


def test_common_crawls_warc_wet_and_wat_are_a_page_a_text_and_no_page(shared_data):
    folder = shared_data / "common-crawl"
    (page,) = read(folder / "whirlwind.warc.gz")
    (text,) = read(folder / "whirlwind.warc.wet.gz")
    (metadata,) = read(folder / "whirlwind.warc.wat.gz")
    assert (page.kind, page.status) == ("html", 200)
    assert (text.kind, text.status, text.url) == ("text", None, page.url)
    assert "Escopete" in text.payload.decode("utf-8")
    assert metadata.rule == "no_pages" and "WAT" in metadata.detail


def test_arc_gives_the_pages_of_its_warc_twin(shared_data):
    folder = shared_data / "warc-fixtures"
    arc, zipped, spaced = (
        read(folder / n)[0] for n in ("example.arc", "example.arc.gz", "example-space-in-url.arc")
    )
    assert arc.payload == zipped.payload and arc.payload.startswith(b"<!doctype html>")
    assert (arc.date, arc.status, len(arc.payload)) == ("2014-02-16T05:02:21Z", 200, 1270)
    assert spaced.url.endswith("Examples From The Live Web&IsPopUp=False")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_path_reads_the_same_records_as_the_slow_one(tmp_path, monkeypatch, layout):
    whole = LAYOUTS[layout]([*pages(3), record(3, b"GET / HTTP/1.1\r\n\r\n", "request"), *pages(2)])
    broken = [whole, whole[:-7]]
    for at in range(0, len(whole), 17):
        broken += [whole[:at] + bytes([whole[at] ^ 9]) + whole[at + 1 :], whole[:at] + whole[at + 5 :]]
    quick = [read(written(tmp_path, data)) for data in broken]
    monkeypatch.setattr(warc, "MANY_SLOW", 0)
    assert quick == [read(written(tmp_path, data)) for data in broken]


def test_random_damage_never_crashes_and_positions_stay_inside_the_file(tmp_path):
    import random

    chance = random.Random(5)
    whole = [pack(pages(4)) for pack in LAYOUTS.values()]
    for _ in range(400):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice([1, 3, 9])):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 50)]
                case 2:
                    data[at:at] = data[chance.randrange(len(data)) :][:200]
                case 3:
                    data = data[: at + 1] + bytearray(chance.choice(whole))
        found = read(written(tmp_path, bytes(data)))
        assert found and len({r.record_id for r in found}) == len(found)
        assert all(r.warc_length >= 0 <= r.warc_offset <= len(data) - r.warc_length for r in found)


def fastwarc_reads(path: Path) -> tuple[list[tuple[str, int]], bool]:
    """What FastWARC reads: id and size of the body of each record, and whether it raises an error."""
    from fastwarc import ArchiveIterator

    found = []
    try:
        for r in ArchiveIterator(str(path)):
            found.append((r.record_id.strip("<>"), len(r.reader.read())))
    except OSError:
        return found, True
    return found, False


def test_why_fastwarc_does_not_read_the_crawls(tmp_path):
    """The faults that docs/dependencies.md names; where one is gone, its reader is worth another look."""
    members = [gzip.compress(r) for r in pages(4)]
    size = len(PAGE % (0, 0))
    damaged = bytearray(members[1])
    damaged[len(damaged) // 2] ^= 0xFF
    path = written(tmp_path, members[0] + damaged + members[2])
    assert fastwarc_reads(path) == ([("urn:test:0", size)], True) and len(read(path)) == 3
    path = written(tmp_path, members[0] + b"other bytes" + members[1])
    assert fastwarc_reads(path) == ([("urn:test:0", size)], True) and len(read(path)) == 2
    path = written(tmp_path, stored_gzip(pages(1)[0])[:-30])
    ((_, part),), failed = fastwarc_reads(path)
    assert 0 < part < size and not failed and read(path)[0].rule == "truncated"
    path = written(
        tmp_path, record(0, response(PAGE % (0, 0)), length=100_000) + b"".join(pages(3)), "a.warc"
    )
    ((_, whole),), failed = fastwarc_reads(path)
    assert whole > 3 * size and not failed and len(read(path)) == 4
    path = written(tmp_path, b"http://a.example/ 1.2.3.4 20260101000000 text/html 3\nabc\n", "a.arc")
    assert fastwarc_reads(path) == ([], True) and len(read(path)) == 1


@pytest.mark.parametrize("shown", ["http://a.example/?q=<b>", "<http://a.example/?q=<b>>"])
def test_only_a_pair_of_angle_brackets_is_removed_from_a_url(tmp_path, shown):
    """WARC 1.0's grammar writes <uri>, WARC 1.1's uri; a URL may end in a bracket of its own."""
    data = pages(1)[0].replace(b"http://a.example/0", shown.encode())
    (found,) = read(written(tmp_path, data, "a.warc"))
    assert found.url == "http://a.example/?q=<b>"
