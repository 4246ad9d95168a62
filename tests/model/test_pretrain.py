"""A base model from documents, as the launcher runs it: in a process, killed, resumed, byte for byte."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_shards import corpus, write

from core.errors import ConfigError
from core.hashing import folder_sha256
from model.bits_per_byte import bits_per_byte
from model.data.loader import Loader, TokenData
from model.job import read_job
from model.network.config import Config
from model.network.transformer import Transformer
from model.pretrain import document_loss, make_batch, pretrain
from model.training.pretrain_config import PretrainConfig
from model.training.world import World
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.train import train_tokenizer

PARAMS = {"depth": 1, "seq_len": 32, "max_seq_len": 64, "batch_tokens": 128, "steps": 30, "eval_every": 10}
PARAMS |= {"checkpoint_every": 5, "engine": "torch", "threads": 1, "log_every": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict:
    """A small cleaned corpus and a tokenizer learned from it."""
    folder = tmp_path_factory.mktemp("pretrain")
    documents, rows = corpus(folder, documents=80)
    train_tokenizer([row["text"] for row in rows], folder / "tokenizer", TokenizerConfig(vocab_size=300))
    return {"cleaned_corpus": [str(documents)], "tokenizer": str(folder / "tokenizer")}


def command(tmp_path: Path, inputs: dict, **params) -> list[str]:
    """The arguments of `python -m model.pretrain` for this folder."""
    config = {"params": PARAMS | params, "inputs": inputs, "out": str(tmp_path / "out")}
    config |= {"work": str(tmp_path / "work"), "metrics": str(tmp_path / "metrics.jsonl")}
    config |= {"result": str(tmp_path / "result.json")}
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ["--config", str(tmp_path / "config.json")]


def start(root: Path, argv: list[str]) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "model.pretrain", *argv], env=env, text=True, stderr=subprocess.PIPE
    )


def run_here(tmp_path: Path, inputs: dict, **params) -> dict:
    pretrain(read_job("model.pretrain", command(tmp_path, inputs, **params)))
    return json.loads((tmp_path / "out" / "summary.json").read_text())


def test_killed_pretraining_ends_with_the_same_bytes(root, tmp_path, inputs):
    run_here(tmp_path / "whole", inputs)
    process = start(root, command(tmp_path / "killed", inputs))
    checkpoints = tmp_path / "killed" / "work" / "checkpoints"
    while not (checkpoints / "step-00000010").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "out").exists(), "it ended before the kill"
    run_here(tmp_path / "killed", inputs)
    assert folder_sha256(tmp_path / "killed" / "out") == folder_sha256(tmp_path / "whole" / "out")


def test_the_model_folder_is_complete_and_transformers_agrees_with_it(tmp_path, inputs):
    from transformers import AutoModelForCausalLM

    from model.hub.load import load_pretrained

    summary = run_here(tmp_path, inputs)
    out = tmp_path / "out"
    names = {p.name for p in out.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "tokens",
        "curve.jsonl",
    } <= names
    ours, tokenizer = load_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode("c page 3: xxx")])
    assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-5)
    curve = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve if "held_out_bpb" in row] == [10, 20, 30]
    assert curve[-1]["loss"] < curve[0]["loss"] and summary["tokens"] == 30 * 128
    assert summary == json.loads((tmp_path / "result.json").read_text())
    assert not list(tmp_path.glob("*.partial"))


def test_bits_per_byte_of_a_model_that_knows_nothing_is_that_of_a_uniform_code():
    class Uniform(torch.nn.Module):
        def forward(self, ids, targets):
            return torch.where(targets == -100, 0.0, math.log(256.0))

    documents = [np.array([5] * n + [0]) for n in (1, 7, 8, 30)]
    bits = bits_per_byte(Uniform(), documents, n_bytes=46, separator=0, seq_len=8)
    assert bits == pytest.approx(8 * (46 + 4) / 46)  # a byte a token, and a separator a document


def test_bits_per_byte_agrees_with_scoring_window_by_window():
    torch.manual_seed(0)
    model = Transformer(Config.from_depth(1, 50, max_seq_len=16))
    documents = [np.append(np.random.default_rng(n).integers(1, 50, n), 0) for n in (3, 16, 17, 40)]
    nats = 0.0
    for document in documents:
        stream = torch.tensor([0, *document.tolist()])
        for i in range(0, len(document), 16):
            window = stream[i : i + 17]
            scores = model(window[None, :-1])[0].log_softmax(-1)
            nats -= scores[range(len(window) - 1), window[1:]].sum().item()
    got = bits_per_byte(model, documents, 100, separator=0, seq_len=16, rows=3)
    assert got == pytest.approx(nats / math.log(2) / 100, rel=1e-5)


def test_packed_and_masked_training_trains_on_exactly_what_evaluation_scores(tmp_path):
    """An epoch of best-fit rows with masked documents costs a model what its documents cost it one by one."""
    write([corpus(tmp_path)[0]], tmp_path / "tokens", weights={"host3.example": 2})
    data = TokenData(tmp_path / "tokens")
    torch.manual_seed(0)
    model = Transformer(Config.from_depth(1, 257, max_seq_len=32)).double()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_()
    loader = Loader(data, seq_len=32, rows=8, packing="best_fit", mask_documents=True)
    rows, nats = loader.order.epoch(0).rows, 0.0
    for step in range(-(-rows // 8)):
        batch = make_batch(loader, step, World())
        left = min(8, rows - 8 * step)  # the last step reads on into the next epoch
        nats += document_loss(model, batch._rows(slice(0, left)))[0].item()
    documents = [data.tokens(d) for d in data.documents() for _ in range(int(data.weight[d]))]
    bits = bits_per_byte(model, documents, 1, data.separator, seq_len=32)
    assert nats / math.log(2) == pytest.approx(bits, rel=1e-7)


def test_pretraining_packs_and_masks_if_configured(tmp_path, inputs):
    settings = {"packing": "best_fit", "mask_documents": True, "weights": {"c": 1.5}}
    summary = run_here(tmp_path, inputs, **settings)
    assert 0.97 * 30 * 128 < summary["tokens"] < 30 * 128  # some places are padding
    index = pq.read_table(tmp_path / "out" / "tokens" / "index.parquet")
    assert set(index["weight"].to_pylist()) == {1.5}


def test_steps_tokens_and_epochs_exclude_each_other():
    with pytest.raises(ConfigError, match="only one of"):
        PretrainConfig(tokens=1, epochs=1)


def test_an_unknown_setting_is_one_sentence_without_traceback(root, tmp_path, inputs):
    process = start(root, command(tmp_path, inputs, dept=3))
    stderr = process.communicate()[1]
    assert process.returncode == 1
    assert "base_model: there is no setting called dept" in stderr and "Traceback" not in stderr
