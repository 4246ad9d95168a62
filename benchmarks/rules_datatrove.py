"""datatrove's side of `python -m benchmarks.rules parity`: its filters over texts, in its own environment.

    python benchmarks/rules_datatrove.py TEXTS.jsonl FINEWEB-2-CLONE > PEER.jsonl

TEXTS has one JSON object a line: `language` and `text`. English goes through the filters of datatrove's
examples/fineweb.py, other languages through those of fineweb-2-pipeline.py with their own configuration. Writes one
JSON string a line: the reason for the drop, "" for a text that passes, null where the language has no filters here.
"""

import json
import sys
from pathlib import Path
from typing import Any

CONFIGS = {
    "de": "deu_Latn",
    "el": "ell_Grek",
    "es": "spa_Latn",
    "fr": "fra_Latn",
    "pl": "pol_Latn",
    "ru": "rus_Cyrl",
}


def filters_of(language: str, clone: Path) -> list[Any]:
    """The filters of a language, in order."""
    import yaml
    from datatrove.pipeline import filters as f

    if language == "en":
        c4 = f.C4QualityFilter(filter_no_terminal_punct=False)
        return [f.GopherRepetitionFilter(), f.GopherQualityFilter(), c4, f.FineWebQualityFilter()]
    name = CONFIGS[language]
    read = yaml.safe_load((clone / "configs" / f"{name}.yml").read_text())
    off = {"dup_para_frac": 0, "dup_line_char_frac": 0, "dup_para_char_frac": 0}
    repeated = {key: read[key] for key in ("dup_line_frac", "top_n_grams", "dup_n_grams")}
    lengths = {key: read[key] for key in ("min_avg_word_length", "max_avg_word_length")}
    letters, stop_words = read["max_non_alpha_words_ratio"], read["stopwords"]
    lines = {key: read[key] for key in ("line_punct_thr", "new_line_ratio")}
    return [
        f.GopherRepetitionFilter(language=name, **off, **repeated),
        f.FineWebQualityFilter(language=name, short_line_thr=999, char_duplicates_ratio=0.1, **lines),
        f.GopherQualityFilter(
            language=name,
            max_non_alpha_words_ratio=letters,
            stop_words=stop_words,
            min_stop_words=2,
            **lengths,
        ),
    ]


def main() -> None:
    """Read texts, filter them, print the reasons."""
    from datatrove.data import Document

    filters: dict[str, list[Any]] = {}
    clone = Path(sys.argv[2])
    for line in Path(sys.argv[1]).read_text().splitlines():
        row = json.loads(line)
        language = row["language"]
        if language != "en" and language not in CONFIGS:
            print("null")
            continue
        if language not in filters:
            filters[language] = filters_of(language, clone)
        document = Document(text=row["text"], id="")
        results = (each.filter(document) for each in filters[language])
        failed = next((result for result in results if result is not True), ("", ""))
        print(json.dumps(failed[1] if isinstance(failed, tuple) else "dropped"))


if __name__ == "__main__":
    main()
