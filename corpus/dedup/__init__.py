"""Duplicates: within a crawl, across crawls, and repeated runs of words; in bounded memory."""
