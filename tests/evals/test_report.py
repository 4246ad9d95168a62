"""From a corpus to the report, end to end at toy size: probes, SFT, RL, evaluation, each as its own script."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from model.environments import CHAIN_SUM, Environment

SMALL_SFT = {"epochs": 1, "batch_rows": 16, "engine": "torch", "threads": 1}
SMALL_SFT |= {
    "mixture": {"unknown_pages": 12, "invented": 8, "heldout_unknown": 6, "worked": 24, "called": 16}
}
SMALL_RL = {"steps": 2, "prompts": 4, "samples": 4, "max_new_tokens": 12, "pool": 60, "eval_problems": 12}
SMALL_RL |= {"engine": "torch", "threads": 1}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Runs the scripts one after the other on a corpus of made-up pages; gives the folder of their outputs."""
    root = tmp_path_factory.mktemp("chain")
    write_corpus(root / "corpus" / "toy")
    write_tokenizer(root)
    corpus, tokenizer, base = root / "corpus" / "toy", root / "tokenizer", root / "base_model"
    shape = {
        "depth": 1,
        "d_model": 32,
        "n_head": 2,
        "n_kv_head": 1,
        "head_dim": 16,
        "d_ff": 64,
        "seq_len": 64,
    }
    shape |= {"batch_tokens": 512, "steps": 4, "engine": "torch", "threads": 1, "held_out": 0.1}
    run("model.pretrain", root, "base_model", shape, cleaned_corpus=[str(corpus)], tokenizer=str(tokenizer))
    run("evals.probes", root, "conversations", SMALL_SFT, base_model=str(base), cleaned_corpus=[str(corpus)])
    talks = str(root / "conversations")
    run("model.sft", root, "sft_model", SMALL_SFT, base_model=str(base), conversations=talks)
    run("model.rl", root, "rl_model", SMALL_RL, sft_model=str(root / "sft_model"))
    report(root, "eval_reports")
    return root


def write_corpus(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    things = ["river", "town", "mountain", "metal", "bird", "poem", "dance", "island"]
    rows = []
    for i in range(120):
        name = "".join(rng.choice("bdklmnrst") + rng.choice("aeiou") for _ in range(3)).capitalize()
        kind, fame = rng.choice(things), rng.choice(things)
        text = f"{name}\n{name} is a small {kind} of the northern lands. It is known for its {fame}."
        rows.append(
            {"record_id": f"urn:{i}", "url": f"https://h{i % 7}.example/{i}", "host": f"h{i % 7}.example"}
        )
        rows[-1] |= {"crawl": "toy", "text": text}
    (folder / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents" / "part-0.parquet")


def write_tokenizer(root: Path) -> None:
    from model.vocabulary.config import TokenizerConfig
    from model.vocabulary.train import read_texts, train_tokenizer

    train_tokenizer(
        read_texts([root / "corpus" / "toy"]), root / "tokenizer", TokenizerConfig(vocab_size=400)
    )


def run(module: str, root: Path, out: str, params: dict, **inputs) -> dict:
    """One script, as it is started by hand, in this process; its result."""
    from importlib import import_module

    config = {"params": params, "inputs": inputs, "out": str(root / out), "work": str(root / "work" / out)}
    config |= {"result": str(root / f"{out}.result.json"), "metrics": str(root / f"{out}.metrics.jsonl")}
    (root / f"{out}.json").write_text(json.dumps(config))
    assert import_module(module).main(["--config", str(root / f"{out}.json")]) == 0
    return json.loads((root / f"{out}.result.json").read_text())


def report(root: Path, out: str) -> dict:
    models = {name: str(root / name) for name in ("base_model", "sft_model", "rl_model")}
    small = {"problems": 24, "facts": 5, "max_new_tokens": 12, "threads": 1}
    return run("evals.report", root, out, small, **models)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_every_output_is_complete(chain):
    found = json.loads((chain / "eval_reports" / "report.json").read_text())
    assert found["bits_per_byte"].keys() >= {"base", "SFT", "RL", "unigram", "zstd"}
    assert found["accuracy"]["RL"]["n"] == 24
    assert found["contamination"]["heldout_problems_in_training"] == 0
    assert found["contamination"]["heldout_subjects_in_training"] == 0
    assert found["verdict"]["promote"] is False  # two steps teach nothing
    assert {p.name for p in (chain / "eval_reports" / "plots").iterdir()} == {
        "accuracy.png",
        "bits_per_byte.png",
        "knowledge.png",
    }
    samples = [
        json.loads(line) for line in (chain / "eval_reports" / "samples.jsonl").read_text().splitlines()
    ]
    assert {s["model"] for s in samples} == {"base", "SFT", "RL"}
    assert "# Evaluation" in (chain / "eval_reports" / "report.md").read_text()


def test_the_same_models_give_the_same_report_to_the_byte(chain):
    report(chain, "again")
    assert hashes(chain / "again") == hashes(chain / "eval_reports")


def test_the_same_sft_model_gives_the_same_rl_model_to_the_byte(chain):
    run("model.rl", chain, "rl_again", SMALL_RL, sft_model=str(chain / "sft_model"))
    assert hashes(chain / "rl_again") == hashes(chain / "rl_model")


def test_rl_interrupted_and_resumed_gives_the_same_bytes(chain, monkeypatch):
    from model.rollouts import Rollouts

    class PowerCut(Exception):
        pass

    whole = Rollouts.batch

    def dies(self, step):
        if step == 1:
            raise PowerCut
        return whole(self, step)

    often = SMALL_RL | {"checkpoint_every": 1}
    monkeypatch.setattr(Rollouts, "batch", dies)
    with pytest.raises(PowerCut):
        run("model.rl", chain, "rl_resumed", often, sft_model=str(chain / "sft_model"))
    assert not (chain / "rl_resumed").exists()
    monkeypatch.setattr(Rollouts, "batch", whole)
    run("model.rl", chain, "rl_resumed", often, sft_model=str(chain / "sft_model"))
    assert hashes(chain / "rl_resumed") == hashes(chain / "rl_model")


def test_the_assistant_loads_in_transformers_and_carries_its_conversations(chain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain / "rl_model")
    assert AutoModelForCausalLM.from_pretrained(chain / "rl_model").num_parameters() > 0
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>assistant\n")
    assert (chain / "sft_model" / "conversations" / "train.parquet").exists()


def test_every_conversation_about_a_page_names_its_record(chain):
    import pyarrow.parquet as pq

    rows = pq.read_table(chain / "sft_model" / "conversations" / "train.parquet").to_pylist()
    from_pages = [row for row in rows if row["source"] == "cleaned_corpus"]
    assert from_pages and all(row["record_id"].startswith("urn:") for row in from_pages)
    assert all(row["record_id"] is None for row in rows if row["source"] != "cleaned_corpus")


def test_no_held_out_sum_occurs_in_training(chain):
    import pyarrow.parquet as pq

    table = pq.read_table(chain / "sft_model" / "conversations" / "train.parquet", columns=["messages"])
    asked = {row[0]["content"] for row in table["messages"].to_pylist()}
    heldout = Environment(options=CHAIN_SUM).generate(20_000, 24, "heldout")
    assert not asked & {p.prompt for p in heldout}


def test_an_unknown_setting_is_an_error_in_one_sentence(chain, capsys):
    from evals import report as module

    config = json.loads((chain / "eval_reports.json").read_text()) | {"params": {"problem": 3}}
    (chain / "wrong.json").write_text(json.dumps(config))
    assert module.main(["--config", str(chain / "wrong.json")]) == 1
    assert "no setting called problem" in capsys.readouterr().err
