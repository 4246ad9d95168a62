"""The demo's crawl: a small web of real text with planted errors whose truth is known. `build.build_sample` writes it.

Not a source of real pages: `corpus.sources.sample` offers it beside those, and everything downstream treats its WARC
files like any other crawl's.
"""
