"""The sites of the sample web: six designs, their hosts, and how a page becomes an HTTP response.

Notable: hosts are under the reserved name `.example` (RFC 2606). Designs differ in what an extractor must
handle: semantic HTML5, a wiki's nested divs and tables, a blog with widgets and comments, a table layout of
the nineties in windows-1252, a charset declared only in <meta>, a bare reference page.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from corpus.warc_writer import stored_gzip

LABELS = {
    "en": "Home|About us|Contact|Search|Related articles|We use cookies to improve your visit.|Accept|"
    "All rights reserved|Share|Newsletter|Leave a comment|Privacy policy|Most read|Log in",
    "fr": "Accueil|À propos|Contact|Rechercher|Articles liés|Nous utilisons des cookies.|Accepter|"
    "Tous droits réservés|Partager|Lettre d'information|Laisser un commentaire|Confidentialité|Les plus lus|"
    "Connexion",
    "es": "Inicio|Quiénes somos|Contacto|Buscar|Artículos relacionados|Usamos cookies.|Aceptar|"
    "Todos los derechos reservados|Compartir|Boletín|Deja un comentario|Privacidad|Lo más leído|Entrar",
}
NAMES = [
    "home",
    "about",
    "contact",
    "search",
    "related",
    "cookies",
    "accept",
    "rights",
    "share",
    "newsletter",
    "comment",
    "privacy",
    "popular",
    "login",
]


@dataclass(frozen=True, slots=True)
class Site:
    """A host with one design. `charset` is what the bytes are in, `declared` what the HTTP header says of it."""

    host: str
    design: str
    language: str
    charset: str = "utf-8"
    declared: bool = True
    transfer: str = "plain"  # or "chunked", "gzip"

    @property
    def name(self) -> str:
        return self.host.removesuffix(".example").split(".")[-1].replace("-", " ").title()


@dataclass(frozen=True, slots=True)
class Page:
    """What a design puts on a page; `related` are titles of other pages of the site."""

    title: str
    paragraphs: tuple[str, ...]
    related: tuple[str, ...] = ()


def make_sites(language: str) -> list[Site]:
    """All ordinary hosts of a language, the designs in turn."""
    designs = list(DESIGNS)
    sites = []
    for number, host in enumerate(HOSTS[language].split()):
        design = designs[number % len(designs)]
        charset, declared = "utf-8", True
        if design == "table":
            charset = "windows-1252"
        elif design == "blog":
            charset, declared = ("iso-8859-1", False) if number % 4 else ("utf-8", False)
        transfer = ("plain", "plain", "chunked", "gzip")[number % 4]
        sites.append(Site(f"{host}.example", design, language, charset, declared, transfer))
    return sites


HOSTS = {
    "en": "www.harbour-gazette field-notes reading-room the-old-mill www.northern-review blog.lantern-hill "
    "open-almanac-mirror curio-cabinet www.quiet-library river-and-stone paper-boats news.eastgate "
    "www.hillside-journal the-long-shelf copper-kettle archive.wintergarden www.plain-facts blue-atlas "
    "seven-bridges willow-lane www.market-square the-reference-desk amber-post mag.fernwood www.old-observatory "
    "slate-and-chalk granite-press stories.millbrook www.compass-rose the-daily-orchard grey-heron www.salt-road",
    "fr": "www.le-cahier la-petite-gazette le-grenier blog.la-colline www.les-archives-du-port le-vieux-moulin "
    "carnet.montagne www.la-revue-du-soir",
    "es": "www.el-cuaderno la-plaza-mayor el-desvan blog.la-colina www.archivo-del-puerto el-viejo-molino "
    "notas.sierra www.la-revista-del-sur",
}
ALMANAC = Site("almanac.example", "reference", "en")
BLOCKED_HOSTS = (
    "free-porn-videos.example",
    "www.xxx-webcams.example",
    "online-casino-porn-bonus.example",
    "hardcore-sex-movies.example",
)


def slug(title: str) -> str:
    """A title as a path segment in lower-case ASCII."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "page"


def page_url(site: Site, title: str, number: int) -> str:
    """The page's URL in its site's style; `number` makes it unique."""
    path = {
        "magazine": f"/{slug(title)}-{number}.html",
        "wiki": f"/wiki/{slug(title).replace('-', '_').capitalize()}_{number}",
        "blog": f"/{2019 + number % 6}/{1 + number % 12:02}/{slug(title)}-{number}/",
        "table": f"/article.php?id={number}",
        "news": f"/news/{number}/{slug(title)}",
        "reference": f"/{slug(title)}" + ("" if site == ALMANAC else f"-{number}"),
    }[site.design]
    return f"{'http' if site.design == 'table' else 'https'}://{site.host}{path}"


def render(site: Site, page: Page) -> bytes:
    """The page's HTML in its site's design and charset."""
    labels = dict(zip(NAMES, map(html.escape, LABELS[site.language].split("|")), strict=True))
    text = DESIGNS[site.design](site, page, labels)
    return text.encode(site.charset, "xmlcharrefreplace")


def response(
    body: bytes,
    status: str = "200 OK",
    content_type: str = "text/html",
    transfer: str = "plain",
    headers: str = "",
) -> bytes:
    """An HTTP/1.1 response as a crawler stores it. `headers` are further lines, each ended by CRLF."""
    if transfer == "gzip":
        body, headers = stored_gzip(body), headers + "Content-Encoding: gzip\r\n"
    if transfer == "chunked":
        pieces = [body[i : i + 3000] for i in range(0, len(body), 3000)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        headers += "Transfer-Encoding: chunked\r\n"
    else:
        headers += f"Content-Length: {len(body)}\r\n"
    type_line = f"Content-Type: {content_type}\r\n" if content_type else ""
    return f"HTTP/1.1 {status}\r\nServer: example\r\n{type_line}{headers}\r\n".encode() + body


def content_type(site: Site) -> str:
    """The Content-Type header that the site sends with its pages."""
    return f"text/html; charset={site.charset}" if site.declared else "text/html"


def _paragraphs(page: Page, tag: str = "p") -> str:
    return "\n".join(f"<{tag}>{html.escape(p, quote=False)}</{tag}>" for p in page.paragraphs)


def _links(titles: tuple[str, ...]) -> str:
    return "".join(f'<li><a href="/{slug(t)}">{html.escape(t)}</a></li>' for t in titles)


def _nav(labels: dict[str, str]) -> str:
    keys = ("home", "about", "contact", "search", "login")
    return "<ul>" + "".join(f'<li><a href="/{k}">{labels[k]}</a></li>' for k in keys) + "</ul>"


def _head(site: Site, page: Page, more: str = "") -> str:
    title = html.escape(f"{page.title} - {site.name}")
    return f'<!DOCTYPE html>\n<html lang="{site.language}">\n<head>\n{more}<title>{title}</title>\n</head>\n'


def _magazine(site: Site, page: Page, l: dict[str, str]) -> str:
    style = "<style>@media print {nav {display: none}} .wide {width: 60em}</style>\n"
    meta = f'<meta charset="{site.charset}">\n<meta name="viewport" content="width=device-width">\n{style}'
    return _head(site, page, meta) + (
        f'<body>\n<div id="cookie-banner" class="cookie-consent" role="dialog">{l["cookies"]} '
        f"<button>{l['accept']}</button></div>\n"
        f'<header><a href="/">{html.escape(site.name)}</a><nav>{_nav(l)}</nav></header>\n<main>\n<article>\n'
        f"<h1>{html.escape(page.title)}</h1>\n{_paragraphs(page)}\n</article>\n</main>\n"
        f'<aside class="sidebar"><h3>{l["related"]}</h3><ul>{_links(page.related)}</ul></aside>\n'
        f"<footer><nav>{_nav(l)}</nav><p>&copy; 2025 {html.escape(site.name)}. {l['rights']}.</p></footer>\n"
        "<script>window.analytics = {page: 1};</script>\n</body>\n</html>\n"
    )


def _wiki(site: Site, page: Page, l: dict[str, str]) -> str:
    return _head(site, page, f'<meta charset="{site.charset}">\n') + (
        f'<body class="skin">\n<div id="mw-navigation"><div id="mw-panel" role="navigation">{_nav(l)}</div></div>\n'
        f'<div id="content" class="mw-body" role="main">\n<h1 id="firstHeading">{html.escape(page.title)}</h1>\n'
        f'<div id="bodyContent"><div id="mw-content-text"><div class="mw-parser-output">\n{_paragraphs(page)}\n'
        "</div></div></div>\n</div>\n"
        f'<div id="catlinks" class="catlinks" role="navigation"><ul>{_links(page.related)}</ul></div>\n'
        f'<div id="footer" role="contentinfo"><ul><li>{l["privacy"]}</li><li>{l["about"]}</li></ul></div>\n'
        "</body>\n</html>\n"
    )


def _blog(site: Site, page: Page, l: dict[str, str]) -> str:
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={site.charset}" />\n'
    return _head(site, page, meta) + (
        f'<body>\n<div id="page" class="hfeed site">\n<div id="masthead" class="site-header">'
        f'<div class="main-navigation menu">{_nav(l)}</div></div>\n<div id="primary" class="content-area">\n'
        f'<div class="post hentry">\n<h1 class="entry-title">{html.escape(page.title)}</h1>\n'
        f'<div class="entry-content">\n{_paragraphs(page)}\n</div>\n'
        f'<div class="share-buttons social"><a href="#">{l["share"]}</a></div>\n</div>\n'
        f'<div id="comments" class="comments-area"><h3>{l["comment"]}</h3><form><textarea></textarea></form></div>\n'
        f'</div>\n<div id="secondary" class="sidebar widget-area"><div class="widget"><h3>{l["popular"]}</h3>'
        f'<ul>{_links(page.related)}</ul></div><div class="widget newsletter">{l["newsletter"]}</div></div>\n'
        f'<div id="colophon" class="site-footer footer">&copy; {html.escape(site.name)}</div>\n</div>\n'
        "</body>\n</html>\n"
    )


def _table(site: Site, page: Page, l: dict[str, str]) -> str:
    title = html.escape(page.title)
    links = "<br>\n".join(f'<a href="/{slug(t)}">{html.escape(t)}</a>' for t in page.related)
    return (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN">\n<HTML>\n<HEAD>'
        f"<TITLE>{title}</TITLE></HEAD>\n<BODY BGCOLOR=#FFFFEE>\n<TABLE WIDTH=100% BORDER=0><TR>\n"
        f'<TD WIDTH=150 VALIGN=top class="menu"><A HREF="/">{l["home"]}</A><BR><A HREF="/search">{l["search"]}</A>'
        f'<BR>\n{links}</TD>\n<TD VALIGN=top class="content">\n<H1><FONT FACE=Arial>{title}</FONT></H1>\n'
        f"{_paragraphs(page, 'P')}\n</TD></TR></TABLE>\n"
        f'<HR><DIV class="footer"><CENTER><FONT SIZE=1>{l["rights"]}</FONT></CENTER></DIV>\n</BODY>\n</HTML>\n'
    )


def _news(site: Site, page: Page, l: dict[str, str]) -> str:
    meta = f'<meta charset="{site.charset}">\n<link rel="stylesheet" href="/main.css">\n'
    teasers = "".join(
        f'<div class="teaser"><a href="/{slug(t)}">{html.escape(t)}</a></div>' for t in page.related
    )
    return _head(site, page, meta) + (
        f'<body>\n<div class="navbar topbar">{_nav(l)}</div>\n<section class="story">\n'
        f'<h1 class="headline">{html.escape(page.title)}</h1>\n'
        f'<div class="article-body story-text">\n{_paragraphs(page)}\n</div>\n</section>\n'
        f'<section class="related-articles recommended"><h4>{l["related"]}</h4>{teasers}</section>\n'
        f'<footer class="footer"><a href="/privacy">{l["privacy"]}</a> <a href="/about">{l["about"]}</a></footer>\n'
        f'<div class="cookie-overlay modal">{l["cookies"]} <a href="#">{l["accept"]}</a></div>\n</body>\n</html>\n'
    )


def _reference(site: Site, page: Page, l: dict[str, str]) -> str:
    return _head(site, page, f'<meta charset="{site.charset}">\n') + (
        f"<body>\n<nav>{_nav(l)}</nav>\n<main>\n<h1>{html.escape(page.title)}</h1>\n{_paragraphs(page)}\n</main>\n"
        f"<footer><p>{l['rights']}</p></footer>\n</body>\n</html>\n"
    )


DESIGNS: dict[str, Callable[[Site, Page, dict[str, str]], str]] = {
    "magazine": _magazine,
    "wiki": _wiki,
    "blog": _blog,
    "table": _table,
    "news": _news,
    "reference": _reference,
}
