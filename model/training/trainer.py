"""One training loop for base model, SFT, reward model and reinforcement learning.

    result = train(model, config, make_batch, loss, work=…, log=…, identity={"data": …})

Notable:
- make_batch(n) gives this rank's rows of one optimiser step. It is a pure function of the seed, the number and the
  weights as they are (reinforcement learning samples with them), so a resumed run sees what an undisturbed one
  sees; torch's generator is seeded anew from (seed, number, rank) before each call. The number is the step's,
  unless a rollback has skipped data (model/training/stability.py);
- the loss is summed over supervised tokens and divided by their count over all ranks and micro-batches. No
  micro-batch is ever divided by its own count, so none without supervised tokens can turn into NaN; a step
  without any is skipped and counted;
- a step whose gradient norm is not finite changes no weight, is counted and said; after ten in a row, or where the
  loss has jumped and stays up, the run goes back to a checkpoint and reads on behind those data, or stops;
- killed at any moment it goes on from its last checkpoint, to the same bits on CPU; SIGTERM and Ctrl-C save one.
  Checkpoints are written while training goes on (model/training/checkpoint.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.data.batch import Batch, Loss, token_loss
from model.run_log import ConfigError, Refusal, RunLog, append_line
from model.training.checkpoint import Checkpoints
from model.training.engine import Engine, open_engine
from model.training.meter import BAR, Display, Meter, UpdateRatios, line, peak_flops
from model.training.stability import data_step, judge, trouble
from model.training.train_config import TrainConfig, lr_at
from model.training.world import World, join

# Settings that change no number of the result, and those that change its last digits only.
NOT_IDENTITY = {"log_every", "stats_every", "checkpoint_every", "keep_checkpoints", "keep_best"}
LAST_DIGITS = {"micro_batches", "engine", "zero_stage", "offload", "activation_checkpointing", "threads"}


@dataclass
class TrainState:
    """Where a run stands; with weights and optimiser it is all that a resume needs."""

    step: int = 0  # steps done
    tokens: int = 0  # supervised tokens trained on, over all ranks
    empty_steps: int = 0  # skipped for want of a supervised token
    not_finite_steps: int = 0  # skipped because the gradient was not finite
    not_finite_in_a_row: int = 0
    loss: float = math.nan  # nats a token, of the last step that had any
    # The last losses, for the rule of model/training/stability.py.
    recent: list[float] = field(default_factory=list)
    high_in_a_row: int = 0
    skipped: list[list[int]] = field(default_factory=list)  # [step, n], one a rollback: data left out
    best: float | None = None  # the lowest number that the evaluation to be judged by has given


@dataclass
class TrainResult:
    """A finished run: its state, its curve (deterministic numbers only), its engine to take the weights from."""

    state: TrainState
    curve: list[dict[str, float]]
    engine: Engine


class Stopped(RuntimeError):
    """The run was asked to stop; its state is in a checkpoint."""


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
    """Train `model` in place for config.steps steps, going on from a checkpoint in `work` if there is one.

    make_batch(n): this rank's rows. loss(model, batch): (sum over supervised tokens, their count); the count must be
    batch.count, or the loss has lost the mask. identity: what the run depends on besides config (parent model, data,
    code), as JSON. evaluate(model): numbers to log every eval_every steps and at the end, on every rank, without
    gradients or autocast; best: the one among them whose lowest value marks the best checkpoint. display: what to
    show. world: what world.join gave, if the caller joined already.

    Raises Stopped after SIGTERM or SIGINT (a checkpoint is saved), Refusal for a checkpoint of another run, a
    disk that is full, or a run that diverged.
    """
    if config.steps < 1:
        raise ConfigError(f"steps: {config.steps}; a training takes at least one.")
    world = world or join(config)
    engine = open_engine(model, config, world)
    ours, computed = _settings(config)
    identity = (identity or {}) | {"config": ours, "torch": torch.__version__}
    checkpoints = Checkpoints(work, identity, world, log, config.keep_checkpoints, computed)
    loop = _Loop(engine, config, make_batch, loss, evaluate, best, display, log, checkpoints, work)
    loop.resume()
    with _stop_signals() as asked, log.progress(config.steps, what, done=loop.state.step, form=BAR) as bar:
        try:
            while loop.state.step < config.steps:
                loop.one_step(bar, asked)
        finally:
            checkpoints.close()
    return TrainResult(loop.state, loop.curve, engine)


def write_curve(path: Path, curve: list[dict[str, float]]) -> None:
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
    curve: list[dict[str, float]] = field(default_factory=list)

    def resume(self) -> None:
        """Go on where the newest checkpoint stands, if there is one; start the clock."""
        if found := self.checkpoints.latest():
            self._load(*found)
            self.log.message(f"Going on after step {self.state.step}, from {found[0]}.")
        peak = 0.0
        if self.display.flops_per_token and self.log.speaks:
            peak, source = peak_flops(self.engine.world.device, self.config.half)
            self.log.message(source)
        self.meter = Meter(self.engine.world, self.display, self.make_batch, peak)
        self.ratios = UpdateRatios(self.engine.module, self.engine.world)

    def one_step(self, bar, asked: threading.Event) -> None:
        """Batch, forward and backward in parts, update, and then whatever is due after this step."""
        state, world, config = self.state, self.engine.world, self.config
        number = data_step(state.step, state.skipped)
        _seed(world.device, step_seed(config.seed, number, world.rank))
        with self._eager():
            batch = self.make_batch(number)
        mine = batch.count, batch.inputs.numel(), float(asked.is_set()), float(self.checkpoints.failed)
        count, read, stop, failed = world.sum(*mine)
        if failed:
            self.checkpoints.raise_failure()
        numbers = {"lr": lr_at(config, state.step)}
        if count:
            numbers |= self._update(batch, count, numbers["lr"])
        state.step += 1
        state.tokens += int(count)
        state.empty_steps += not count
        self.meter.count(read)
        if (wrong := self._has_left_the_road(count)) and self._go_back(wrong, bar):
            return
        last = state.step == config.steps
        numbers |= {"loss": state.loss} | self._counts() | batch.metrics
        if self.evaluate and (last or (config.eval_every and state.step % config.eval_every == 0)):
            numbers |= self._evaluation()
        self._report(numbers, bar, last)
        self._save(numbers, last, bool(stop))

    def _update(self, batch: Batch, count: float, lr: float) -> dict[str, float]:
        """Forward, backward and the optimiser; grad_norm (not finite: nothing was changed), update ratios if due."""
        engine, state, total = self.engine, self.state, 0.0
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
            total += loss_sum.detach().double()  # a number only after the step: a GPU is waited for once
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

    def _has_left_the_road(self, count: float) -> str | None:
        """What is wrong, where the step just done ends a spike or a row of gradients that are not finite."""
        state = self.state
        if self.config.rollbacks and count:
            state.recent, state.high_in_a_row = judge(state.loss, state.recent, state.high_in_a_row)
        return trouble(state.high_in_a_row, state.not_finite_in_a_row)

    def _go_back(self, wrong: str, bar) -> bool:
        """Back to the newest periodic checkpoint; from there on the data of the steps since then are skipped.

        False where there is none and the loss is finite: then the run goes on, and judges anew.
        """
        state, config, done = self.state, self.config, len(self.state.skipped)
        wrong = f"Step {state.step}: {wrong} (now {state.loss:.4g})"
        found = self.checkpoints.go_back() if done < config.rollbacks else None
        if found is None and (done == config.rollbacks or state.not_finite_in_a_row):
            after = f", {done} rollbacks have not helped" if done else ""
            raise Refusal(
                f"{wrong}{after}: the run has diverged. Lower lr (now {config.lr:g}) or raise warmup (now "
                f"{config.warmup:g})."
            )
        if found is None:
            self.log.message(f"{wrong}; there is no checkpoint before it to go back to, so the run goes on.")
            state.recent, state.high_in_a_row = [], 0
            return False
        self._load(*found)
        at = self.state.step
        earlier = [skip for skip in state.skipped if skip[0] <= at]  # the checkpoint may be from before them
        n = data_step(state.step, state.skipped) - data_step(at, earlier)
        self.state.skipped = [*earlier, [at, n]]
        self.log.message(
            f"{wrong}: back to step {at}, without the data of the {state.step - at} steps since then (rollback "
            f"{len(self.state.skipped)} of at most {config.rollbacks})."
        )
        bar.update(at - bar.n)
        return True

    def _load(self, folder: Path, saved: dict[str, Any]) -> None:
        self.engine.load(folder)
        self.state = TrainState(**saved)
        self.curve = [json.loads(row) for row in (folder / "curve.jsonl").read_text("utf-8").splitlines()]

    def _counts(self) -> dict[str, float]:
        """What went wrong so far, by name; nothing where all is well."""
        state = self.state
        counts = {name: getattr(state, name) for name in ("empty_steps", "not_finite_steps")}
        counts |= {"rollbacks": len(state.skipped), "skipped_steps": sum(n for _, n in state.skipped)}
        return {name: count for name, count in counts.items() if count}

    def _evaluation(self) -> dict[str, float]:
        with torch.no_grad(), self._eager(), self.meter.aside():
            numbers = self.evaluate(self.engine.model)
            samples = self.display.sample(self.engine.module) if self.display.sample else []
        if samples and self.log.speaks:
            append_line(self.work / "samples.jsonl", {"step": self.state.step, "samples": samples})
        return numbers

    def _eager(self) -> AbstractContextManager:
        """Outside the loss nothing is compiled: shapes vary there, and each would be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def _report(self, numbers: dict[str, float], bar, last: bool) -> None:
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
        bar.set_postfix_str(line(state.loss, shown), refresh=False)

    def _save(self, numbers: dict[str, float], last: bool, stop: bool) -> None:
        """Begin the checkpoint that is due, if one is; wait for it where the run ends."""
        state = self.state
        straight = not (state.high_in_a_row or state.not_finite_in_a_row)
        periodic = straight and state.step % self.config.checkpoint_every == 0
        score = numbers.get(self.best) if self.best and self.config.keep_best else None
        better = score is not None and score < (math.inf if state.best is None else state.best)
        if better:
            state.best = score
        if last or stop or periodic or better:
            texts = {"curve.jsonl": _lines(self.curve)}
            options = {"periodic": periodic, "score": score, "texts": texts}
            self.checkpoints.save(state.step, dataclasses.asdict(state), self.engine.snapshot, **options)
        if last or stop:
            self.checkpoints.settle()
        if stop and not last:
            raise Stopped(
                f"Stopped after step {state.step} as asked; a run with the same settings goes on from there."
            )


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for everything random in one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "big")


def _seed(device: torch.device, seed: int) -> None:
    """torch.manual_seed for this device and the CPU alone: the whole one notes a stack trace for each kind of GPU that
    is not in use, half a millisecond a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _settings(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a run's numbers depend on, and those that only their last digits depend on."""
    every = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IDENTITY}
    if config.rollbacks:  # go back to periodic checkpoints
        every["checkpoint_every"] = config.checkpoint_every
    numbers = {name: value for name, value in every.items() if name not in LAST_DIGITS}
    return numbers, {name: every[name] for name in sorted(LAST_DIGITS)}


def _lines(curve: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in curve)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; the second signal acts as it would without us."""
    asked, before = threading.Event(), {}

    def ask(number, _frame) -> None:
        asked.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
