"""A small chain in a git repository of its own: the stages of the real one, each built in a moment.

`make(root, stage)` builds a stage as the assets do (lock, work folder, publish, commit); a stage's bytes are a
function of its inputs, code and parameters. `dvc repro` calls the same script.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.hashing import file_md5
from resources.dvc_hashes import files_of
from resources.dvc_ledger import DvcLedger

DVC = str(Path(sys.executable).with_name("dvc"))
ROOT = Path(__file__).resolve().parent.parent

DVC_YAML = """\
stages:
  raw_crawl:
    foreach: ${crawls}
    do:
      cmd: PYTHON make_stage.py raw_crawl@${key}
      desc: The crawl.
      deps: [code/crawl.py]
      params: ["crawls.${key}"]
      outs: ["data/raw_crawl/${key}"]
  cleaned_corpus:
    foreach: ${crawls}
    do:
      cmd: PYTHON make_stage.py cleaned_corpus@${key}
      deps: ["data/raw_crawl/${key}", code/clean.py]
      params: [cleaned_corpus]
      outs: ["data/cleaned_corpus/${key}"]
  tokenizer:
    cmd: PYTHON make_stage.py tokenizer
    deps: [data/cleaned_corpus, code/train.py]
    params: [tokenizer]
    outs: [data/tokenizer]
  base_model:
    cmd: PYTHON make_stage.py base_model
    deps: [data/cleaned_corpus, data/tokenizer, code/train.py]
    params: [base_model]
    outs: [data/base_model]
"""

PARAMS_YAML = """\
# The settings.
crawls:
  sample: # a small web
    source: sample
    pages: 3

cleaned_corpus: {}

tokenizer:
  vocab_size: 1024  # small

base_model:
  depth: 2
  lr: 1e-3
"""

MAKE_STAGE = """\
import sys
from pathlib import Path

sys.path.insert(0, TESTS)
from tiny_project import make

make(Path(__file__).resolve().parent, sys.argv[1])
"""


def sh(root: Path, *command: str) -> str:
    """Run a command in a project; return its standard output. Where it fails, the test fails with its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER", "DVC"))}
    env |= {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make(root: Path, name: str) -> str:
    """Build a stage as an asset does; return its version."""
    ledger = DvcLedger(root)
    stage, workspace = ledger.chain.stage(name), ledger.workspace
    with workspace.lock(name):
        out = workspace.work_path(name, "key") / "out"
        out.mkdir(exist_ok=True)
        seen = [file_md5(f) for dep in stage.data_deps for f in files_of(root / dep)]
        made = json.dumps(
            [name, dict(stage.param_values), seen, [file_md5(root / d) for d in stage.code_deps]]
        )
        (out / "made.txt").write_text(made)
        (out / "deep").mkdir(exist_ok=True)
        (out / "deep" / "digest.txt").write_text(hashlib.sha256(made.encode()).hexdigest())
        if stage.asset == "raw_crawl":
            _write_crawl(out, made.encode())
        workspace.publish(out, root / stage.out)
        version = ledger.commit(name)
        workspace.discard_work(name)
    with open(root / "hashed.log", "a") as log:
        print(name, version, "repro" if ledger.inside_repro(name) else "commit", file=log)
    return version


def _write_crawl(out: Path, content: bytes) -> None:
    """A crawl of one file, and a manifest with the real one's fields."""
    warc = out / "00000.warc"
    warc.write_bytes(b"WARC/1.0 " + content)
    line = {
        "file": warc.name,
        "bytes": warc.stat().st_size,
        "sha256": hashlib.sha256(warc.read_bytes()).hexdigest(),
    }
    line |= {"records": 1, "broken": 0, "by_type": {"response": 1}, "local": True, "source": "made"}
    (out / "manifest.jsonl").write_text(json.dumps(line) + "\n")


def build_chain(root: Path) -> Path:
    """Write the small project, committed to git, nothing built yet."""
    (root / "code").mkdir(parents=True)
    for name in ("crawl", "clean", "train"):
        (root / "code" / f"{name}.py").write_text(f'"""{name}"""\n')
    (root / "dvc.yaml").write_text(DVC_YAML.replace("PYTHON", sys.executable))
    (root / "params.yaml").write_text(PARAMS_YAML)
    (root / "make_stage.py").write_text(MAKE_STAGE.replace("TESTS", repr(str(ROOT / "tests"))))
    (root / "constraints.txt").write_text("dvc==3\n")
    (root / ".gitignore").write_text("/data/\n/work/\n/.dagster/\nhashed.log\n")
    sh(root, "git", "init", "-q")
    sh(root, "git", "config", "user.email", "someone@example.org")
    sh(root, "git", "config", "user.name", "someone")
    sh(root, DVC, "init", "-q")
    (root / ".dvcignore").write_text("__pycache__\n*.pyc\n")
    sh(root, DVC, "config", "cache.type", "reflink,hardlink,symlink,copy")
    sh(root, "git", "add", "-A")
    sh(root, "git", "commit", "-qm", "start")
    return root


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project of four stages, nothing built yet."""
    for name in ("DVC_STAGE", "DVC_ROOT", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    return build_chain(tmp_path / "project")
