"""The dial: how long, in what batches and how fast a model of a given shape is best trained.

`transformer.Config.from_depth` turns depth into a shape; this turns the shape into a training. Each rule is a published
law with its constants, or a rate measured on the demo and carried over by width; every one can be overridden by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20  # Chinchilla, arXiv 2203.15556: compute-optimal
EPOCHS_AT_MOST = 4  # up to there a repeated token is worth nearly a new one, arXiv 2305.16264
# Power Lines, arXiv 2505.13738: the batch with the lowest loss is 0.0306·D^0.383 sequences of 2,048 tokens.
BATCH_COEFFICIENT, BATCH_EXPONENT, BATCH_UNIT = 0.0306, 0.383, 2048
# The same paper: AdamW's memory B/(rate·decay·D), as a share of the run, is best at 1.084·(D/N)^-0.527.
MEMORY_COEFFICIENT, MEMORY_EXPONENT = 1.084, -0.527
# Best on the demo (docs/optimizer.md); rates of matrices fall with the width (arXiv 2203.03466). With Muon the rest, of
# which the embedding is most, wants a higher one than AdamW alone.
ADAMW_LR, MUON_LR, REST_LR, LR_WIDTH = 8e-3, 16e-3, 24e-3, 128
LEAST_STEPS = 500  # the laws were fitted on long runs; in a short one the optimiser must get to move at all
DECAY_AT_MOST = 0.5  # likewise: beyond, tiny runs would forget within a few steps


@dataclass(frozen=True)
class Training:
    """What the dial sets."""

    tokens: int  # the horizon
    batch_tokens: int  # a step, over all processes
    lr: float  # AdamW's
    matrix_lr: float  # Muon's; 0 without it
    weight_decay: float  # of matrices


def horizon(parameters: int, tokens_an_epoch: int | None = None) -> int:
    """Tokens to train on: 20 a parameter, but at most four epochs of what there is (None: no end of it)."""
    wanted = TOKENS_PER_PARAMETER * parameters
    return wanted if tokens_an_epoch is None else min(wanted, EPOCHS_AT_MOST * tokens_an_epoch)


def turn(
    d_model: int, parameters: int, tokens: int, seq_len: int, batch_tokens: int = 0, optimizer: str = "adamw"
) -> Training:
    """The training for a model of this width and size on `tokens` tokens in rows of seq_len.

    The batch is a power of two rows, at least four; give batch_tokens to have the rest follow yours.
    """
    muon, narrower = optimizer == "muon", LR_WIDTH / d_model
    best = min(BATCH_COEFFICIENT * tokens**BATCH_EXPONENT * BATCH_UNIT, tokens / LEAST_STEPS)
    batch_tokens = batch_tokens or seq_len * 2 ** max(2, round(math.log2(best / seq_len)))
    lr, matrix_lr = (REST_LR if muon else ADAMW_LR) * narrower, MUON_LR * narrower if muon else 0.0
    memory = MEMORY_COEFFICIENT * (tokens / parameters) ** MEMORY_EXPONENT
    decay = min(DECAY_AT_MOST, batch_tokens / (memory * (matrix_lr or lr) * tokens))
    return Training(tokens, batch_tokens, lr, matrix_lr, float(f"{decay:.2g}"))
