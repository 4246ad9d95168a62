"""Write corpus/rules/languages.py: stop words and thresholds by language.

    pip download --no-deps wordfreq==3.1.1 && git clone https://github.com/huggingface/fineweb-2
    python -m tools.rule_languages --wordfreq wordfreq-*.whl --fineweb-2 fineweb-2            # prints it
    python -m tools.rule_languages --wordfreq wordfreq-*.whl --fineweb-2 fineweb-2 --write    # replaces the file

Stop words: the words of letters only that make up at least 0.5 % of a language's text in wordfreq 3.1.1 (Speer 2022;
code Apache-2.0, data CC-BY-SA-4.0), at least 8 and at most 20 of them; single characters in Chinese, since the rules
count a Chinese character as a word. Thresholds: FineWeb-2's published configurations (Penedo et al. 2025,
arXiv 2506.20920; huggingface/fineweb-2, Apache-2.0), and what its pipeline sets for every language. Where we deviate
from them, the values and their reasons are in OURS.
"""

import argparse
import gzip
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.files import write_atomically

MODULE = Path(__file__).parent.parent / "corpus" / "rules" / "languages.py"
HEAD = '''"""Stop words and thresholds by language.

Written by `python -m tools.rule_languages --write`, which documents how they were chosen; do not edit. Stop words: from
wordfreq 3.1.1 (data CC-BY-SA-4.0); English ones are Gopher's. Thresholds: FineWeb-2, arXiv 2506.20920, as published in
huggingface/fineweb-2 (Apache-2.0), but for those marked as ours.
"""
'''
Thresholds = Mapping[str, float | None]  # of one language, by rule

CONFIGS = {
    "cs": "ces_Latn",
    "de": "deu_Latn",
    "el": "ell_Grek",
    "es": "spa_Latn",
    "fr": "fra_Latn",
    "it": "ita_Latn",
    "nl": "nld_Latn",
    "pl": "pol_Latn",
    "pt": "por_Latn",
    "ru": "rus_Cyrl",
    "sv": "swe_Latn",
    "tr": "tur_Latn",
    "uk": "ukr_Cyrl",
    "zh": "cmn_Hani",
}
GOPHER_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # A.1.1; kept for English
LEAST_SHARE, FEWEST, MOST = 0.005, 8, 20
# Pipeline-wide settings of fineweb-2-pipeline.py: paragraph and line-character duplicates off (the extractor leaves
# no paragraphs), short lines off, duplicate characters 0.1, C4 not applied.
EVERYWHERE: Thresholds = {
    "gopher_dup_paragraphs": None,
    "gopher_dup_paragraph_chars": None,
    "gopher_dup_line_chars": None,
    "c4_lorem_ipsum": None,
    "c4_curly_bracket": None,
    "c4_min_sentences": None,
    "c4_line_max_word_length": None,
    "c4_line_citations": None,
    "c4_line_min_words": None,
    "c4_line_javascript": None,
    "c4_line_policy": None,
    "fineweb_short_lines": None,
    "fineweb_dup_line_chars": 0.1,
}
# A language without a row: FineWeb-2's pipeline-wide settings, and no limit that a script or grammar may rule out.
OTHER: Thresholds = {"gopher_min_word_length": None, "gopher_max_word_length": None, "gopher_letters": 0.7}
# German and French letters: our tokens split at hyphens and apostrophes where FineWeb-2's tokenisers do not, which
# lowers the share of tokens with a letter by 0.015 and 0.009 on the same real pages. Greek letters: FineWeb-2's 0.809
# drops 15 % of the reference texts of daniel's news pages under our tokenisation; 0.73 is the 5 % quantile of one half
# of them. Chinese: a word is one character here and some 1.7 characters there, so the line through FineWeb-2's n-gram
# thresholds is extrapolated to n / 1.7.
OURS: dict[str, Thresholds] = {
    "de": {"gopher_letters": 0.759},
    "el": {"gopher_letters": 0.73},
    "fr": {"gopher_letters": 0.803},
    "zh": {
        **{f"gopher_dup_{n}_grams": round(0.127 + 0.0142 * (10 - n / 1.7), 3) for n in range(5, 11)},
        "gopher_min_word_length": None,
        "gopher_max_word_length": None,
    },
}


def stop_words(wheel: Path, language: str) -> list[str]:
    """The most frequent words of a language, in its usual spelling."""
    import msgpack

    with zipfile.ZipFile(wheel) as archive:
        sizes = [f"wordfreq/data/{size}_{language}.msgpack.gz" for size in ("large", "small")]
        name = next(name for name in sizes if name in archive.namelist())
        bins = msgpack.loads(gzip.decompress(archive.read(name)), raw=False)[1:]
    ranked = [(word, 10 ** (-centibels / 100)) for centibels, words in enumerate(bins) for word in words]
    ranked = [(word, share) for word, share in ranked if word.isalpha()]
    if language == "zh":
        ranked = [(word, share) for word, share in ranked if len(word) == 1]
    frequent = sum(share >= LEAST_SHARE for _, share in ranked)
    words = [word for word, _ in ranked[: min(MOST, max(FEWEST, frequent))]]
    # wordfreq folds case, which turns the final sigma of Greek into another letter
    return [word[:-1] + "ς" if language == "el" and word.endswith("σ") else word for word in words]


def thresholds(clone: Path, config: str) -> dict[str, float]:
    """FineWeb-2's thresholds of a language under our rules' names."""
    from ruamel.yaml import YAML

    read = YAML(typ="safe").load((clone / "configs" / f"{config}.yml").read_text())
    return {
        "gopher_dup_lines": read["dup_line_frac"],
        **{f"gopher_top_{n}_gram": limit for n, limit in read["top_n_grams"]},
        **{f"gopher_dup_{n}_grams": limit for n, limit in read["dup_n_grams"]},
        "gopher_min_word_length": read["min_avg_word_length"],
        "gopher_max_word_length": read["max_avg_word_length"],
        "gopher_letters": read["max_non_alpha_words_ratio"],
        "fineweb_line_ends": read["line_punct_thr"],
        "fineweb_line_breaks": read["new_line_ratio"],
    }


def source_of(words: Mapping[str, str], table: Mapping[str, Thresholds], ours: Mapping[str, int]) -> str:
    """The text of corpus/rules/languages.py, as ruff formats it.

    `words`: language -> stop words, space-separated. `table`: the thresholds by language, every language with the same
    rules in the same order. `ours`: how many of a language's thresholds are not FineWeb-2's.
    """
    lines = [HEAD, "STOP_WORDS = {"]
    lines += [f'    "{language}": "{listed}",' for language, listed in words.items()]
    lines += ["}", "# What FineWeb-2 sets alike for every language but English."]
    lines += ["EVERYWHERE: dict[str, float | None] = {", *_entries(EVERYWHERE), "}"]
    lines += ["OTHER_LANGUAGES = EVERYWHERE | {", *_entries(OTHER), "}"]
    columns = tuple(next(iter(table.values())))
    lines += ["COLUMNS = (", *(f'    "{name}",' for name in columns), ")"]
    lines += ["THRESHOLDS: dict[str, tuple[float | None, ...]] = {"]
    lines += [f'    "{language}": ({_row(row, columns)}),' for language, row in table.items()]
    counts = ", ".join(f"{language}: {n}" for language, n in ours.items())
    lines += ["}  # fmt: skip", f"# Of these, ours and not FineWeb-2's: {counts}."]
    return "\n".join(lines) + "\n"


def _entries(thresholds: Thresholds) -> list[str]:
    return [f'    "{name}": {limit},' for name, limit in thresholds.items()]


def _row(thresholds: Thresholds, columns: Sequence[str]) -> str:
    return ", ".join(str(thresholds[name]) for name in columns)


def main() -> None:
    """Print the module, or write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordfreq", type=Path, required=True, help="the wheel of wordfreq")
    parser.add_argument("--fineweb-2", type=Path, required=True, help="a clone of huggingface/fineweb-2")
    parser.add_argument("--write", action="store_true", help=f"replace {MODULE.name} instead of printing it")
    options = parser.parse_args()
    words = {"en": " ".join(GOPHER_WORDS)}
    words |= {language: " ".join(stop_words(options.wordfreq, language)) for language in CONFIGS}
    table = {
        language: {**thresholds(options.fineweb_2, config), **OURS.get(language, {})}
        for language, config in CONFIGS.items()
    }
    source = source_of(words, table, {language: len(own) for language, own in OURS.items()})
    if options.write:
        write_atomically(MODULE, source)
    else:
        print(source, end="")


if __name__ == "__main__":
    main()
