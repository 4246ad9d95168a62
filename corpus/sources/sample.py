"""The demo's web (corpus/sample_web) as a source of a crawl: built on the spot, the same bytes everywhere."""

from dataclasses import dataclass
from pathlib import Path

from corpus.sample_web.build import build_sample
from corpus.sources.source import Brought, Place, at_least, local_files


@dataclass(frozen=True)
class Sample:
    """pages: records in all. seed: the same seed gives the same web. files: WARC files that they are spread over."""

    pages: int = 3000
    seed: int = 0
    files: int = 4

    def __post_init__(self) -> None:
        at_least(self, files=1)

    def check(self, name: str, root: Path) -> None:
        """Nothing on this machine to look for."""

    def build(self, place: Place) -> Brought:
        words = build_sample(place.out, self.pages, self.seed, files=self.files)
        return Brought(words, local_files(place.out))
