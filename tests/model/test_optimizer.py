"""Muon: what it does to a matrix, which weights it updates, and that it agrees with a plain implementation."""

import pytest
import torch
from train_tiny import batch_at, tiny_model

from core.errors import ConfigError
from model.data.batch import token_loss
from model.training import optimizer, train_config
from model.training.open_engine import open_engine
from model.training.optimizer import normalise_neurons, orthogonalize, param_groups
from model.training.train_config import TrainConfig
from model.training.world import World


@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64)])
def test_orthogonalising_keeps_singular_vectors_and_equalises_singular_values(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator) * torch.tensor([1e-6, 1.0, 1e3])[:, None, None]
    done = orthogonalize(matrices)
    for matrix, result in zip(matrices, done, strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        core = u.mT @ result @ vh.mT  # diagonal where the singular vectors are kept
        assert (core - core.diag().diag()).abs().max() < 1e-3
        # The smallest ones need more than five steps.
        assert core.diag()[:-4].min() > 0.6 and core.diag().max() < 1.25


def test_a_zero_matrix_stays_zero():
    assert not orthogonalize(torch.zeros(2, 4, 8)).any()
    assert not normalise_neurons(torch.zeros(2, 4, 8), [torch.zeros(8), torch.zeros(8)]).any()


def test_neurons_with_small_gradients_get_updates_as_large_as_the_others():
    generator = torch.Generator().manual_seed(0)
    share = torch.logspace(-2, 0, 16)
    squares = [torch.zeros(16)]
    for _ in range(50):
        tall = normalise_neurons(share[:, None] * torch.randn(1, 16, 8, generator=generator), squares)
    assert squares[0].sqrt() == pytest.approx(share, rel=0.5)
    assert tall.square().mean().sqrt() == pytest.approx(1)
    assert tall[0, 0].square().mean() > 0.2
    wide = normalise_neurons(tall.mT, [squares[0].clone()])
    assert wide.shape == (1, 8, 16)


def test_the_norm_of_a_large_embeddings_gradient_is_exact():
    embedding = torch.nn.Embedding(40_000, 512)
    one = optimizer.Optimizer(param_groups(embedding, TrainConfig()), TrainConfig(), World())
    gradient = torch.randn(40_000, 512, generator=torch.Generator().manual_seed(0))
    embedding.weight.grad = gradient.clone()
    one.step()
    assert one.grad_norm == pytest.approx(float(gradient.double().norm()), rel=1e-6)


def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_the_rest():
    model = tiny_model()
    groups = param_groups(model, TrainConfig(optimizer="muon", lr=1e-3, matrix_lr=2e-3))
    muon, rest, vectors = groups
    names = {weight: name for name, weight in model.named_parameters()}
    assert {names[p].split(".")[-2] for p in muon["params"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert [names[p] for p in rest["params"]] == ["embed_tokens.weight"]
    assert sum(len(g["params"]) for g in groups) == len(names) and all(p.ndim == 1 for p in vectors["params"])
    assert [g["muon"] for g in groups] == [True, False, False] and vectors["weight_decay"] == 0
    assert [g["relative_lr"] for g in groups] == [2, 1, 1]


def test_muon_agrees_with_a_plain_implementation(monkeypatch):
    """One matrix at a time, compared with the batched optimiser, over three steps; in batches of one and of all."""
    for at_once in (2**25, 1):
        monkeypatch.setattr(train_config, "MUON_NUMBERS_AT_ONCE", at_once)
        config = TrainConfig(optimizer="muon", lr=1e-2, matrix_lr=2e-2, clip=0.5, engine="torch")
        opened = open_engine(tiny_model(), config, World())
        plain = tiny_model()
        muon = {p for p in plain.layers.parameters() if p.ndim == 2}
        groups = [
            {"params": [p for p in plain.parameters() if p not in muon and p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
        momenta = {p: torch.zeros_like(p) for p in muon}
        squares = {p: torch.zeros(max(p.shape)) for p in muon}
        for step in range(3):
            batch = batch_at(step)
            for model, backward in (
                (opened.model, opened.backward),
                (plain, lambda s, n: (s / n).backward()),
            ):
                backward(token_loss(model, batch)[0], batch.count)
            norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            assert opened.step(1e-2) == pytest.approx(float(norm), rel=1e-5)
            for p in muon:
                _plain_muon(p, p.grad, momenta[p], squares[p], lr=2e-2, beta=0.85 + 0.1 * step / 300)
            adamw.step()
            adamw.zero_grad()
            plain.zero_grad()
        for (name, mine), theirs in zip(opened.module.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_momentum_grows_for_300_steps_to_its_setting_and_never_starts_above_it():
    found = [optimizer.momentum_at(0.95, step) for step in (0, 150, 300, 10_000)]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert optimizer.momentum_at(0.8, 0) == optimizer.momentum_at(0.8, 500) == 0.8


@torch.no_grad()
def _plain_muon(p, gradient, momentum, squares, lr, beta, decay=0.1):
    momentum.mul_(beta).add_(gradient, alpha=1 - beta)
    x = gradient * (1 - beta) + momentum * beta
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    tall = p.shape[0] >= p.shape[1]
    squares.mul_(0.9).add_((x**2).mean(1 if tall else 0), alpha=0.1)
    x = x / ((squares[:, None] if tall else squares).sqrt() + 1e-7)
    p -= lr * decay * p + lr * 0.2 * x / ((x**2).mean().sqrt() + 1e-7)


def test_offload_that_the_stage_does_not_support_is_refused():
    with pytest.raises(ConfigError, match="offload: parameters needs a zero_stage of at least 3; now 2"):
        TrainConfig(offload="parameters", zero_stage=2)
    with pytest.raises(ConfigError, match="needs DeepSpeed"):
        config = TrainConfig(offload="optimizer", zero_stage=1, engine="torch")
        open_engine(tiny_model(), config, World())
