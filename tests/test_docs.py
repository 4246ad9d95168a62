"""The pages of the documentation: every link leads somewhere, every page is in the index, every place named exists."""

from __future__ import annotations

import re
from pathlib import Path

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PLACE = re.compile(r"`([\w/]+\.py)`(?:: `([\w.]+)`)?")


def pages(root: Path) -> list[Path]:
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]


def test_every_link_leads_to_a_file(root: Path):
    for page in pages(root):
        for target in LINK.findall(page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_index_lists_every_page_once(root: Path):
    listed = LINK.findall((root / "docs" / "README.md").read_text("utf-8"))
    here = {path.name for path in (root / "docs").glob("*.md")} - {"README.md"}
    assert set(listed) >= here
    assert [name for name in listed if listed.count(name) > 1] == []


def test_every_module_that_a_page_names_exists(root: Path):
    for page in pages(root):
        for path, _ in PLACE.findall(page.read_text("utf-8")):
            if (root / path.split("/")[0]).is_dir():
                assert (root / path).is_file(), f"{page.name}: {path}"


def test_every_name_that_contributing_gives_a_place_is_there(root: Path):
    places = [
        (path, name) for path, name in PLACE.findall((root / "CONTRIBUTING.md").read_text("utf-8")) if name
    ]
    assert len(places) > 20
    for path, name in places:
        text = (root / path).read_text("utf-8")
        for part in name.split("."):
            assert re.search(rf"^\s*(def|class) {part}\b|^{part}\b.* = ", text, re.MULTILINE), (
                f"{path}: {name}"
            )
