"""The vocabulary."""

from __future__ import annotations

from assets.plots import bars
from assets.stage import Evidence, StageRun, stage

PROBE = "".join(map(chr, range(0x20, 0x2FF))) + "\n\t日本語 한국어 العربية 🙂 \x00\x7f"


@stage(
    group="models",
    kinds={"huggingface"},
    checks={"round_trip": "Any text comes back from its tokens unchanged."},
)
def tokenizer(run: StageRun) -> Evidence:
    """Byte-level BPE with GPT-4-style pre-tokenisation; `transformers.AutoTokenizer` loads the folder."""
    from core.settings import read_settings
    from model.tokenizer import load_tokenizer
    from model.vocabulary.config import TokenizerConfig
    from model.vocabulary.train import read_texts, train_tokenizer

    corpora, training_set = run.folders("cleaned_corpus"), run.folder("training_set")
    train_tokenizer(
        read_texts(corpora, training_set), run.out, read_settings(TokenizerConfig, run.params, "tokenizer")
    )
    trained = load_tokenizer(run.out)

    sample = [text for text, _ in zip(read_texts(corpora, training_set), range(500), strict=False)]
    tokens = sum(map(len, trained.encode_batch(sample)))
    whole = all(trained.decode(trained.encode(text)) == text for text in [PROBE, *sample[:100]])
    lengths = [len(trained.decode([token])) for token in range(trained.vocab_size)]
    return Evidence(
        numbers={
            "vocab_size": trained.vocab_size,
            "bytes_per_token": round(sum(len(t.encode()) for t in sample) / max(tokens, 1), 3),
        },
        plot=bars(
            {f"{n} characters": lengths.count(n) for n in range(1, max(lengths) + 1)},
            x="tokens of the vocabulary",
        ),
        checks={"round_trip": whole},
        check_notes={"round_trip": f"{1 + len(sample[:100])} texts, a probe of many scripts among them"},
    )
