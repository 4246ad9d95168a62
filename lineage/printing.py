"""What lineage shows in a terminal: family trees, the result of an audit, what happened to a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage.family import AuditReport, Node, read_family

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

COLOURS = {"kept": "green", "dropped": "yellow", "failed": "red"}


def family_tree(root: Path, target: str) -> Tree:
    """The family tree of an asset as dvc.lock and the statements record it. Nothing is hashed."""
    report = read_family(root, target)
    return as_tree(report, report.targets[0])


def as_tree(report: AuditReport, target: str) -> Tree:
    """The family of one version, itself at the root; a version that appears twice is expanded once."""
    from rich.tree import Tree

    bad = {wrong.stage for wrong in report.disagreements}
    tree = Tree(_label(report.nodes[target], bad), guide_style="dim")
    expanded: set[str] = set()

    def add_parents(branch: Tree, name: str) -> None:
        expanded.add(name)
        # The nearest parent first: the tokenizer, say, before the corpus that the model shares with it.
        for parent in reversed(report.nodes[name].upstream):
            node = report.nodes[parent]
            again = parent in expanded
            leaf = branch.add(_label(node, bad) + (" [dim](as above)[/]" if again and node.upstream else ""))
            if not again:
                add_parents(leaf, parent)

    add_parents(tree, target)
    return tree


def _label(node: Node, bad: set[str]) -> str:
    from rich.markup import escape

    mark = "[red]✗[/] " if node.stage in bad else ""
    if node.version is None:
        return f"{mark}[bold]{escape(node.stage)}[/] [red]not made yet[/]"
    made = node.made
    details = [f"{node.files:,} files" if node.files != 1 else "1 file"]
    if node.warc_files:
        details.append(f"{node.warc_files:,} crawl files elsewhere")
    if made.get("finished"):
        details.append(str(made["finished"]).replace("T", " ").removesuffix("Z") + " UTC")
    if made.get("commit"):
        details.append(f"commit {made['commit'][:8]}" + (" with changes" if made.get("dirty") else ""))
    if made.get("unproven"):
        details.append("[yellow]no provenance[/]")
    version = node.version.removesuffix(".dir")[:12]
    return f"{mark}[bold]{escape(node.stage)}[/] [cyan]{version}[/] [dim]{', '.join(details)}[/]"


def print_tree(report: AuditReport, console: Console | None = None) -> None:
    """Print the family tree, then each disagreement and how to fix it, then one line of result."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    for target in report.targets:
        console.print(as_tree(report, target))
    console.print()
    for note in report.notes:
        console.print(f"[yellow]note[/]      {escape(note)}", soft_wrap=True)
    for wrong in report.disagreements:
        console.print(f"[red]disagrees[/] [bold]{escape(wrong.where)}[/]", soft_wrap=True)
        for name, text in (("expected", wrong.expected), ("found", wrong.found), ("fix", wrong.fix)):
            console.print(f"          {name:<9}{escape(text)}", soft_wrap=True)
    read = f"{report.files:,} files, {report.bytes:,} bytes read again in {report.seconds:,.1f} s"
    compared = ", ".join(report.compared)
    if report.agrees:
        console.print(f"[green]All agree[/]: {compared}; {read}.", soft_wrap=True)
    else:
        many = len(report.disagreements)
        found = "One disagreement" if many == 1 else f"{many} disagreements"
        console.print(f"[red]{found}[/] among {compared}; {read}.", soft_wrap=True)


def print_rows(
    url: str,
    rows: Sequence[dict[str, Any]],
    console: Console | None = None,
    near: Sequence[str] | None = None,
) -> None:
    """Print what happened to a page (rows of lineage.why): one block per row, the outcome first, its bytes last."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    if not rows:
        console.print(
            f"[bold]{escape(url)}[/] was in none of the crawls here: no record of it was read, so it was neither "
            "kept nor dropped.",
            soft_wrap=True,
        )
        if near:
            console.print("Did you mean:")
        for other in near or ():
            console.print(f"        {escape(other)}", soft_wrap=True)
        return
    for row in rows:
        colour = COLOURS.get(row["outcome"], "white")
        console.print(f"[{colour}]{row['outcome']:<8}[/][bold]{escape(row['url'])}[/]", soft_wrap=True)
        for line in _lines(row):
            console.print(f"        {escape(line)}", soft_wrap=True)
        if "text" in row:
            console.print(f"\n{escape(row['text'])}\n", soft_wrap=True)


def _lines(row: dict[str, Any]) -> Iterator[str]:
    from corpus.rules.meaning import reason

    if row.get("rule"):
        yield reason(row)
    if row.get("meaning"):
        yield row["meaning"]
    if row.get("detail"):
        yield str(row["detail"])
    if row.get("duplicate_of"):
        yield f"kept in its place: {row.get('duplicate_url') or row['duplicate_of']}"
    if row.get("document"):
        about = row["document"]
        yield (
            f"a document of {about['n_bytes']:,} bytes in '{about['language']}' "
            f"(certainty {about['language_score']:.2f}), sha256 {about['sha256'][:12]}"
        )
    end = row["warc_offset"] + row["warc_length"]
    yield f"crawl {row['crawl']}, {row['warc_file']}, bytes {row['warc_offset']:,} to {end:,}"
    yield f"record {row['record_id']}, corpus {str(row.get('corpus_version') or 'unrecorded')[:12]}"
