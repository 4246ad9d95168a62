"""Stop words and thresholds by language.

Written by `python -m tools.rule_languages --write`, which documents how they were chosen; do not edit. Stop words: from
wordfreq 3.1.1 (data CC-BY-SA-4.0); English ones are Gopher's. Thresholds: FineWeb-2, arXiv 2506.20920, as published in
huggingface/fineweb-2 (Apache-2.0), but for those marked as ours.
"""

STOP_WORDS = {
    "en": "the be to of and that have with",
    "cs": "a se v na je to že s z si do jsem ale o i tak",
    "de": "die der und in das ich ist nicht zu den von mit es ein auf für im sie eine sich",
    "el": "και το να του η με την της για ο που τα από σε δεν θα τον είναι στο στην",
    "es": "de la que el en y a los no un se por es del las con una para lo su",
    "fr": "de la le et l à les est en des d un que a pas une du il pour dans",
    "it": "di e che il la a in non un per è del l i una le si con della da",
    "nl": "de van het een en in is op ik dat voor je te met niet zijn die als er maar",
    "pl": "w i nie na się to z do jest że o jak a ale co tak",
    "pt": "de a o que e do em da é para não um uma com no se na por os eu",
    "ru": "в и на не с что я по а как из это",
    "sv": "är det att och i jag på en inte som för med har av om du så till den de",
    "tr": "ve bir bu için de da çok ile",
    "uk": "в на не і у з що та до це за а я як про для від",
    "zh": "的 是 在 了 我 和 有 不 人 也 你",
}
# What FineWeb-2 sets alike for every language but English.
EVERYWHERE: dict[str, float | None] = {
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
OTHER_LANGUAGES = EVERYWHERE | {
    "gopher_min_word_length": None,
    "gopher_max_word_length": None,
    "gopher_letters": 0.7,
}
COLUMNS = (
    "gopher_dup_lines",
    "gopher_top_2_gram",
    "gopher_top_3_gram",
    "gopher_top_4_gram",
    "gopher_dup_5_grams",
    "gopher_dup_6_grams",
    "gopher_dup_7_grams",
    "gopher_dup_8_grams",
    "gopher_dup_9_grams",
    "gopher_dup_10_grams",
    "gopher_min_word_length",
    "gopher_max_word_length",
    "gopher_letters",
    "fineweb_line_ends",
    "fineweb_line_breaks",
)
THRESHOLDS: dict[str, tuple[float | None, ...]] = {
    "cs": (0.311, 0.206, 0.183, 0.165, 0.168, 0.157, 0.145, 0.133, 0.121, 0.109, 3, 11, 0.781, 0.06, 0.182),
    "de": (0.263, 0.169, 0.153, 0.137, 0.141, 0.134, 0.126, 0.117, 0.108, 0.098, 0, 15, 0.759, 0.0, 0.152),
    "el": (0.31, 0.194, 0.175, 0.156, 0.174, 0.163, 0.153, 0.142, 0.13, 0.119, 3, 11, 0.73, 0.167, 0.116),
    "es": (0.252, 0.156, 0.14, 0.125, 0.145, 0.136, 0.127, 0.117, 0.108, 0.099, 3, 14, 0.825, 0.182, 0.138),
    "fr": (0.264, 0.161, 0.149, 0.134, 0.15, 0.141, 0.131, 0.121, 0.111, 0.1, 2, 11, 0.803, 0.1, 0.185),
    "it": (0.246, 0.198, 0.156, 0.133, 0.144, 0.136, 0.127, 0.118, 0.109, 0.1, 3, 21, 0.807, 0.025, 0.2),
    "nl": (0.296, 0.213, 0.182, 0.158, 0.156, 0.146, 0.136, 0.126, 0.115, 0.104, 3, 17, 0.828, 0.102, 0.154),
    "pl": (0.32, 0.222, 0.198, 0.176, 0.172, 0.16, 0.148, 0.136, 0.123, 0.111, 3, 12, 0.726, 0.087, 0.158),
    "pt": (0.287, 0.371, 0.191, 0.163, 0.163, 0.153, 0.141, 0.13, 0.119, 0.108, 3, 13, 0.814, 0.077, 0.186),
    "ru": (0.322, 0.184, 0.164, 0.146, 0.168, 0.156, 0.145, 0.133, 0.121, 0.109, 3, 11, 0.713, 0.231, 0.139),
    "sv": (0.292, 0.242, 0.195, 0.174, 0.156, 0.147, 0.136, 0.125, 0.116, 0.105, 3, 12, 0.841, 0.2, 0.135),
    "tr": (0.272, 0.214, 0.168, 0.147, 0.154, 0.144, 0.134, 0.124, 0.113, 0.103, 3, 21, 0.773, 0.091, 0.222),
    "uk": (0.3, 0.189, 0.172, 0.153, 0.16, 0.148, 0.136, 0.124, 0.113, 0.102, 3, 11, 0.694, 0.167, 0.175),
    "zh": (0.287, 0.256, 0.201, 0.171, 0.227, 0.219, 0.211, 0.202, 0.194, 0.185, None, None, 0.735, 0.106, 0.178),
}  # fmt: skip
# Of these, ours and not FineWeb-2's: de: 1, el: 1, fr: 1, zh: 8.
