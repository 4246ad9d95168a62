"""Model folders: transformers reads ours with the same logits, we read theirs, the same model gives the same bytes."""

import json

import pytest
import torch

from model.chat import render
from model.generate import generate
from model.hub import load_pretrained, save_pretrained

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


def test_transformers_writes_the_same_answer(random_model, tokenizer, tokenizer_folder, tmp_path):
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


def test_a_chat_model_ends_with_its_turn_and_a_base_model_with_its_document(
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
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "scaled rotary positions"),
        ({"num_hidden_layers": 4}, "tensors do not fit config.json"),
        ({"vocab_size": 600}, r"embed_tokens.weight, where \(600, .* expected and \(512"),
    ],
)
def test_a_foreign_folder_that_would_compute_something_else_is_refused(
    random_model, tokenizer_folder, tmp_path, changes, words
):
    save_pretrained(random_model(), tokenizer_folder, tmp_path, "")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        load_pretrained(tmp_path)


def test_a_folder_without_weights_is_refused(random_model, tokenizer_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_pretrained(tmp_path)
    save_pretrained(random_model(), tokenizer_folder, tmp_path, "")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors only"):
        load_pretrained(tmp_path)
