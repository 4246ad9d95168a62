"""The state of a training in pieces that any number of ranks can read: fp32 weights and optimiser moments.

    engine.snapshot().write(folder)     every rank; the write needs no other rank, so a thread can do it
    Saved(folder).fill(part, "weight", tensor)

Notable:
- each rank writes what it holds, as flat pieces named `weight's name/kind/first number`, into a safetensors file
  of its own. ZeRO's stages differ only in which rank holds which piece, so a checkpoint of two ranks at stage 2 can
  be read by one rank of plain torch, and the other way round;
- kinds are `weight` and the optimiser's own names: `exp_avg` and `exp_avg_sq` (AdamW), `momentum` and `neuron_sq`
  (Muon; one number a neuron, which every rank holds and one writes);
- no pickle: safetensors only; the count of updates is in the header.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.training.checkpoint_files import CheckpointError

WEIGHT = "weight"


class Part(NamedTuple):
    """A range of one weight's numbers and where this rank holds it.

    The flattened weight from `start` on is the `holder` from `offset` on, for `numel` numbers. The holder is what
    the optimiser updates: the weight itself, or a flat partition of ZeRO's.
    """

    name: str
    shape: torch.Size  # of the whole weight
    holder: Tensor
    start: int
    offset: int
    numel: int  # 0: this rank holds nothing of it

    def of(self, tensor: Tensor) -> Tensor:
        """The part, flat, of the holder or of a tensor laid out like it (a gradient, a moment)."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)

    def gradient(self) -> Tensor:
        """The part, flat, of the holder's gradient, which must exist."""
        assert self.holder.grad is not None
        return self.of(self.holder.grad)


@dataclass(frozen=True)
class Snapshot:
    """A copy in CPU memory of what one rank holds."""

    rank: int
    pieces: dict[str, Tensor]  # "name/kind/start" -> float32, flat
    updates: int  # optimiser steps behind these numbers

    def write(self, folder: Path) -> None:
        """Write rank-00000.safetensors into `folder`. Raises OSError, also for safetensors' own errors."""
        try:
            path = folder / f"rank-{self.rank:05d}.safetensors"
            save_file(self.pieces, path, metadata={"updates": str(self.updates)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


class Saved:
    """The snapshots of all ranks in a folder, read piece by piece."""

    def __init__(self, folder: Path):
        """Raises CheckpointError for a folder without snapshots."""
        self.folder = folder
        files = sorted(folder.glob("rank-*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{folder}: no rank-*.safetensors in it, so no weights. Remove it and run again."
            )
        self._files = [safe_open(file, framework="pt") for file in files]
        self.updates = int(self._files[0].metadata()["updates"])
        self._pieces: dict[tuple[str, str], list[tuple[int, Any]]] = defaultdict(
            list
        )  # (name, kind) -> (start, slice)
        for file in self._files:
            for key in file.keys():  # noqa: SIM118  (a file, not a dict)
                name, kind, start = key.rsplit("/", 2)
                self._pieces[name, kind].append((int(start), file.get_slice(key)))

    def fill(self, part: Part, kind: str, tensor: Tensor) -> None:
        """Copy this part of a weight, or of one of its moments, into `tensor`, which is laid out like part.holder.

        Raises CheckpointError where the snapshots do not hold all of it.
        """
        target, filled = part.of(tensor), 0
        for start, piece in self._pieces[part.name, kind]:
            first = max(start, part.start)
            last = min(start + piece.get_shape()[0], part.start + part.numel)
            if first < last:
                target[first - part.start : last - part.start] = piece[first - start : last - start]
                filled += last - first
        if filled != part.numel:
            raise CheckpointError(
                f"{self.folder}: holds {filled:,} of the {part.numel:,} numbers of {part.name} ({kind}) that this "
                "process needs: another model's checkpoint, or files of it are missing. Remove it and run again."
            )
