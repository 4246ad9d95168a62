"""Export to llama.cpp: its converter gets the name of our pre-tokenisation; what it computes differently is refused.

The results of the real converter and llama.cpp: benchmarks/exactness.py --llama-cpp."""

import json
import subprocess
import sys

import pytest

from model.hub.gguf_export import check_rope, pre_tokenizer_name
from model.hub.save import save_pretrained
from model.network.config import Config, RopeScaling
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.train import train_tokenizer

# What the export relies on in llama.cpp: the paths of two files and the name of one method.
CONVERTER = """
import json, sys
from pathlib import Path
from conversion.base import TextModel
Path(sys.argv[3]).write_text(json.dumps([sys.argv[1:], TextModel().get_vocab_base_pre(None)]))
"""
BASE = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""


@pytest.fixture
def llama_cpp(tmp_path):
    folder = tmp_path / "llama.cpp"
    (folder / "conversion").mkdir(parents=True)
    (folder / "conversion" / "base.py").write_text(BASE)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    return folder


def test_the_converter_gets_the_name_of_our_pre_tokenisation(
    random_model, tokenizer_folder, llama_cpp, tmp_path
):
    save_pretrained(random_model(), tokenizer_folder, tmp_path / "model", "")
    out = tmp_path / "out.gguf"
    command = [
        sys.executable,
        "-m",
        "model.hub.gguf_export",
        tmp_path / "model",
        out,
        "--llama-cpp",
        llama_cpp,
    ]
    subprocess.run(command, check=True)
    given, name = json.loads(out.read_text())
    assert given == [str(tmp_path / "model"), "--outfile", str(out), "--outtype", "bf16"]
    assert name == "qwen2"
    command[-1] = tmp_path
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and "no clone of llama.cpp" in run.stderr


def test_our_patterns_have_names_in_llama_cpp(tmp_path):
    def learned(digits: int):
        folder = tmp_path / str(digits)
        train_tokenizer(["123 some text"], folder, TokenizerConfig(vocab_size=300, max_digits=digits))
        return folder

    assert pre_tokenizer_name(learned(1)) == "qwen2"
    assert pre_tokenizer_name(learned(3)) == "dbrx"
    with pytest.raises(ValueError, match="max_digits of 1 or 3"):
        pre_tokenizer_name(learned(2))
    file = tmp_path / "1" / "tokenizer.json"
    file.write_text(file.read_text().replace("'s|'t", "'s|'x"))
    assert pre_tokenizer_name(tmp_path / "1") is None  # not ours: the converter decides


@pytest.mark.parametrize(
    ("scaling", "qk_norm", "words"),
    [
        (RopeScaling("llama3", 8.0), True, "Llama models only"),
        (RopeScaling("yarn", 4.0, attention_factor=1.5), True, "attention factor"),
        (RopeScaling("yarn", 4.0, truncate=False), False, "attention factor"),
        (RopeScaling("llama3", 8.0), False, None),
        (RopeScaling("yarn", 4.0), True, None),
        (RopeScaling("linear", 4.0), True, None),
        (None, True, None),
    ],
    ids=str,
)
def test_positions_that_llama_cpp_would_scale_differently_are_refused(tmp_path, scaling, qk_norm, words):
    config = Config.from_depth(1, 300, rope_scaling=scaling, qk_norm=qk_norm)
    if words is None:
        check_rope(config, tmp_path)
    else:
        with pytest.raises(ValueError, match=words):
            check_rope(config, tmp_path)
