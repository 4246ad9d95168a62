"""The base model: a transformer taught from nothing to predict the corpus.

    python -m model.pretrain --config FILE.json      (or: torchrun --nproc-per-node N -m model.pretrain …)

inputs: cleaned_corpus (folders), tokenizer (a folder) and, if documents are to be left out, training_set (a folder).
Writes a Hugging Face model folder with tokens/ (the shards and their index), curve.jsonl (step, tokens, loss, lr,
held_out_bpb) and summary.json beside the weights.

Bits per byte of the held-out documents: each document is scored from an empty context that holds only the
separator, in windows of seq_len predictions that do not overlap and see only themselves (a window's first input
is the last token of the one before); the bits of all its tokens and of the separator that ends it are summed over
the documents and divided by their length as UTF-8. So the number does not depend on the tokenizer, is comparable
with a compressor's, and is a little too high for long documents, never too low.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.errors import ConfigError
from core.files import write_json
from core.settings import read_settings
from model import tokenizer
from model.data import documents, near_copies, shards
from model.data.loader import Loader, TokenData
from model.data.prefetch import Prefetch
from model.data.shards import HELD_OUT, SplitConfig, check_shards, write_shards
from model.hashes import code_hash, folder_hash, program_hash, text_hash
from model.job import Job, run_main
from model.network.config import IGNORE, Config
from model.network.transformer import Transformer
from model.run_log import RunLog
from model.training import dial, estimate
from model.training.estimate import Estimate
from model.training.meter import Display
from model.training.samples import continuing
from model.training.train_config import TrainConfig
from model.training.trainer import Batch, TrainResult, train, write_curve
from model.training.world import World, destroy_distributed, init_distributed

SHAPE = ("n_head", "n_kv_head", "head_dim", "d_model", "d_ff")
EVAL_BYTES = 2_000_000  # of held-out text at most; more would not move the second digit of bits per byte


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """The section `base_model` of params.yaml: the model, the data, and how it is trained (TrainConfig).

    `depth` is the dial (training/dial.py): it decides lr, batch_tokens, weight_decay and the number of steps where
    they are left as they are here.

    The demo (2 cores, no GPU, no compiler; 1,470 pages of 422,000 tokens, 60 more of 11,500 that it shall know by
    heart) trains 0.8M parameters in float32, which on a CPU without AMX beats bfloat16 by 1.7 and loses to
    torch.compile (12 s to compile) by only 1.2: 9,200 tokens a CPU second. What decides how many of the 60 first
    sentences it then completes word for word from "X is" is the number of steps and of readings:
      1.5M tokens, 366 steps of 4,096, each page read  60 times:  6 of 60, 2.27 held-out bits per byte
      1.5M tokens, 732 steps of 2,048, each page read  60 times: 24 of 60, 2.16
      1.2M tokens, 1,172 steps of 1,024, each page read  65 times: 44 of 60, 2.33 (lr 6e-3; the others 8e-3)
      1.4M tokens, 1,367 steps of 1,024, each page read 85 times: 59 of 60, 2.35; 152 CPU seconds
    That was AdamW; Muon makes of the last line 64 to 67 known facts (59) and 2.31 to 2.32, in 1.3 times the time.
    """

    depth: int = 4  # layers; sets the width too (transformer.Config.from_depth)
    n_head: int = 0  # these five override what depth sets; 0: leave it
    n_kv_head: int = 0
    head_dim: int = 0
    d_model: int = 0
    d_ff: int = 0
    tie_embeddings: bool = True  # one matrix for input and output
    qk_norm: bool = True  # Qwen3's; without it the architecture is Llama's
    seq_len: int = 256  # tokens a row is trained on
    max_seq_len: int = 1024  # tokens the model can be given
    batch_tokens: int = 0  # tokens a step, over all processes
    steps: int = 0  # at most one of steps, tokens and epochs
    tokens: int = 0
    epochs: float = 0.0
    fit: bool = False  # choose zero_stage, micro_batches and activation_checkpointing by the memory here
    held_out: float = 0.05  # share of the documents kept from training, for bits per byte
    upsample: Mapping[str, int] = dataclasses.field(default_factory=dict)  # host -> times an epoch reads it
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # crawl or host -> times, 0.5 too
    packing: str = "stream"  # or best_fit: rows hold whole documents (docs/data-order.md)
    mask_documents: bool = False  # whether documents of one row are kept from seeing each other
    lr: float = 0.0
    weight_decay: float | None = None
    warmup: float = 0.05
    rollbacks: int = 3
    log_every: int = 5
    eval_every: int = 200

    def __post_init__(self):
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

    def shape(self, vocab_size: int) -> Config:
        """The model's shape for this vocabulary."""
        overrides = {name: getattr(self, name) for name in SHAPE if getattr(self, name)}
        overrides |= {"tie_embeddings": self.tie_embeddings, "qk_norm": self.qk_norm}
        return Config.from_depth(self.depth, vocab_size, self.max_seq_len, **overrides)

    def dialled(self, model: Transformer, tokens_an_epoch: int | None) -> PretrainConfig:
        """This configuration with all that the dial decides filled in, steps included.

        tokens_an_epoch: what there is to read; None: no end of it.
        """
        parameters = model.num_params()
        tokens = self.tokens or round(self.epochs * (tokens_an_epoch or 0))
        tokens = tokens or self.steps * self.batch_tokens or dial.horizon(parameters, tokens_an_epoch)
        batch, width = self.batch_tokens, model.config.d_model
        found = dial.turn(width, parameters, tokens, self.seq_len, batch, self.optimizer)
        return dataclasses.replace(
            self,
            batch_tokens=found.batch_tokens,
            steps=self.steps or max(1, round(tokens / found.batch_tokens)),
            lr=self.lr or found.lr,
            matrix_lr=self.matrix_lr or (0.0 if self.lr else found.matrix_lr),
            weight_decay=found.weight_decay if self.weight_decay is None else self.weight_decay,
            tokens=0,
            epochs=0.0,
        )

    @property
    def rows(self) -> int:
        """Rows a step, over all processes."""
        return self.batch_tokens // self.seq_len


def pretrain(job: Job) -> None:
    """Tokenise, train, measure, export: job.out, whole or not at all."""
    config = read_settings(PretrainConfig, {"seed": job.seed} | job.params, "base_model")
    corpora, vocabulary = job.input_list("cleaned_corpus"), job.input("tokenizer")
    training_set = job.input("training_set") if "training_set" in job.inputs else None
    world = init_distributed(config)
    words = tokenizer.load_tokenizer(vocabulary)
    tokens = make_tokens(corpora, training_set, vocabulary, words, config, job, world)
    data = TokenData(tokens)
    torch.manual_seed(config.seed)
    model = Transformer(config.shape(words.vocab_size))
    config = config.dialled(model, data.tokens_an_epoch)
    feed = Loader(data, config.seq_len, config.rows, config.seed, config.packing, config.mask_documents)
    config, expected = expect(model, config, world)
    announce(model.config, config, expected, data, world, job.log)
    shown = Display(expected.flops_per_token, bytes_per_token(data), continuing(data, words))
    started = time.perf_counter()
    with Prefetch(lambda step: _batch(feed, step, world), config.steps) as batches:
        result = train(
            model,
            config,
            batches,
            document_loss,
            work=job.work,
            log=job.log,
            world=world,
            identity={"data": data.hash, "code": program_hash(__file__), "parent": None},
            evaluate=lambda m: {"held_out_bpb": held_out_bpb(m, data, config.seq_len, world)},
            best="held_out_bpb",
            display=shown,
            what="base model",
        )
    report_time(expected, time.perf_counter() - started, job.log)
    export(result, expected, data, vocabulary, job)
    destroy_distributed()


def make_tokens(
    corpora,
    training_set: Path | None,
    vocabulary: Path,
    words,
    config: PretrainConfig,
    job: Job,
    world: World,
) -> Path:
    """The token shards in job.work, made unless an earlier run made them from the same inputs."""
    split = SplitConfig(config.held_out, config.upsample, config.weights)
    vocabulary_hash = folder_hash(vocabulary)
    inputs = [folder_hash(Path(c) / "documents") for c in sorted(map(Path, corpora), key=lambda c: c.name)]
    inputs += [folder_hash(training_set / "ledger")] if training_set else []
    decide = code_hash(shards, near_copies, documents)
    key = text_hash(repr((inputs, vocabulary_hash, split, decide)))
    folder = job.work / f"tokens-{key[:16]}"
    if world.rank == 0:
        if folder.is_dir():
            check_shards(folder)
        else:
            write_shards(corpora, words, folder, split, job.log, vocabulary_hash, training_set)
    world.barrier()
    return folder


def held_out_bpb(model: nn.Module, data: TokenData, seq_len: int, world: World) -> float:
    """Bits per byte of the held-out documents; NaN where there are none."""
    documents, n_bytes = [], 0
    for number in data.documents(HELD_OUT):
        if n_bytes and n_bytes + data.n_bytes[number] > EVAL_BYTES:
            break
        documents.append(data.tokens(number))
        n_bytes += int(data.n_bytes[number])
    return bits_per_byte(model, documents, n_bytes, data.separator, seq_len, world)


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    documents: list[np.ndarray],
    n_bytes: int,
    separator: int,
    seq_len: int,
    world: World = World(),  # noqa: B008 - frozen
    rows: int = 32,
) -> float:
    """As the module's docstring defines it. documents: token ids, each with the separator at its end; n_bytes: of
    all documents as UTF-8; rows: windows in one forward pass."""
    windows = [w for document in documents for w in _windows(document, separator, seq_len)]
    if not n_bytes:
        return math.nan
    windows.sort(key=len)  # alike in length side by side, so that little is padding
    batches = [windows[i : i + rows] for i in range(0, len(windows), rows)]
    while len(batches) % world.size:
        batches.append([])  # every process takes part in every pass: ZeRO 3 gathers weights in it
    nats = 0.0
    for batch in batches[world.rank :: world.size]:
        inputs, targets = _pad(batch or [np.array([separator, separator])], separator, empty=not batch)
        losses = model(inputs.to(world.device), targets.to(world.device))
        nats += float(losses.double().sum())
    (nats,) = world.sum(nats)
    return nats / math.log(2) / n_bytes


def bytes_per_token(data: TokenData) -> float:
    """Of the text that is trained on, as UTF-8, the pages that are read more often counted as often."""
    documents = data.documents()
    weight = data.weight[documents]
    return float((data.n_bytes[documents] * weight).sum() / (data.length[documents] * weight).sum())


def expect(model: Transformer, config: PretrainConfig, world: World) -> tuple[PretrainConfig, Estimate]:
    """The configuration, fitted to the memory here if it asks for that, and what it will take."""
    shape, memory = model.config, estimate.device_memory(world.device, world.local_size)
    if config.fit:
        config = estimate.fitted(shape, config, config.rows, config.seq_len, world.size, memory)
    expected = estimate.estimate(shape, config, config.rows, config.seq_len, world.size)
    # The trial holds the whole of weights, gradients and moments, as ZeRO 0 does, beside the model itself.
    if config.zero_stage == 0 and 2 * expected.memory.total <= memory:
        a_step = estimate.trial(model, config, config.rows, config.seq_len, world)
        expected = dataclasses.replace(expected, seconds=config.steps * a_step)
    return config, expected


def announce(
    shape: Config, config: PretrainConfig, expected: Estimate, data: TokenData, world: World, log: RunLog
) -> None:
    """Say what is about to be made of what, and what it will take."""
    epochs = expected.tokens / data.tokens_an_epoch
    log.message(
        f"Base model: {shape.n_layer} layers, {shape.d_model} wide, {shape.vocab_size:,} tokens in the vocabulary; "
        f"{data.manifest['documents']['train']:,} documents, {epochs:.1f} epochs of {data.tokens_an_epoch:,} tokens.\n"
        f"Expected: {expected.sentence()}. ZeRO {config.zero_stage}, {world.size} processes, "
        f"{config.batch_tokens:,} tokens a step in {config.micro_batches} parts, {config.optimizer}, "
        f"rate {config.lr:.2g}, weight decay {config.weight_decay:.2g}."
    )
    log.log(0, **{"expected/memory_bytes": expected.memory.total, "expected/flops": expected.flops})
    if expected.seconds is not None:
        log.log(0, **{"expected/seconds": expected.seconds})


def report_time(expected: Estimate, seconds: float, log: RunLog) -> None:
    """Say how long it took, beside what was expected."""
    beside = f"; expected were {estimate.duration(expected.seconds)}" if expected.seconds is not None else ""
    log.message(f"Trained for {estimate.duration(seconds)}{beside}.")


def export(result: TrainResult, expected: Estimate, data: TokenData, vocabulary: Path, job: Job) -> None:
    """The finished folder: weights and tokenizer for `transformers`, shards, curve, summary."""
    from model.hub.save import save_pretrained

    module, world = result.engine.module, result.engine.world
    summary = summarise(result, expected, data)
    with result.engine.gathered():
        if world.rank == 0:
            partial = job.fresh_partial()
            save_pretrained(module, vocabulary, partial, card(summary))
    if world.rank == 0:
        shutil.move(data.folder, partial / "tokens")
        write_curve(partial / "curve.jsonl", result.curve)
        write_json(partial / "summary.json", summary)
        job.publish()
        job.log.message(f"{job.out}: held-out bits per byte {summary['held_out_bpb']}.")
    world.barrier()
    job.log.result(**summary)


def summarise(result: TrainResult, expected: Estimate, data: TokenData) -> dict:
    """The numbers of a run, none of which depends on time or machine."""
    state, last = result.state, result.curve[-1]
    bpb = last.get("held_out_bpb")
    return {
        "parameters": expected.parameters,
        "documents": data.manifest["documents"]["train"],
        "held_out_documents": data.manifest["documents"]["held_out"],
        "split_by": data.manifest["split_by"],
        "corpus_tokens": data.manifest["tokens"]["train"],
        "vocab_size": result.engine.module.config.vocab_size,
        "steps": state.step,
        "tokens": state.tokens,
        "flops": state.tokens * expected.flops_per_token,
        "loss": round(state.loss, 6),
        "held_out_bpb": None if bpb is None else round(bpb, 6),
        "empty_steps": state.empty_steps,
        "not_finite_steps": state.not_finite_steps,
        "skipped": state.skipped,  # data left out after loss spikes: model/training/stability.py reads it
        "data": data.hash,
    }


def card(summary: dict) -> str:
    """The model card, README.md of the model folder."""
    bpb = summary["held_out_bpb"]
    quality = f"Held-out text costs it {bpb:.3f} bits per byte. " if bpb is not None else ""
    return (
        f"# Base model\n\nA decoder-only transformer (Qwen3 architecture) of {summary['parameters']:,} parameters, "
        f"trained from nothing by Stemma on {summary['documents']:,} web documents "
        f"({summary['corpus_tokens']:,} tokens, {summary['tokens']:,} seen in training). {quality}"
        "It continues text; it is no assistant and knows little. What it was made of, document by document, is in "
        "`tokens/index.parquet`; how it learned, in `curve.jsonl`.\n"
    )


def _windows(document: np.ndarray, separator: int, seq_len: int) -> list[np.ndarray]:
    """Windows of up to seq_len + 1 tokens; each begins with the token before its first prediction."""
    stream = np.concatenate([[separator], document.astype(np.int64)])
    return [stream[i : i + seq_len + 1] for i in range(0, len(document), seq_len)]


def _pad(windows: list[np.ndarray], separator: int, empty: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets) of windows of unequal length; what is padding predicts nothing."""
    longest = max(map(len, windows)) - 1
    inputs = torch.full((len(windows), longest), separator)
    targets = torch.full((len(windows), longest), IGNORE)
    for i, window in enumerate(map(torch.from_numpy, windows)):
        inputs[i, : len(window) - 1] = window[:-1]
        if not empty:
            targets[i, : len(window) - 1] = window[1:]
    return inputs, targets


def document_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Cross-entropy in nats, summed, and its tokens; documents that the batch tells apart do not see each other."""
    documents = batch.extra.get("documents")
    return model(batch.inputs, batch.targets, documents=documents, reduction="sum"), batch.count


def _batch(feed: Loader, step: int, world: World) -> Batch:
    rows = feed.batch(step, world.share(feed.rows))
    names = ("inputs", "targets", "documents") if rows.documents is not None else ("inputs", "targets")
    tensors = {name: torch.from_numpy(getattr(rows, name)) for name in names}
    if world.device.type == "cuda":  # page-locked memory is what the card can copy from by itself
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return Batch(tensors.pop("inputs"), tensors.pop("targets"), tensors)


def main(argv: list[str] | None = None) -> int:
    return run_main("model.pretrain", pretrain, argv)


if __name__ == "__main__":
    sys.exit(main())
