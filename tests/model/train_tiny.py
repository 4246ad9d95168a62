"""A training small enough for a test, in a process of its own: torchrun starts it, kill -9 ends it.

    python train_tiny.py WORK '{"steps": 8, …TrainConfig}' [step to wait at]

Prints the curve as JSON, then the sha256 of the weights. At the step to wait at it writes WORK/waiting and
waits until that is gone.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from core.errors import RunError
from model.data.batch import Batch
from model.network.config import Config
from model.network.transformer import Transformer
from model.run_log import RunLog
from model.training.stop import Stopped
from model.training.train_config import TrainConfig
from model.training.trainer import train
from model.training.world import destroy_distributed, init_distributed

ROWS, SEQ_LEN, VOCAB = 8, 16, 64


def batch_at(step: int, share: slice = slice(None)) -> Batch:
    """Random tokens; every third row carries no loss, so ranks and micro-batches differ in their counts."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (ROWS, SEQ_LEN + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[::3] = -100
    return Batch(tokens[share, :-1], targets[share])


def tiny_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(Config.from_depth(1, VOCAB, max_seq_len=SEQ_LEN))


def weights_hash(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def main(work: Path, settings: dict, wait_at: int = -1) -> None:
    config = TrainConfig(**settings)
    world = init_distributed(config)
    model = tiny_model()

    def make_batch(step: int) -> Batch:
        if step == wait_at:
            (work / "waiting").touch()
            while (work / "waiting").exists():
                time.sleep(0.02)
        return batch_at(step, world.share(ROWS))

    result = train(model, config, make_batch, work=work, log=RunLog(enabled=False), world=world)
    with result.engine.gathered():
        digest = weights_hash(result.engine.module)
    if world.rank == 0:
        print(json.dumps({"curve": result.curve, "weights": digest}))
    destroy_distributed()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
    except (RunError, Stopped) as error:
        sys.exit(f"{type(error).__name__}: {error}")
