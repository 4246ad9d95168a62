"""A conversation needs a model folder and the few libraries of inference, nothing of training or of the pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from model.hub.save import save_pretrained

ASK = """
import sys

REFUSED = {"dagster", "dagster_pipes", "datasets", "deepspeed", "dvc", "evals", "fsspec", "huggingface_hub", "mlflow"}
REFUSED |= {"pyarrow", "pydantic", "reasoning_gym", "transformers"}
REFUSED |= {f"model.{part}" for part in ("data", "environments", "job", "training", "vocabulary.train")}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in REFUSED and not asked_by_a_library():
            raise AssertionError(f"{name} is imported")

def asked_by_a_library():
    frame = sys._getframe()
    while frame := frame.f_back:
        if "/site-packages/" in frame.f_code.co_filename:
            return True
    return False

sys.meta_path.insert(0, Refuse())
from model.conversation import Conversation

conversation = Conversation(sys.argv[1], max_new_tokens=8)
print(len(conversation.ask("What is 2 + 3?")), len(conversation.messages))
"""


def test_a_conversation_imports_nothing_but_the_libraries_of_inference(
    random_model, tokenizer_folder, tmp_path
):
    save_pretrained(random_model(), tokenizer_folder, tmp_path, "", chat=True)
    run = subprocess.run(
        [sys.executable, "-c", ASK, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[1] == "2"


def test_the_libraries_of_inference_are_these():
    from core.code import CodeReader

    libraries = CodeReader().closure(["model.conversation"]).libraries
    assert libraries == ("numpy", "safetensors", "tiktoken", "tokenizers", "torch")
