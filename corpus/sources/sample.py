"""The demo's web (corpus/sample_web) as a source of a crawl: built on the spot, the same bytes everywhere."""

from dataclasses import dataclass
from pathlib import Path

from corpus.sample_web.build import build_sample
from corpus.sample_web.plan import MIN_PAGES
from corpus.sources.source import BuildContext, FetchedFiles, local_files, require_at_least


@dataclass(frozen=True)
class Sample:
    """The demo's small web of real text with planted errors."""

    pages: int = 3000  # records in all
    seed: int = 0  # the same seed gives the same web
    files: int = 4  # WARC files that the records are spread over

    def __post_init__(self) -> None:
        require_at_least(self, pages=MIN_PAGES, files=1)

    def check(self, name: str, root: Path) -> None:
        """Nothing on this machine to look for."""

    def build(self, context: BuildContext) -> FetchedFiles:
        """Write the WARC files and the truth about them. Raises DataError where there is too little text."""
        description = build_sample(context.out, self.pages, self.seed, files=self.files)
        return FetchedFiles(description, local_files(context.out))
