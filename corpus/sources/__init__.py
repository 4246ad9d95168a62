"""Where a crawl comes from: one file a source. `corpus.crawl_spec` lists them, `corpus.crawl` builds from one."""
