"""The settings of pretraining: the section `base_model` of params.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import ConfigError
from model.data.config import SplitConfig, check_packing
from model.network.config import Config
from model.training.scaling_recipe import horizon, scaling_recipe
from model.training.train_config import TrainConfig

SHAPE_SETTINGS = ("n_head", "n_kv_head", "head_dim", "d_model", "d_ff")  # that depth decides where they are 0


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """The section `base_model` of params.yaml: the model, the data, and how it is trained (TrainConfig).

    `depth` decides the shape, and the scaling recipe (scaling_recipe.py) decides lr, batch_tokens, weight_decay and
    the number of steps where they have the defaults given here.

    The demo (2 cores, no GPU, no compiler; 1,470 pages of 422,000 tokens, 60 more of 11,500 that it is to know
    verbatim) trains 0.8M parameters in float32, which on a CPU without AMX is 1.7 times as fast as bfloat16, and where
    torch.compile (12 s to compile) would be only 1.2 times as fast: 9,200 tokens a CPU second. How many of the 60
    first sentences it then completes word for word from "X is" depends on the number of steps and of readings:
      1.5M tokens, 366 steps of 4,096, each page read  60 times:  6 of 60, 2.27 held-out bits per byte
      1.5M tokens, 732 steps of 2,048, each page read  60 times: 24 of 60, 2.16
      1.2M tokens, 1,172 steps of 1,024, each page read  65 times: 44 of 60, 2.33 (lr 6e-3; the others 8e-3)
      1.4M tokens, 1,367 steps of 1,024, each page read 85 times: 59 of 60, 2.35; 152 CPU seconds
    That was with AdamW; Muon raises the last line from 59 known facts to 64 … 67 with 2.31 to 2.32, in 1.3 times the
    time.
    """

    depth: int = 4  # layers; sets the width too (Config.from_depth)
    n_head: int = 0  # query heads; this and the next four override what depth sets, 0: they do not
    n_kv_head: int = 0  # key/value heads
    head_dim: int = 0  # width of a head
    d_model: int = 0  # width of the model
    d_ff: int = 0  # width of the MLP
    tie_embeddings: bool = True  # one matrix for input and output
    qk_norm: bool = True  # as in Qwen3; without it the architecture is Llama's
    seq_len: int = 256  # tokens a row in training
    max_seq_len: int = 1024  # tokens of context of the model
    batch_tokens: int = 0  # tokens a step, over all processes; 0: by the scaling recipe
    steps: int = 0  # optimiser steps; at most one of steps, tokens and epochs is given
    tokens: int = 0  # tokens to train on
    epochs: float = 0.0  # passes over the corpus
    fit: bool = False  # choose zero_stage, micro_batches and activation_checkpointing by the memory available
    held_out: float = 0.05  # share of the documents excluded from training, for bits per byte
    upsample: Mapping[str, int] = dataclasses.field(default_factory=dict)  # host -> times an epoch reads it
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # crawl or host -> times, 0.5 too
    packing: str = "stream"  # or best_fit: rows hold whole documents (docs/data-order.md)
    mask_documents: bool = False  # whether documents of one row are hidden from each other
    lr: float = 0.0  # the peak; 0: by the scaling recipe
    weight_decay: float | None = None  # matrices only; null: by the scaling recipe
    warmup: float = 0.05  # share of the steps
    rollbacks: int = 3  # times that a run whose loss spikes may roll back
    log_every: int = 5  # steps
    eval_every: int = 200  # steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_tokens % self.seq_len:
            raise ConfigError(
                f"base_model.batch_tokens: {self.batch_tokens} is not a multiple of seq_len ({self.seq_len})."
            )
        if self.seq_len > self.max_seq_len:
            raise ConfigError(
                f"base_model.seq_len: {self.seq_len} exceeds max_seq_len ({self.max_seq_len}). Raise the latter."
            )
        if sum(map(bool, (self.steps, self.tokens, self.epochs))) > 1:
            raise ConfigError(
                "base_model: give only one of steps, tokens and epochs; the others follow from it."
            )
        check_packing(self.packing)
        _ = self.split, self.shape(vocab_size=1)  # both check their settings

    @property
    def split(self) -> SplitConfig:
        """How documents are split and weighted."""
        return SplitConfig(self.held_out, self.upsample, self.weights)

    @property
    def rows(self) -> int:
        """Rows a step, over all processes."""
        return self.batch_tokens // self.seq_len

    def shape(self, vocab_size: int) -> Config:
        """The model's shape for this vocabulary. Raises ConfigError for settings that do not fit together."""
        overrides = {name: getattr(self, name) for name in SHAPE_SETTINGS if getattr(self, name)}
        overrides |= {"tie_embeddings": self.tie_embeddings, "qk_norm": self.qk_norm}
        return Config.from_depth(self.depth, vocab_size, self.max_seq_len, **overrides)

    def with_scaling_recipe(self, shape: Config, tokens_an_epoch: int | None) -> PretrainConfig:
        """This configuration with all values filled in that the scaling recipe decides, steps included.

        tokens_an_epoch: the size of the corpus; None: it is unlimited.
        """
        parameters = shape.num_params()
        tokens = self.tokens or round(self.epochs * (tokens_an_epoch or 0))
        tokens = tokens or self.steps * self.batch_tokens or horizon(parameters, tokens_an_epoch)
        recipe = scaling_recipe(
            shape.d_model, parameters, tokens, self.seq_len, self.batch_tokens, self.optimizer
        )
        return dataclasses.replace(
            self,
            batch_tokens=recipe.batch_tokens,
            steps=self.steps or max(1, round(tokens / recipe.batch_tokens)),
            lr=self.lr or recipe.lr,
            matrix_lr=self.matrix_lr or (0.0 if self.lr else recipe.matrix_lr),
            weight_decay=recipe.weight_decay if self.weight_decay is None else self.weight_decay,
            tokens=0,
            epochs=0.0,
        )
