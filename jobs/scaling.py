"""The scaling law of a corpus: a few small base models, each a run in MLflow, and the power law fitted to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import MissingError
from core.files import write_atomically
from core.hashing import text_sha256
from evals.scaling import Law, Point, draw, fit

if TYPE_CHECKING:
    from resources.launch import TrainingLauncher
    from resources.tracking import MlflowTracker

# Settings that follow from the depth (model/training/scaling_recipe.py), whatever params.yaml says.
FROM_DEPTH = {
    "steps": 0,
    "tokens": 0,
    "epochs": 0.0,
    "batch_tokens": 0,
    "lr": 0.0,
    "weight_decay": None,
}


def scaling(
    root: Path, launcher: TrainingLauncher, tracker: MlflowTracker, depths: Sequence[int], out: Path
) -> tuple[list[Point], Law]:
    """Train a base model of each depth on the present corpus; what does not follow from the depth is the same for all.

    Writes out/scaling.json and out/scaling.png, and each model into a folder that is named by its depth and by what
    decides it (code, settings, versions of the data), where it is found again. Raises MissingError where corpus or
    tokenizer is missing.
    """
    from resources.dvc_ledger import DvcLedger
    from resources.workspace import Workspace

    params, ledger = Workspace(root).params(), DvcLedger(root)
    inputs = _inputs(root, params)
    section, origins = params["base_model"] or {}, ledger.origins("base_model")
    points = [_train(depth, section, inputs, origins, launcher, tracker, out) for depth in depths]
    law = fit(points)
    draw(points, law, out / "scaling.png")
    found = {"points": [vars(point) for point in points], "law": vars(law)}
    write_atomically(out / "scaling.json", json.dumps(found, indent=2) + "\n")
    with tracker.start(experiment="scaling", name="law") as run:
        run.log_metrics({"exponent": law.b, "worst_residual": law.worst})
        run.log_artifact(out / "scaling.png")
    return points, law


def _inputs(root: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    data = root / "data"
    corpora = [data / "cleaned_corpus" / crawl for crawl in params["crawls"]]
    tokenizer, training_set = data / "tokenizer", data / "training_set"
    for path in (*corpora, tokenizer, training_set):
        if not path.exists():
            raise MissingError(
                f"{path} is missing. Build what the models are trained on: stemma materialize tokenizer training_set"
            )
    return {
        "cleaned_corpus": [str(corpus) for corpus in corpora],
        "tokenizer": str(tokenizer),
        "training_set": str(training_set),
    }


def _train(
    depth: int,
    section: Mapping[str, Any],
    inputs: dict[str, Any],
    origins: dict[str, Any],
    launcher: TrainingLauncher,
    tracker: MlflowTracker,
    out: Path,
) -> Point:
    from model.training.pretrain_config import SHAPE_SETTINGS

    kept = {name: value for name, value in section.items() if name not in SHAPE_SETTINGS}
    settings = {**kept, **FROM_DEPTH, "upsample": {}, "depth": depth}
    key = text_sha256(json.dumps(origins | {"settings": settings}, sort_keys=True))[:8]
    folder, work = out / f"depth-{depth}-{key}", out / f"work-{depth}-{key}"
    if not (folder / "summary.json").is_file():
        with tracker.start(experiment="scaling", name=f"depth {depth}", params=settings) as run:
            config = {"params": settings, "inputs": inputs, "out": str(folder)}
            config |= {"work": str(work), "metrics": str(run.metrics_path)}
            launcher.run(None, "model.pretrain", config, work)
        shutil.rmtree(work, ignore_errors=True)
    summary = json.loads((folder / "summary.json").read_text())
    return Point(depth, summary["parameters"], summary["tokens"], summary["flops"], summary["held_out_bpb"])
