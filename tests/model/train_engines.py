"""Short trainings with the engine alone, one after another in one process (or one a rank), to start up only once.

    python train_engines.py '[{"span": [0, 4], "load": FOLDER?, "save": FOLDER?, "save_after": 2?, …TrainConfig}, …]'

Prints, as JSON, for each run its losses a token, gradient norms, and the sha256 of the weights it ends with.
"""

import json
import os
import sys
from pathlib import Path

from train_tiny import ROWS, batch_at, tiny_model, weights_hash

from model.data.batch import token_loss
from model.training.open_engine import open_engine
from model.training.train_config import TrainConfig, lr_at
from model.training.world import destroy_distributed, init_distributed

BASE = {"lr": 1e-2, "threads": 1, "micro_batches": 2, "warmup": 0.2, "steps": 6}


def one_run(span, load=None, save=None, save_after=None, **settings) -> dict:
    """Steps span[0] … span[1]-1; `save` gets the state after `save_after` steps, or after the last."""
    config = TrainConfig(**(BASE | settings))
    world = init_distributed(config)
    opened = open_engine(tiny_model(), config, world)
    if load:
        opened.load(Path(load))
    losses, norms = [], []
    for step in range(*span):
        batch, total = batch_at(step, world.share(ROWS)), 0.0
        (count,) = world.sum(batch.count)
        for part in batch.split(config.micro_batches):
            with opened.autocast():
                loss, _ = token_loss(opened.model, part)
            opened.backward(loss, count)
            total += float(loss.detach())
        norms.append(opened.step(lr_at(config, step)))
        losses.append(world.sum(total)[0] / count)
        if save and step + 1 == (save_after or span[1]):
            Path(save).mkdir(exist_ok=True)
            opened.save(Path(save))
    world.barrier()  # the next run may read what another rank saved
    with opened.gathered():
        return {"loss": losses, "grad_norm": norms, "weights": weights_hash(opened.module)}


if __name__ == "__main__":
    results = [one_run(**run) for run in json.loads(sys.argv[1])]
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(results))
    destroy_distributed()
