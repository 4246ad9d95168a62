"""The picture of a training is light, is there for every kind of training, and shows what went on."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from assets.plots import smoothed, training_plot


def curve(path: Path, steps: int = 5000, **rows) -> Path:
    """A curve.jsonl of noisy numbers; rows: name -> value at a step, None where there is none."""
    lines = []
    for step in range(1, steps + 1):
        row = {"step": step, "lr": 1e-3, "grad_norm": 1 + step % 7, "loss": 3 + 0.1 * (step % 5)}
        row |= {name: value for name, make in rows.items() if (value := make(step)) is not None}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def every_500(step: int) -> float | None:
    return 1.5 if step % 500 == 0 else None


@pytest.mark.parametrize(
    "rows",
    [
        {"held_out_bpb": every_500, "rollbacks": lambda step: 1 if step > 900 else None},
        {"reward": lambda step: step % 3 / 3, "heldout_accuracy": every_500},
        {},
    ],
)
def test_a_training_is_drawn_in_less_than_sixty_kilobytes(tmp_path, rows):
    from PIL import Image

    picture = training_plot(curve(tmp_path / "curve.jsonl", **rows))
    width, height = Image.open(io.BytesIO(picture)).size
    assert len(picture) < 60_000 and width > 2 * height


def test_a_run_of_one_step_can_be_drawn_too(tmp_path):
    assert training_plot(curve(tmp_path / "curve.jsonl", steps=1)).startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant_and_follows_a_step():
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    jumped = smoothed([0.0] * 500 + [1.0] * 500)
    assert jumped[499] == 0 and 0 < jumped[505] < 0.5 and jumped[-1] == pytest.approx(1.0, abs=1e-6)


def test_mlflow_gets_the_picture_and_what_the_model_wrote(tmp_path):
    from assets.training import training_evidence
    from core.files import append_line
    from resources.tracking import MlflowTracker

    out, work = tmp_path / "out", tmp_path / "work"
    (work / "pretrain").mkdir(parents=True)
    out.mkdir()
    curve(out / "curve.jsonl", steps=50)
    append_line(
        work / "pretrain" / "samples.jsonl",
        {"step": 50, "samples": [{"prompt": "Once", "continuation": "upon a time"}]},
    )
    tracker = MlflowTracker(root=str(tmp_path))
    with tracker.start("base_model", "a run") as tracked:
        run = SimpleNamespace(out=out, work=work, tracked=tracked)
        result = {"steps": 50, "loss": 3.0, "skipped": [[8, 5]]}
        evidence = training_evidence(result, run, first=("loss",))
    (picture,), (page,) = (list((tmp_path / "mlartifacts").rglob(name)) for name in ("*.png", "*.md"))
    assert picture.read_bytes() == evidence.plot and "upon a time" in page.read_text()
    assert (
        evidence.checks == {"trained": True}
        and "the data of 5 were skipped" in evidence.check_notes["trained"]
    )
    assert "skipped" not in evidence.numbers
