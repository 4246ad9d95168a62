"""A model folder answers from the core of the dependencies alone, with the same words as from all of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ABSENT = ("dagster", "dvc", "mlflow", "deepspeed", "datasets", "pyarrow", "transformers", "scipy", "fastwarc")
QUESTION = "What is a list, and what is it made of?"
ANSWER = """\
import json, sys
from model.conversation import Conversation

print(json.dumps(Conversation(sys.argv[1], max_new_tokens=24).ask(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights and a vocabulary of Python's own help texts."""
    from pydoc_data.topics import topics

    import torch

    from model.hub.save import save_pretrained
    from model.network.config import Config
    from model.network.transformer import Transformer
    from model.vocabulary.config import TokenizerConfig
    from model.vocabulary.train import train_tokenizer

    folder = tmp_path_factory.mktemp("random_model")
    train_tokenizer(list(topics.values()), folder / "tokenizer", TokenizerConfig(vocab_size=512))
    torch.manual_seed(0)
    model = Transformer(Config.from_depth(depth=3, vocab_size=512, max_seq_len=128))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    save_pretrained(model, folder / "tokenizer", folder, "# Random\n")
    return folder


@pytest.fixture
def inference(project, tmp_path: Path) -> Iterator[Path]:
    """The bin folder of a virtual environment made by the two commands for inference of docs/dependencies.md."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
    options = ["--quiet", "--no-input", "--no-compile", "-c", project.root / "constraints.txt"]
    for wanted in ("torch==2.13.0", project.root):
        done = subprocess.run([*pip, "install", *options, wanted], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    yield venv / "bin"
    shutil.rmtree(venv)  # over a gigabyte, which pytest would keep for three runs


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_model_folder_answers_without_the_pipeline(inference, model_folder, root, tmp_path):
    search = f"from importlib.util import find_spec; print([n for n in {ABSENT} if find_spec(n)])"
    assert run(inference / "python", "-c", search, cwd=tmp_path) == "[]\n"
    expected = run(sys.executable, "-c", ANSWER, model_folder, QUESTION, cwd=root)
    assert len(set(json.loads(expected))) > 3  # it says something
    assert run(inference / "python", "-c", ANSWER, model_folder, QUESTION, cwd=tmp_path) == expected
    chat = ("chat", model_folder, "--prompt", QUESTION, "--max-tokens", "24")
    assert run(inference / "stemma", *chat, cwd=tmp_path) == run(sys.executable, "stemma.py", *chat, cwd=root)
