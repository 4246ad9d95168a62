"""The scaling recipe: for how long, in what batches and how fast a model of a given size is best trained.

`Config.from_depth` (network/config.py) turns depth into a shape; this turns the shape into a training. Each rule is a
published law with its constants, or a learning rate measured on the demo and scaled by width; every value can be
overridden by name in params.yaml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20  # Chinchilla, arXiv 2203.15556: compute-optimal
MAX_EPOCHS = 4  # up to there a repeated token is worth nearly as much as a new one, arXiv 2305.16264
# Power Lines, arXiv 2505.13738: the batch with the lowest loss is 0.0306·D^0.383 sequences of 2,048 tokens.
BATCH_COEFFICIENT, BATCH_EXPONENT, BATCH_UNIT = 0.0306, 0.383, 2048
# The same paper: AdamW's timescale B/(lr·decay·D), as a share of the run, is best at 1.084·(D/N)^-0.527.
TIMESCALE_COEFFICIENT, TIMESCALE_EXPONENT = 1.084, -0.527
# Best on the demo (docs/optimizer.md); rates of matrices fall with the width (arXiv 2203.03466). With Muon, the other
# weights, of which the embedding is most, want a higher rate than under AdamW alone.
ADAMW_LR, MUON_LR, REST_LR, LR_WIDTH = 8e-3, 16e-3, 24e-3, 128
MIN_STEPS = (
    500  # the laws were fitted on long runs; a short one needs enough steps for the optimiser to get anywhere
)
MAX_DECAY = 0.5  # likewise: beyond it, tiny runs would forget within a few steps


@dataclass(frozen=True)
class ScalingRecipe:
    """What the recipe sets."""

    tokens: int  # the horizon
    batch_tokens: int  # a step, over all processes
    lr: float  # AdamW's
    matrix_lr: float  # Muon's; 0 without it
    weight_decay: float  # of matrices


def horizon(parameters: int, tokens_an_epoch: int | None = None) -> int:
    """Tokens to train on: 20 a parameter, but at most four epochs of the corpus (None: it is unlimited)."""
    wanted = TOKENS_PER_PARAMETER * parameters
    return wanted if tokens_an_epoch is None else min(wanted, MAX_EPOCHS * tokens_an_epoch)


def scaling_recipe(
    d_model: int, parameters: int, tokens: int, seq_len: int, batch_tokens: int = 0, optimizer: str = "adamw"
) -> ScalingRecipe:
    """The training of a model of this width and size on `tokens` tokens in rows of seq_len.

    The batch is a power of two rows, at least four; with batch_tokens given, the other values follow from that.
    """
    muon, narrower = optimizer == "muon", LR_WIDTH / d_model
    best = min(BATCH_COEFFICIENT * tokens**BATCH_EXPONENT * BATCH_UNIT, tokens / MIN_STEPS)
    batch_tokens = batch_tokens or seq_len * 2 ** max(2, round(math.log2(best / seq_len)))
    lr, matrix_lr = (REST_LR if muon else ADAMW_LR) * narrower, MUON_LR * narrower if muon else 0.0
    timescale = TIMESCALE_COEFFICIENT * (tokens / parameters) ** TIMESCALE_EXPONENT
    decay = min(MAX_DECAY, batch_tokens / (timescale * (matrix_lr or lr) * tokens))
    return ScalingRecipe(tokens, batch_tokens, lr, matrix_lr, float(f"{decay:.2g}"))
