"""Clean archive files from the command line: `python -m corpus WARC… --out DIR`. `stemma clean` is the fuller form."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import StemmaError
from corpus.choices import PROFILES
from corpus.clean import clean_crawl
from corpus.config import CleanConfig
from corpus.engines.choose import ENGINES
from corpus.engines.pool import block_pandas
from corpus.report.summary import print_funnel

DECIDES_NOTHING = "a command line"


def main(arguments: Sequence[str] | None = None) -> int:
    """Clean the files that the arguments name; return the exit code."""
    options = _parser().parse_args(arguments)
    languages = tuple(code.strip() for code in options.languages.split(",") if code.strip())
    files = [(Path(warc).name, warc) for warc in options.warc]
    work = options.work or options.out.with_name(options.out.name + ".work")
    try:
        config = CleanConfig(languages=languages, profile=options.profile)
        stats = clean_crawl(files, options.out, work, config, workers=options.workers, engine=options.engine)
    except StemmaError as error:
        print(error, file=sys.stderr)
        return 1
    print_funnel(stats)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m corpus", description=__doc__)
    parser.add_argument("warc", nargs="+", help="WARC, ARC or WET files, local or fsspec URLs")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for documents/, ledger/ and stats.json"
    )
    parser.add_argument("--work", type=Path, help="folder of finished units (default: OUT.work)")
    parser.add_argument(
        "--languages", default="en", help="codes, comma-separated; empty keeps all (default: en)"
    )
    parser.add_argument(
        "--profile", choices=PROFILES, default="fast", help="extraction profile (default: fast)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="where the units run")
    return parser


if __name__ == "__main__":
    block_pandas()
    sys.exit(main())
