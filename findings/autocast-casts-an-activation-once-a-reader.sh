#!/bin/sh
# torch 2.13.0, CPU, autocast to bfloat16: a float32 activation that several linear layers read is cast once for each of
# them, and each copy is kept for the backward pass. Autocast's cache holds casts of weights only. Three projections of
# one normalised input (queries, keys, values) therefore keep three bfloat16 copies where one cast by hand keeps one;
# the outputs are equal. Whoever predicts the memory of a training step has to count readers, not activations.
# Seen: "kept by autocast 3, kept when cast once 1, outputs equal True".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/check.py" <<'PY'
import torch
from torch import nn

torch.manual_seed(0)
readers = [nn.Linear(256, 256, bias=False) for _ in range(3)]
x = torch.randn(64, 256, requires_grad=True)


def kept_copies(cast_once: bool) -> tuple[int, torch.Tensor]:
    """Distinct bfloat16 copies of the activation that autograd keeps, and the sum of what the layers return."""
    storages = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tensor.shape == (64, 256):
            alive.append(tensor)  # so that no storage is used twice
            storages.add(tensor.untyped_storage().data_ptr())
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        read = nn.functional.rms_norm(x, (256,))
        assert read.dtype == torch.float32
        read = read.bfloat16() if cast_once else read
        out = sum(layer(read) for layer in readers)
    return len(storages), out


(by_autocast, first), (by_hand, second) = kept_copies(False), kept_copies(True)
equal = torch.equal(first, second)
print(f"kept by autocast {by_autocast}, kept when cast once {by_hand}, outputs equal {equal}")
raise SystemExit(0 if (by_autocast, by_hand, equal) == (3, 1, True) else "torch behaves differently now")
PY
"$folder/venv/bin/python" "$folder/check.py"
