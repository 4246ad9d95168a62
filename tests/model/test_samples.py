"""Samples of a model in training: readable, reproducible, and next to the original text."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from core.files import append_line
from model.data.config import SplitConfig
from model.data.loader import TokenData
from model.data.shards import write_shards
from model.network.config import Config
from model.network.transformer import Transformer
from model.run_log import RunLog
from model.tokenizer import load_tokenizer
from model.training.samples import NEW_TOKENS, PROMPT_TOKENS, as_markdown, continuations


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer_folder):
    """(token shards of Python's own help, their tokenizer)."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("samples")
    (folder / "help" / "documents").mkdir(parents=True)
    rows = [
        {"record_id": name, "crawl": "help", "host": f"{name}.example", "text": text[:400]}
        for name, text in sorted(topics.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "help" / "documents" / "0.parquet")
    tokenizer = load_tokenizer(tokenizer_folder)
    write_shards([folder / "help"], tokenizer, folder / "tokens", SplitConfig(0.3), RunLog(enabled=False))
    return TokenData(folder / "tokens"), tokenizer


def test_samples_continue_held_out_documents_greedily(data):
    tokens, tokenizer = data
    torch.manual_seed(0)
    model = Transformer(Config.from_depth(1, tokenizer.vocab_size, max_seq_len=128))
    sample = continuations(tokens, tokenizer)
    found = sample(model)
    texts = [text for _, text in tokens.texts(tokenizer)]
    assert found and all(any(text.startswith(s["prompt"] + s["truth"]) for text in texts) for s in found)
    # One token at a time, without cache, as the reference.
    ids = [tokens.separator, *tokenizer.encode(found[0]["prompt"])]
    assert len(ids) == 1 + PROMPT_TOKENS
    written = []
    while len(written) < NEW_TOKENS:
        written.append(int(model(torch.tensor([ids + written]))[0, -1].argmax()))
        if written[-1] == tokens.separator:
            break
    assert found[0]["continuation"] == tokenizer.decode([i for i in written if i != tokens.separator])
    assert sample(model) == found


def test_the_page_has_a_table_a_prompt_and_a_row_a_step_the_last_of_equal_ones(tmp_path):
    path = tmp_path / "samples.jsonl"
    for step, text in ((100, "cut by a kill"), (200, "a | b\nc")):
        samples = [{"prompt": "Once", "continuation": text, "truth": "upon"}]
        append_line(path, {"step": step, "samples": samples})
    with open(path, "a") as file:
        file.write(json.dumps({"step": 300})[:5])
    append_line(path, {"step": 100, "samples": [{"prompt": "Once", "continuation": "x", "truth": "upon"}]})
    page = as_markdown(path)
    assert (
        "**Once** …" in page and "| step 100 | x |\n| step 200 | a \\| b c |\n| as written | upon |" in page
    )
