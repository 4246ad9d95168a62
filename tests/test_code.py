"""The code that decides a result: what is part of a closure, and which edits change its hash."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.code import CodeReader
from core.errors import DataError

FILES = {
    "pkg/__init__.py": '"""A package."""\n',
    "pkg/entry.py": """\
from pkg import near
from pkg.deep import far


def run(x):
    from .lazy import f

    return f(x)
""",
    "pkg/near.py": "import numpy as np\nimport json\n\nA = {**{}, 'b': 1}\n",
    "pkg/lazy.py": """\
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkg import typed


def f(x):
    return x
""",
    "pkg/typed.py": "B = 1\n",
    "pkg/shown.py": "from pkg import only_shown\n\nDECIDES_NOTHING = 'a plot'\n",
    "pkg/only_shown.py": "C = 1\n",
    "pkg/deep/__init__.py": "",
    "pkg/deep/far.py": "from ..shown import draw\nimport sklearn.base\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def closure(root: Path):
    return CodeReader(root, root / "cache.json").closure(["pkg.entry"])


def test_a_closure_holds_all_imports_but_what_decides_nothing_and_what_only_types_need(project):
    found = closure(project)
    assert list(found.files) == ["pkg/deep/far.py", "pkg/entry.py", "pkg/lazy.py", "pkg/near.py"]
    assert found.libraries == ("numpy", "scikit-learn")


def test_an_installed_project_has_the_closure_of_its_checkout(tmp_path: Path):
    """In site-packages libraries are beside the project's packages, and are no part of it."""
    for root in ("checkout", "site-packages"):
        (tmp_path / root / "model").mkdir(parents=True)
        (tmp_path / root / "model" / "entry.py").write_text("import numpy as np\nfrom model import near\n")
        (tmp_path / root / "model" / "near.py").write_text("A = 1\n")
    (tmp_path / "site-packages" / "numpy").mkdir()
    (tmp_path / "site-packages" / "numpy" / "__init__.py").write_text("from numpy import core\n")
    checkout, installed = (
        CodeReader(tmp_path / r).closure(["model.entry"]) for r in ("checkout", "site-packages")
    )
    assert installed == checkout
    assert installed.libraries == ("numpy",)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f(x):\n    return x\n", "def f(x):\n    # a comment\n    return (\n        x\n    )\n"),
        ("def f(x):\n", 'def f(x):\n    """What it does."""\n'),
        ("    from pkg import typed\n", "    from pkg import near\n"),
        (
            "from typing import TYPE_CHECKING\n",
            '"""Doc."""\nfrom __future__ import annotations\nfrom typing import TYPE_CHECKING\n',
        ),
    ],
)
def test_comments_docstrings_formatting_and_type_imports_change_nothing(project, old, new):
    before = closure(project)
    path = project / "pkg/lazy.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert closure(project).hash() == before.hash()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pkg/lazy.py", "return x", "return -x"),
        ("pkg/lazy.py", "return x", "return None"),
        ("pkg/near.py", "{**{}, 'b': 1}", "{'b': {}, **1}"),
        ("pkg/near.py", "'b': 1", "'b': True"),
        ("pkg/near.py", "'b': 1", "'b': 1.0"),
        ("pkg/deep/far.py", "sklearn.base", "sklearn.svm"),
        ("pkg/__init__.py", '"""A package."""', "X = 1"),
    ],
)
def test_any_other_edit_changes_the_hash_and_names_the_file(project, file, old, new):
    before = closure(project)
    path = project / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    after = closure(project)
    assert after.hash() != before.hash()
    assert {p for p in {*before.files, *after.files} if before.files.get(p) != after.files.get(p)} == {file}


def test_what_decides_nothing_may_change_as_it_likes(project):
    before = closure(project)
    (project / "pkg/shown.py").write_text("DECIDES_NOTHING = 'another plot'\nX = 2\n")
    (project / "pkg/only_shown.py").write_text("C = 2\n")
    assert closure(project).hash() == before.hash()


def test_library_versions_count_only_where_they_are_given(project):
    found = closure(project)
    assert found.hash({"numpy": "1"}) != found.hash({"numpy": "2"}) != found.hash()


def test_a_missing_entry_or_broken_file_is_a_sentence(project):
    with pytest.raises(DataError, match=r"pkg\.none: there is no such module"):
        CodeReader(project).closure(["pkg.none"])
    (project / "pkg/near.py").write_text("def (:\n")
    with pytest.raises(DataError, match=r"pkg/near\.py, line 1: not valid Python"):
        closure(project)


def test_libraries_are_named_as_their_distributions_are(root: Path):
    """Every library that the real stages import is an installed distribution of that name."""
    from importlib.metadata import packages_distributions

    names = {name.lower().replace("_", "-") for found in packages_distributions().values() for name in found}
    libraries = (
        CodeReader(root).closure(["corpus.crawl", "corpus.clean", "model.rl", "evals.report"]).libraries
    )
    assert set(libraries) - names <= {"s3fs", "conversion", "gguf"}, "optional extras"
