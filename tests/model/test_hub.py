"""Model folders: transformers reads ours with the same logits, we read theirs, the same model gives the same bytes."""

import json
import subprocess
import sys

import pytest
import torch

from model.chat import render
from model.generation.generate import generate
from model.hub.convert import main
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.network.config import RopeScaling

SHAPES = [(qk, tied) for qk in (True, False) for tied in (True, False)]
IDS = torch.arange(200).view(2, 100) * 7 % 512


def logits(model):
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize(("qk_norm", "tied"), SHAPES)
def test_transformers_gives_the_same_logits_from_our_folder(
    random_model, tokenizer_folder, tmp_path, qk_norm, tied
):
    from transformers import AutoModelForCausalLM

    model = random_model(qk_norm=qk_norm, tie_embeddings=tied, rope_theta=5e4)
    save_pretrained(model, tokenizer_folder, tmp_path, "# Card\n")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-5)
    ours, _ = load_pretrained(tmp_path)
    assert ours.config == model.config
    assert torch.equal(logits(ours), logits(model))


@pytest.mark.parametrize(("qk_norm", "tied"), SHAPES)
def test_we_give_the_same_logits_from_a_folder_of_transformers(
    random_model, tokenizer_folder, tmp_path, qk_norm, tied
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = random_model(qk_norm=qk_norm, tie_embeddings=tied)
    save_pretrained(model, tokenizer_folder, tmp_path / "ours", "")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="400KB")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1  # in several files
    back, tokenizer = load_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(back), logits(model))
    assert (back.lm_head.weight is back.embed_tokens.weight) == tied
    assert tokenizer.vocab_size == 512


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 2.0),
        RopeScaling("llama3", 4.0, original_max_seq_len=64),
        RopeScaling("yarn", 4.0, original_max_seq_len=64),
        RopeScaling("yarn", 2.0, 64, beta_fast=16.0, attention_factor=1.2, truncate=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
def test_scaled_positions_are_kept_both_ways(random_model, tokenizer_folder, tmp_path, scaling, qk_norm):
    from transformers import AutoModelForCausalLM

    model = random_model(rope_scaling=scaling, rope_theta=5e4, qk_norm=qk_norm)
    save_pretrained(model, tokenizer_folder, tmp_path / "ours", "")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    for file in tokenizer_folder.iterdir():
        (tmp_path / "theirs" / file.name).write_bytes(file.read_bytes())
    edit(tmp_path / "ours", rope_parameters=None)  # as transformers 4 wrote it
    for name in ("ours", "theirs"):
        back, _ = load_pretrained(tmp_path / name)
        assert torch.equal(logits(back), logits(model))


def test_deepseeks_form_of_the_attention_factor_is_read(random_model, tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    save_pretrained(random_model(), tokenizer_folder, tmp_path, "")
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    edit(tmp_path, rope_parameters=rope | {"mscale": 0.7, "mscale_all_dim": 0.3})
    ours, _ = load_pretrained(tmp_path)
    assert ours.config.rope_scaling.attention_factor != 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_in_several_files_are_the_same_weights(random_model, tokenizer_folder, tmp_path, tied):
    from transformers import AutoModelForCausalLM

    model = random_model(tie_embeddings=tied)
    save_pretrained(model, tokenizer_folder, tmp_path, "")
    whole = len((tmp_path / "model.safetensors").read_bytes())
    for size in ("300KB", 200_000, "50GB", "300KB"):  # one folder, written again and again
        save_pretrained(model, tokenizer_folder, tmp_path, "", max_shard_size=size)
        files = sorted(tmp_path.glob("*.safetensors*"))
        assert not any(f.name.endswith(".partial") for f in files)
        if size == "50GB":
            assert [f.name for f in files] == ["model.safetensors"]
        else:
            *parts, index = files
            assert index.name == "model.safetensors.index.json" and len(parts) > 1
            assert json.loads(index.read_text())["metadata"]["total_size"] < whole
            assert sum(f.stat().st_size for f in parts) < whole + 10_000  # no tensor twice
        back, _ = load_pretrained(tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(theirs.lm_head.weight, model.lm_head.weight)


MEASURE_LOADING = """
import re, sys, torch
from pathlib import Path
from model.hub.load import load_pretrained
def peak():  # bytes
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
load_pretrained(sys.argv[1])  # a small one: everything is imported now
before = peak()
model, _ = load_pretrained(sys.argv[2], dtype=torch.bfloat16)
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_loading_needs_the_models_memory_once(random_model, tokenizer_folder, tmp_path):
    """Peak memory, in sizes of the model, of loading float32 from eight files as bfloat16: the model and a file."""
    save_pretrained(random_model(), tokenizer_folder, tmp_path / "small", "")
    big = random_model(d_model=1024, d_ff=4096, n_head=16, n_kv_head=16, head_dim=64)  # 200 MB
    save_pretrained(big, tokenizer_folder, tmp_path / "big", "", max_shard_size="25MB")
    command = [sys.executable, "-c", MEASURE_LOADING, tmp_path / "small", tmp_path / "big"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.6, run.stdout


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_command_writes_a_foreign_folder_as_ours(random_model, tokenizer_folder, tmp_path, capsys, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_pretrained(random_model(), tokenizer_folder, tmp_path / "made", "")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    theirs.generation_config.eos_token_id = [5, 9]
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="400KB")
    AutoTokenizer.from_pretrained(tmp_path / "made").save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: mit\n---\nTheirs.\n")
    arguments = [str(tmp_path / "theirs"), str(tmp_path / "out"), "--max-shard-size", "600KB"]
    main(arguments + ([] if dtype is None else ["--dtype", dtype]))
    assert "Qwen3, 3 layers" in capsys.readouterr().out
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert back.dtype == getattr(torch, dtype or "float32")
    for name, weight in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight.to(back.dtype)), name
    assert back.generation_config.eos_token_id == [5, 9]
    assert (tmp_path / "out" / "README.md").read_text().endswith("Theirs.\n")
    with pytest.raises(SystemExit, match="not empty"):
        main(arguments)
    assert load_pretrained(tmp_path / "out")[1].vocab_size == 512


def test_transformers_generates_the_same_answer(random_model, tokenizer, tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = random_model()
    save_pretrained(model, tokenizer_folder, tmp_path, "", chat=True)
    theirs, their_tokenizer = (c.from_pretrained(tmp_path) for c in (AutoModelForCausalLM, AutoTokenizer))
    conversation = [{"role": "user", "content": "What is 12 + 7?"}]
    prompt, _ = render(conversation, tokenizer, add_generation_prompt=True)
    inputs = their_tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = theirs.generate(**inputs, max_new_tokens=30, do_sample=False)[0].tolist()
    (ours,) = generate(model, [prompt], max_new_tokens=30, stop_ids=[tokenizer.im_end_id, tokenizer.eos_id])
    assert answer == prompt + ours.ids


def test_a_chat_model_ends_at_its_turn_and_a_base_model_at_its_document(
    random_model, tokenizer, tokenizer_folder, tmp_path
):
    from transformers import AutoTokenizer

    for chat in (False, True):
        folder = tmp_path / str(chat)
        save_pretrained(random_model(), tokenizer_folder, folder, "", chat=chat)
        ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        assert ends == ([tokenizer.im_end_id, tokenizer.eos_id] if chat else tokenizer.eos_id)
        eos = AutoTokenizer.from_pretrained(folder).eos_token
        assert eos == ("<|im_end|>" if chat else "<|endoftext|>")
    again, _ = load_pretrained(tmp_path / "True")
    save_pretrained(again, tmp_path / "True", tmp_path / "child", "", chat=True)  # from a model's own folder
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("True", "child")]
    assert files[0] == files[1]


def test_the_card_names_licence_data_and_parents_in_valid_yaml(random_model, tokenizer_folder, tmp_path):
    from huggingface_hub import ModelCard

    save_pretrained(
        random_model(),
        tokenizer_folder,
        tmp_path,
        "# Name\n\nText.\n",
        licence="apache-2.0",
        data=["CC-MAIN-2026-45", 'odd: "name"'],
        parents=["base_model@abc"],
        languages=["en"],
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["CC-MAIN-2026-45", 'odd: "name"']
    assert card.data.base_model == ["base_model@abc"]
    assert card.text.strip() == "# Name\n\nText."


def test_a_half_precision_model_keeps_its_type(random_model, tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = random_model().bfloat16()
    save_pretrained(model, tokenizer_folder, tmp_path, "")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    back, _ = load_pretrained(tmp_path)
    assert back.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(back.embed_tokens.weight, model.embed_tokens.weight.float())


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2'"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "kind 'dynamic'"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "kind 'longrope'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "lack factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"num_hidden_layers": 4}, "tensors do not fit config.json"),
        ({"vocab_size": 600}, r"embed_tokens.weight, where \(600, .* expected and \(512"),
    ],
)
def test_a_folder_of_a_model_that_we_do_not_implement_is_refused(
    random_model, tokenizer_folder, tmp_path, changes, words
):
    save_pretrained(random_model(), tokenizer_folder, tmp_path, "")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path)


def test_a_vocabulary_that_is_not_byte_level_is_refused(random_model, tokenizer_folder, tmp_path):
    save_pretrained(random_model(), tokenizer_folder, tmp_path, "")
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["\u2581the"] = len(content["model"]["vocab"])  # SentencePiece's " the"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no byte-level BPE: it has a token with '\u2581'"):
        load_pretrained(tmp_path)


def test_a_folder_without_weights_is_refused(random_model, tokenizer_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_pretrained(tmp_path)
    save_pretrained(random_model(), tokenizer_folder, tmp_path, "")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors only"):
        load_pretrained(tmp_path)
