"""The scaling recipe, and the plan that follows from it, against published laws and counts made by hand."""

import math

import pytest

from core.errors import ConfigError
from model.network.config import Config
from model.training.plan import plan
from model.training.pretrain_config import PretrainConfig
from model.training.scaling_recipe import horizon, scaling_recipe


def shape_of(depth: int, vocab_size: int = 1024) -> Config:
    return Config.from_depth(depth, vocab_size, 256)


def test_a_deeper_model_gets_more_tokens_larger_batches_and_a_lower_rate():
    recipes = []
    for depth in (2, 4, 8, 12, 20, 32):
        shape = shape_of(depth)
        parameters = shape.num_params()
        recipes.append(scaling_recipe(shape.d_model, parameters, horizon(parameters), 256))
    assert [t.tokens for t in recipes] == sorted(t.tokens for t in recipes)
    assert [t.batch_tokens for t in recipes] == sorted(t.batch_tokens for t in recipes)
    assert [t.lr for t in recipes] == sorted((t.lr for t in recipes), reverse=True)
    assert all(t.batch_tokens % 256 == 0 for t in recipes)


def test_muon_gets_rates_of_its_own_unless_a_rate_is_given():
    found = PretrainConfig(optimizer="muon", depth=4).with_scaling_recipe(shape_of(4), None)
    assert found.matrix_lr > PretrainConfig(depth=4).with_scaling_recipe(shape_of(4), None).lr
    assert found.lr > found.matrix_lr > 0
    same = PretrainConfig(optimizer="muon", lr=1e-3)
    assert same.with_scaling_recipe(shape_of(4), None).matrix_lr == 0
    assert (
        PretrainConfig(optimizer="muon", matrix_lr=2e-3).with_scaling_recipe(shape_of(4), None).matrix_lr
        == 2e-3
    )


def test_the_batch_at_gpt_2s_size_follows_the_published_law():
    # 0.0306 · (20 · 124e6)^0.383 sequences of 2,048 = 250,000 tokens, which is 2^18 to the next power of two.
    assert scaling_recipe(768, 124_000_000, 20 * 124_000_000, 1024).batch_tokens == 2**18


def test_the_horizon_is_twenty_tokens_a_parameter_but_no_more_than_four_epochs():
    assert horizon(1_000_000) == 20_000_000
    assert horizon(1_000_000, 300_000) == 1_200_000


def test_settings_given_by_name_are_kept():
    config = PretrainConfig(lr=1e-4, batch_tokens=512, weight_decay=0.0, steps=7, seq_len=128)
    found = config.with_scaling_recipe(shape_of(4), 100_000)
    assert (found.lr, found.batch_tokens, found.weight_decay, found.steps) == (1e-4, 512, 0.0, 7)
    assert PretrainConfig(tokens=51_200, batch_tokens=512).with_scaling_recipe(shape_of(4), None).steps == 100
    assert PretrainConfig(epochs=2, batch_tokens=512).with_scaling_recipe(shape_of(4), 51_200).steps == 200


def test_a_plan_estimates_time_for_known_devices_and_refuses_others():
    section = {"depth": 12, "seq_len": 1024, "n_kv_head": 12, "fit": True}
    one, eight = plan(section, 50_304, "H100"), plan(section, 50_304, "H100", devices=8)
    assert one.expected.parameters == 123_588_864
    assert one.expected.seconds == pytest.approx(8 * eight.expected.seconds)
    assert math.isfinite(one.expected.seconds)
    with pytest.raises(ConfigError, match="B100"):
        plan(section, 50_304, "B100")
