"""URLs: host, canonical form, block lists."""

import pytest

from corpus.config import CleanConfig
from corpus.urls import UrlFilter, canonical_url, host_of


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://User:pw@WWW.Example.ORG.:8080/a?b#c", "www.example.org"),
        ("http://[2001:db8::1]/x", "2001:db8::1"),
        ("http://[broken/x", ""),
        ("dns:example.org", ""),
        ("", ""),
    ],
)
def test_host(url, host):
    assert host_of(url) == host


def test_urls_of_the_same_page_have_one_canonical_form():
    forms = [
        "http://Example.org:80/a?x=1#top",
        "https://example.org/a?x=1&utm_source=mail",
        "https://example.org:443/a?fbclid=9&x=1",
    ]
    assert {canonical_url(url) for url in forms} == {"//example.org/a?x=1"}


def test_path_case_and_query_order_distinguish_pages():
    assert len({canonical_url(f"http://a.org/{p}") for p in ("A", "a", "a?x&y", "a?y&x", "a/")}) == 5


def test_a_blocked_domain_includes_its_subdomains_only():
    reject = UrlFilter(["spam.example"]).reject
    assert reject("http://www.spam.example/") == ("blocked_domain", "spam.example")
    assert reject("http://notspam.example/") is None


def test_one_blocked_word_or_two_suspect_words_drop_a_page():
    config = CleanConfig()
    reject = UrlFilter(config.blocked_domains, config.blocked_words, config.suspect_words).reject
    assert reject("http://free-porn.example/") == ("blocked_word", "porn")
    assert reject("http://hardcore-sex-movies.example/")[0] == "suspect_words"
    assert reject("http://health.example/sex-education") is None
    assert reject("http://sussex.example/essex") is None


def test_a_url_that_is_not_on_the_web_is_rejected():
    assert UrlFilter().reject("urn:isbn:12")[0] == "not_a_web_address"
