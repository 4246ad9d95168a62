"""One training loop for base model, SFT and reinforcement learning.

    result = train(model, config, make_batch, loss, work=…, log=…, identity={"data": …})

Notable:
- make_batch(n) gives this rank's rows of one optimiser step. It is a pure function of the seed, the number n and the
  current weights (reinforcement learning samples with them), so a resumed run sees what an uninterrupted one sees;
  torch's generator is seeded from (seed, n, rank) before each call. n is the step's number, unless a rollback has
  skipped data (stability.py);
- the loss is summed over supervised tokens and divided by their count over all ranks and micro-batches. No
  micro-batch is divided by its own count, so one without supervised tokens cannot turn into NaN; a step without any
  is skipped and counted;
- a step whose gradient norm is not finite changes no weight, is counted and logged; after ten in a row, or when the
  loss has jumped and stays high, the run rolls back to a checkpoint and skips the data since then, or stops;
- a run killed at any moment resumes from its last checkpoint, bit-identical on CPU; SIGTERM and Ctrl-C save one.
  Checkpoints are written while training continues (checkpoint.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from core.errors import ConfigError
from core.files import append_line
from model.data.batch import Batch, Loss, token_loss
from model.run_log import RunLog
from model.training.checkpoint import Checkpoints
from model.training.engine import Engine
from model.training.meter import BAR_FORMAT, Display, Meter, UpdateRatios, peak_flops, status_line
from model.training.open_engine import open_engine
from model.training.run_state import TrainState
from model.training.stability import Diverged, data_step, describe_divergence, update_losses
from model.training.stop import Stopped, stop_signals
from model.training.train_config import TrainConfig, identity_settings, lr_at
from model.training.world import World, init_distributed

if TYPE_CHECKING:
    from tqdm import tqdm

Curve = list[dict[str, float]]


@dataclass
class TrainResult:
    """A finished run: its state, its curve (deterministic numbers only), its engine, which holds the weights."""

    state: TrainState
    curve: Curve
    engine: Engine


def train(
    model: nn.Module,
    config: TrainConfig,
    make_batch: Callable[[int], Batch],
    loss: Loss = token_loss,
    *,
    work: Path,
    log: RunLog,
    identity: dict[str, Any] | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    best: str | None = None,
    display: Display = Display(),  # noqa: B008 - frozen
    world: World | None = None,
    what: str = "training",
) -> TrainResult:
    """Train `model` in place for config.steps steps, resuming from a checkpoint in `work` if there is one.

    make_batch(n): this rank's rows. loss(model, batch): (sum over supervised tokens, their count); the count must be
    batch.count, or the loss has lost the mask. identity: what the run depends on in addition to config (parent
    model, data, code), as JSON. evaluate(model): metrics to log every eval_every steps and at the end, computed on
    every rank, without gradients or autocast; best: the one of them whose lowest value marks the best checkpoint.
    display: what to show in addition to the loss. world: what init_distributed returned, if the caller has called it.

    Raises Stopped after SIGTERM or SIGINT (a checkpoint is saved), CheckpointError for a checkpoint of another run or
    a full disk, Diverged for a run that diverged.
    """
    if config.steps < 1:
        raise ConfigError(f"steps: {config.steps}; training takes at least one.")
    world = world or init_distributed(config)
    engine = open_engine(model, config, world)
    ours, computed = identity_settings(config)
    identity = (identity or {}) | {"config": ours, "torch": torch.__version__}
    checkpoints = Checkpoints(work, identity, world, log, config.keep_checkpoints, computed)
    loop = _Loop(engine, config, make_batch, loss, evaluate, best, display, log, checkpoints, work)
    loop.resume()
    with (
        stop_signals() as stop_requested,
        log.progress(config.steps, what, done=loop.state.step, bar_format=BAR_FORMAT) as bar,
    ):
        try:
            while loop.state.step < config.steps:
                loop.train_step(bar, stop_requested)
        finally:
            checkpoints.close()
    return TrainResult(loop.state, loop.curve, engine)


def write_curve(path: Path, curve: Curve) -> None:
    """curve.jsonl: one JSON object a logged step, numbers that depend on nothing but the inputs."""
    path.write_text(_lines(curve), "utf-8")


@dataclass
class _Loop:
    engine: Engine
    config: TrainConfig
    make_batch: Callable[[int], Batch]
    loss: Loss
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    best: str | None
    display: Display
    log: RunLog
    checkpoints: Checkpoints
    work: Path
    state: TrainState = field(default_factory=TrainState)
    curve: Curve = field(default_factory=list)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one; start the clock."""
        if found := self.checkpoints.latest():
            self._load(*found)
            self.log.message(f"Resuming after step {self.state.step}, from {found[0]}.")
        peak = 0.0
        if self.display.flops_per_token and self.log.enabled:
            peak, source = peak_flops(self.engine.world.device, self.config.half)
            self.log.message(source)
        self.meter = Meter(self.engine.world, self.display, self.make_batch, peak)
        self.ratios = UpdateRatios(self.engine.module, self.engine.world)

    def train_step(self, bar: tqdm, stop_requested: threading.Event) -> None:
        """Batch, forward and backward in micro-batches, update, and then what is due after this step."""
        state, world, config = self.state, self.engine.world, self.config
        number = data_step(state.step, state.skipped)
        _seed_generators(world.device, step_seed(config.seed, number, world.rank))
        with self._eager():
            batch = self.make_batch(number)
        mine = (
            batch.count,
            batch.inputs.numel(),
            float(stop_requested.is_set()),
            float(self.checkpoints.failed),
        )
        count, read, stop, failed = world.sum(*mine)
        if failed:
            self.checkpoints.raise_failure()
        numbers: dict[str, float] = {"lr": lr_at(config, state.step)}
        if count:
            numbers |= self._update(batch, count, numbers["lr"])
        state.step += 1
        state.tokens += int(count)
        state.empty_steps += not count
        self.meter.count(read)
        if (problem := self._detect_divergence(count)) and self._roll_back(problem, bar):
            return
        last = state.step == config.steps
        numbers |= {"loss": state.loss} | state.failures() | batch.metrics
        if self.evaluate and (last or (config.eval_every and state.step % config.eval_every == 0)):
            numbers |= self._evaluation(self.evaluate)
        self._report(numbers, bar, last)
        self._save(numbers, last, bool(stop))

    def _update(self, batch: Batch, count: float, lr: float) -> dict[str, float]:
        """Forward, backward and the optimiser step; logs update ratios if due. Returns the gradient's norm.

        A norm that is not finite means that nothing was changed.
        """
        engine, state = self.engine, self.state
        total: float | torch.Tensor = 0.0
        for part in batch.split(self.config.micro_batches):
            part = part.to(engine.world.device)
            with engine.autocast():
                loss_sum, counted = self.loss(engine.model, part)
            if int(counted) != part.count:
                raise ValueError(
                    f"The loss counts {int(counted)} supervised tokens and the batch marks {part.count}. "
                    "The loss must use the batch's targets: somewhere it has lost the mask."
                )
            engine.backward(loss_sum, count)
            total += loss_sum.detach().double()  # read only after the step: one synchronisation with a GPU
        due = self.config.stats_every and (state.step + 1) % self.config.stats_every == 0
        before = self.ratios.copy() if due else None
        norm = engine.step(lr)
        if before is not None:
            self.log.log(state.step + 1, **self.ratios.since(before))
        (total,) = engine.world.sum(float(total))
        state.loss = total / count
        state.not_finite_in_a_row = 0 if math.isfinite(norm) else state.not_finite_in_a_row + 1
        if not math.isfinite(norm):
            state.not_finite_steps += 1
            self.log.message(
                f"Step {state.step + 1}: the gradient is not finite (loss {state.loss:.4g}); step skipped."
            )
        return {"grad_norm": norm}

    def _detect_divergence(self, count: float) -> str | None:
        """What is wrong, if the step just done ends a loss spike or a series of gradients that are not finite."""
        state = self.state
        if self.config.rollbacks and count:
            state.recent, state.high_in_a_row = update_losses(state.loss, state.recent, state.high_in_a_row)
        return describe_divergence(state.high_in_a_row, state.not_finite_in_a_row)

    def _roll_back(self, problem: str, bar: tqdm) -> bool:
        """Return to the newest periodic checkpoint; from there on the data of the steps since then are skipped.

        False where there is none and the loss is finite: then the run continues, and the rule starts afresh.
        Raises Diverged where rollbacks have not helped.
        """
        state, config, done = self.state, self.config, len(self.state.skipped)
        problem = f"Step {state.step}: {problem} (now {state.loss:.4g})"
        found = self.checkpoints.roll_back() if done < config.rollbacks else None
        if found is None and (done == config.rollbacks or state.not_finite_in_a_row):
            after = f", {done} rollbacks have not helped" if done else ""
            raise Diverged(
                f"{problem}{after}: the run has diverged. Lower lr (now {config.lr:g}) or raise warmup (now "
                f"{config.warmup:g})."
            )
        if found is None:
            self.log.message(
                f"{problem}; there is no checkpoint before it to go back to, so the run continues."
            )
            state.recent, state.high_in_a_row = [], 0
            return False
        self._load(*found)
        at = self.state.step
        earlier = [skip for skip in state.skipped if skip[0] <= at]  # the checkpoint may precede some of them
        n = data_step(state.step, state.skipped) - data_step(at, earlier)
        self.state.skipped = [*earlier, [at, n]]
        self.log.message(
            f"{problem}: back to step {at}, without the data of the {state.step - at} steps since then (rollback "
            f"{len(self.state.skipped)} of at most {config.rollbacks})."
        )
        bar.update(at - bar.n)
        return True

    def _load(self, folder: Path, saved: dict[str, Any]) -> None:
        self.engine.load(folder)
        self.state = TrainState(**saved)
        self.curve = [json.loads(row) for row in (folder / "curve.jsonl").read_text("utf-8").splitlines()]

    def _evaluation(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        with torch.no_grad(), self._eager(), self.meter.paused():
            numbers = evaluate(self.engine.model)
            samples = self.display.sample(self.engine.module) if self.display.sample else []
        if samples and self.log.enabled:
            append_line(self.work / "samples.jsonl", {"step": self.state.step, "samples": samples})
        return numbers

    def _eager(self) -> AbstractContextManager[None]:
        """Outside the loss nothing is compiled: shapes vary there, and each would be compiled again."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def _report(self, numbers: dict[str, float], bar: tqdm, last: bool) -> None:
        state = self.state
        bar.update()
        if state.step % self.config.log_every and not last:
            return
        # JSON has no NaN; a number that is not finite is left out of the curve and counted instead.
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self.curve.append({"step": state.step, "tokens": state.tokens} | finite)
        shown = finite | self.meter.read(state.loss, self.config.steps - state.step)
        self.log.log(state.step, **shown, tokens=state.tokens)
        self.log.log_system(state.step)
        bar.set_postfix_str(status_line(state.loss, shown), refresh=False)

    def _save(self, numbers: dict[str, float], last: bool, stop: bool) -> None:
        """Start the checkpoint that is due, if one is; wait for it where the run ends. Raises Stopped if requested."""
        state = self.state
        stable = not (state.high_in_a_row or state.not_finite_in_a_row)
        periodic = stable and state.step % self.config.checkpoint_every == 0
        score = numbers.get(self.best) if self.best and self.config.keep_best else None
        better = score is not None and score < (math.inf if state.best is None else state.best)
        if better:
            state.best = score
        if last or stop or periodic or better:
            self.checkpoints.save(
                state.step,
                dataclasses.asdict(state),
                self.engine.snapshot,
                periodic=periodic,
                score=score,
                texts={"curve.jsonl": _lines(self.curve)},
            )
        if last or stop:
            self.checkpoints.settle()
        if stop and not last:
            raise Stopped(
                f"Stopped after step {state.step} as asked; a run with the same settings continues from there."
            )


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for everything random in one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "big")


def _seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of this device. torch.manual_seed would also record a stack trace for every
    other kind of GPU, half a millisecond a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _lines(curve: Curve) -> str:
    return "".join(json.dumps(row) + "\n" for row in curve)
