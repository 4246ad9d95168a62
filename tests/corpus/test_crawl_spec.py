"""What params.yaml says about a crawl is checked before anything runs, without loading a library."""

import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from pydantic import TypeAdapter

from core.errors import ConfigError
from corpus.crawl_spec import SOURCES, check_spec

HEAVY = ("pyarrow", "fastwarc", "scrapy", "requests", "fsspec", "datasets", "numpy", "isal")
MINIMAL = {
    "sample": {},
    "warc": {"paths": "*.warc.gz"},
    "commoncrawl": {"crawl": "CC-MAIN-2026-45"},
    "urls": {"list": "urls.txt"},
    "text": {"dataset": "HuggingFaceFW/fineweb"},
}


def test_checking_a_crawl_loads_no_library(root):
    code = f"""
import sys
from corpus.crawl_spec import check_spec
for source, spec in {MINIMAL!r}.items():
    check_spec("mine", {{"source": source, **spec}})
print(sorted(set(sys.modules) & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_describes_its_settings(source):
    cls = SOURCES[source]
    assert set(TypeAdapter(cls).json_schema()["properties"]) == {field.name for field in fields(cls)}
    assert set(MINIMAL[source]) == {field.name for field in fields(cls) if field.default is MISSING}
    assert isinstance(check_spec("mine", {"source": source, **MINIMAL[source]}), cls)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"source": "sample", "page": 200},
            r"unknown page\. Did you mean pages\? The source 'sample' has: pages",
        ),
        ({"source": "warc", "paths": 5}, "paths is 5; input should be a valid string"),
        ({"source": "warc", "paths": []}, "the source 'warc' needs 'paths', a glob"),
        (
            {"source": "urls", "list": ["http://a.example"], "delay": "long"},
            "delay is 'long'; input should be a valid",
        ),
        ("warcs/*.gz", "expected settings by name"),
    ],
)
def test_an_invalid_setting_is_named_with_its_place(spec, message):
    with pytest.raises(ConfigError, match=r"^params\.yaml, crawls\.mine: .*" + message):
        check_spec("mine", spec)
