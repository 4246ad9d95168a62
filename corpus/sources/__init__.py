"""Where a crawl comes from: one file a source. `corpus.crawl` chooses among them and writes the manifest."""
