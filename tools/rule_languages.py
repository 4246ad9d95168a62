"""Remake corpus/rules/languages.py: stop words and thresholds by language.

    pip download --no-deps wordfreq==3.1.1 && git clone https://github.com/huggingface/fineweb-2
    python -m benchmarks.languages --wordfreq wordfreq-*.whl --fineweb-2 fineweb-2 > corpus/rules/languages.py

Stop words: the words of letters only that make up at least 0.5 % of a language's text in wordfreq 3.1.1 (Speer 2022;
code Apache-2.0, data CC-BY-SA-4.0), at least 8 and at most 20 of them; single characters in Chinese, whose
characters are our words. Thresholds: FineWeb-2's published configurations (Penedo et al. 2025, arXiv 2506.20920;
huggingface/fineweb-2, Apache-2.0), and what its pipeline sets for every language. What we chose ourselves is OURS.
"""

import argparse
import gzip
import zipfile
from pathlib import Path

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
EVERYWHERE = {
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
# A language without a row: FineWeb-2's pipeline-wide settings, and nothing that a script or grammar may forbid.
OTHER = {"gopher_min_word_length": None, "gopher_max_word_length": None, "gopher_letters": 0.7}
# Ours. German and French letters: our tokens split hyphens and apostrophes that FineWeb-2's tokenisers leave, which
# lowers the share of tokens with a letter by 0.015 and 0.009 on the same real pages. Greek letters: FineWeb-2's 0.809
# drops 15 % of the reference texts of daniel's news pages under our tokenisation; 0.73 is the 5 % quantile of one half
# of them. Chinese: a character is a word here, and some 1.7 characters are one there, so FineWeb-2's line through its
# n-gram thresholds is continued to n / 1.7.
OURS: dict[str, dict[str, float | None]] = {
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
    """The commonest words of a language, as its readers write them."""
    import msgpack

    with zipfile.ZipFile(wheel) as archive:
        sizes = [f"wordfreq/data/{size}_{language}.msgpack.gz" for size in ("large", "small")]
        name = next(name for name in sizes if name in archive.namelist())
        bins = msgpack.loads(gzip.decompress(archive.read(name)), raw=False)[1:]
    ranked = [(word, 10 ** (-centibels / 100)) for centibels, words in enumerate(bins) for word in words]
    ranked = [(word, share) for word, share in ranked if word.isalpha()]
    if language == "zh":
        ranked = [(word, share) for word, share in ranked if len(word) == 1]
    often = sum(share >= LEAST_SHARE for _, share in ranked)
    words = [word for word, _ in ranked[: min(MOST, max(FEWEST, often))]]
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


def main() -> None:
    """Print the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordfreq", type=Path, required=True, help="the wheel of wordfreq")
    parser.add_argument("--fineweb-2", type=Path, required=True, help="a clone of huggingface/fineweb-2")
    options = parser.parse_args()
    print(
        '"""Stop words and thresholds by language. Made by benchmarks/languages.py, which says how and from what.'
    )
    print(
        "\nStop words: from wordfreq 3.1.1 (data CC-BY-SA-4.0); English ones are Gopher's. Thresholds: FineWeb-2,"
    )
    print(
        "arXiv 2506.20920, as published in huggingface/fineweb-2 (Apache-2.0), but for those marked as ours."
    )
    print('"""\n\nSTOP_WORDS = {')
    for language in ("en", *CONFIGS):
        words = GOPHER_WORDS if language == "en" else stop_words(options.wordfreq, language)
        print(f'    "{language}": "{" ".join(words)}",')
    print("}\n# What FineWeb-2 sets alike for every language but English.")
    print(f"EVERYWHERE: dict[str, float | None] = {EVERYWHERE!r}")
    print(f"OTHER_LANGUAGES = EVERYWHERE | {OTHER!r}")
    table = {language: thresholds(options.fineweb_2, config) for language, config in CONFIGS.items()}
    columns = tuple(table["de"])
    print(f"COLUMNS = {columns!r}\nTHRESHOLDS: dict[str, tuple[float | None, ...]] = {{")
    for language, row in table.items():
        row |= OURS.get(language, {})
        print(f'    "{language}": ({", ".join(str(row[name]) for name in columns)}),')
    print("}")
    print(f"# Of these, ours and not FineWeb-2's: {', '.join(f'{k}: {len(v)}' for k, v in OURS.items())}.")


if __name__ == "__main__":
    main()
