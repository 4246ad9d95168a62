"""Pretraining: the base model learns from scratch to predict the corpus.

    python -m model.pretrain --config FILE.json      (or: torchrun --nproc-per-node N -m model.pretrain …)

inputs: cleaned_corpus (folders), tokenizer (a folder) and, if documents are to be left out, training_set (a folder).
Writes a Hugging Face model folder with tokens/ (the shards and their index), curve.jsonl (step, tokens, loss, lr,
held_out_bpb) and summary.json next to the weights.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from core.code import code_hash
from core.hashing import folder_sha256, text_sha256
from core.settings import read_settings
from model.bits_per_byte import held_out_bpb
from model.data.batch import Batch
from model.data.loader import Loader, TokenData
from model.data.prefetch import Prefetch
from model.data.shards import check_shards, write_shards
from model.job import Job, run_main
from model.network.config import Config
from model.network.transformer import Transformer
from model.pretrain_export import export
from model.run_log import RunLog
from model.tokenizer import Tokenizer, load_tokenizer
from model.training.estimate import Estimate, duration, estimate, fit_to_memory
from model.training.meter import Display
from model.training.pretrain_config import PretrainConfig
from model.training.samples import continuations
from model.training.trainer import train
from model.training.trial import measure_step
from model.training.world import World, destroy_distributed, init_distributed


def pretrain(job: Job) -> None:
    """Tokenise, train, evaluate, export: job.out, complete or not at all."""
    config = read_settings(PretrainConfig, {"seed": job.seed} | job.params, "base_model")
    corpora, vocabulary = job.input_list("cleaned_corpus"), job.input("tokenizer")
    training_set = job.input("training_set") if "training_set" in job.inputs else None
    world = init_distributed(config)
    tokenizer = load_tokenizer(vocabulary)
    tokens = make_tokens(corpora, training_set, vocabulary, tokenizer, config, job, world)
    data = TokenData(tokens)
    torch.manual_seed(config.seed)
    model = Transformer(config.shape(tokenizer.vocab_size))
    config = config.with_scaling_recipe(model.config, data.tokens_an_epoch)
    loader = Loader(data, config.seq_len, config.rows, config.seed, config.packing, config.mask_documents)
    config, expected = estimate_run(model, config, world)
    log_plan(model.config, config, expected, data, world, job.log)
    display = Display(expected.flops_per_token, bytes_per_token(data), continuations(data, tokenizer))
    started = time.perf_counter()
    with Prefetch(lambda step: make_batch(loader, step, world), config.steps) as batches:
        result = train(
            model,
            config,
            batches,
            document_loss,
            work=job.work,
            log=job.log,
            world=world,
            identity={"data": data.hash, "code": code_hash("model.pretrain"), "parent": None},
            evaluate=lambda m: {"held_out_bpb": held_out_bpb(m, data, config.seq_len, world)},
            best="held_out_bpb",
            display=display,
            what="base model",
        )
    log_duration(expected, time.perf_counter() - started, job.log)
    export(model, result, expected, data, vocabulary, job)
    destroy_distributed()


def make_tokens(
    corpora: Sequence[Path],
    training_set: Path | None,
    vocabulary: Path,
    tokenizer: Tokenizer,
    config: PretrainConfig,
    job: Job,
    world: World,
) -> Path:
    """The folder of token shards in job.work, written unless an earlier run wrote it from the same inputs."""
    vocabulary_hash = folder_sha256(vocabulary)
    inputs = [folder_sha256(corpus / "documents") for corpus in sorted(corpora, key=lambda c: c.name)]
    inputs += [folder_sha256(training_set / "ledger")] if training_set else []
    key = text_sha256(repr((inputs, vocabulary_hash, config.split, code_hash("model.data.shards"))))
    folder = job.work / f"tokens-{key[:16]}"
    if world.rank == 0:
        if folder.is_dir():
            check_shards(folder)
        else:
            write_shards(corpora, tokenizer, folder, config.split, job.log, vocabulary_hash, training_set)
    world.barrier()
    return folder


def estimate_run(model: Transformer, config: PretrainConfig, world: World) -> tuple[PretrainConfig, Estimate]:
    """The configuration, fitted to the memory of this machine if it asks for that, and what it will take."""
    shape, memory = model.config, world.device_memory()
    if config.fit:
        config = fit_to_memory(shape, config, config.rows, config.seq_len, world.size, memory)
    expected = estimate(shape, config, config.rows, config.seq_len, world.size)
    # The trial holds all weights, gradients and moments, as ZeRO 0 does, in addition to the model itself.
    if config.zero_stage == 0 and 2 * expected.memory.total <= memory:
        step_seconds = measure_step(model, config, config.rows, config.seq_len, world)
        expected = dataclasses.replace(expected, seconds=config.steps * step_seconds)
    return config, expected


def log_plan(
    shape: Config, config: PretrainConfig, expected: Estimate, data: TokenData, world: World, log: RunLog
) -> None:
    """Log what is about to be trained on what data, and what it will take."""
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


def log_duration(expected: Estimate, seconds: float, log: RunLog) -> None:
    """Log how long training took, and what was expected."""
    estimated = f"; expected were {duration(expected.seconds)}" if expected.seconds is not None else ""
    log.message(f"Trained for {duration(seconds)}{estimated}.")


def bytes_per_token(data: TokenData) -> float:
    """UTF-8 bytes a token of the training text; documents that are read more often count as often."""
    documents = data.documents()
    weight = data.weight[documents]
    return float((data.n_bytes[documents] * weight).sum() / (data.length[documents] * weight).sum())


def document_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Cross-entropy in nats, summed, and its tokens. Documents that the batch numbers do not see each other."""
    documents = batch.extra.get("documents")
    return model(batch.inputs, batch.targets, documents=documents, reduction="sum"), batch.count


def make_batch(loader: Loader, step: int, world: World) -> Batch:
    """This rank's rows of a step as tensors, in page-locked memory where a GPU will copy them."""
    rows = loader.batch(step, world.share(loader.rows))
    names = ("inputs", "targets", "documents") if rows.documents is not None else ("inputs", "targets")
    tensors = {name: torch.from_numpy(getattr(rows, name)) for name in names}
    if world.device.type == "cuda":  # a copy from page-locked memory overlaps with the computation
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return Batch(tensors.pop("inputs"), tensors.pop("targets"), tensors)


def main(argv: list[str] | None = None) -> int:
    """The command `python -m model.pretrain`; returns its exit code."""
    return run_main("model.pretrain", pretrain, argv)


if __name__ == "__main__":
    sys.exit(main())
