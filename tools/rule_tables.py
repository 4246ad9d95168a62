"""Write the tables of docs/rules.md from the code: every rule, setting and language.

python -m tools.rule_tables            # prints them
python -m tools.rule_tables --write    # replaces those of docs/rules.md (a test compares)
"""

import argparse
from pathlib import Path

from core.files import write_atomically
from corpus.rules.languages import STOP_WORDS, THRESHOLDS
from corpus.rules.quality import RULES, Rule, limits_for
from corpus.rules.thresholds import SETTINGS, Setting

PAGE = Path(__file__).parent.parent / "docs" / "rules.md"
_WRITTEN = "written by python -m tools.rule_tables --write"
BEGIN, END = f"<!-- {_WRITTEN}: begin -->", f"<!-- {_WRITTEN}: end -->"


def tables() -> str:
    """All rules, settings and languages, as Markdown."""
    return "\n\n".join((_rules(), _settings(), _languages(), _stop_words()))


def _limit(value: float | None) -> str:
    return "off" if value is None else f"{value:,g}"


def _papers(row: Rule | Setting) -> str:
    return "" if isinstance(row.papers, str) else _limit(row.papers)


def _rules() -> str:
    lines = ["| rule | drops pages | `fineweb` | `papers` | measures | source | note |", "|" + "---|" * 7]
    for rule in RULES:
        measured = (rule.measure.__doc__ or "").strip().split("\n")[0].rstrip(".")
        side = "above" if rule.side == "max" else "below"
        cells = (f"`{rule.name}`", side, _limit(rule.limit), _papers(rule), measured, rule.source, rule.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _settings() -> str:
    lines = ["| setting | `fineweb` | `papers` | what it does | source | note |", "|" + "---|" * 6]
    for row in SETTINGS:
        cells = (f"`{row.name}`", _limit(row.limit), _papers(row), row.what, row.source, row.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _languages() -> str:
    """One column a language; rules that are the same for every language are left out."""
    codes = ("en", *THRESHOLDS, "other")
    limits = {code: limits_for(code).thresholds for code in codes}
    lines = ["| rule | " + " | ".join(codes) + " |", "|" + "---|" * (len(codes) + 1)]
    for row in (*RULES, *SETTINGS):
        values = [_limit(limits[code][row.name]) for code in codes]
        if len(set(values)) > 1:
            lines.append(f"| `{row.name}` | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _stop_words() -> str:
    lines = ["| language | stop words |", "|---|---|"]
    return "\n".join(lines + [f"| {code} | {words} |" for code, words in STOP_WORDS.items()])


def with_tables(page: str) -> str:
    """The page with its tables replaced by those of the code."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the tables of docs/rules.md")
    if parser.parse_args().write:
        write_atomically(PAGE, with_tables(PAGE.read_text("utf-8")))
    else:
        print(tables())


if __name__ == "__main__":
    main()
