"""GRPO: advantages by hand, the sampled distribution is the scored one, and a step favours rewarded answers."""

import math

import pytest
import torch

from core.errors import ConfigError
from model.chat import render
from model.environments import Environment
from model.generation.batch import Completion
from model.grpo import group_advantages, grpo_loss, policy_rows, rollout_metrics, with_rehearsal
from model.network.config import IGNORE
from model.rollouts import Rollouts
from model.training.rl_config import RlConfig
from model.training.world import World


def test_advantages_are_those_computed_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert group_advantages(rewards).tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0] * 4]
    std = math.sqrt((0.75**2 + 3 * 0.25**2) / 4)
    normalised = group_advantages(rewards, "grpo")
    assert normalised[0].tolist() == pytest.approx([0.75 / std] + [-0.25 / std] * 3, rel=1e-4)
    assert normalised[1].tolist() == [0.0] * 4


@pytest.mark.parametrize(("kind", "expected"), [("dr_grpo", [1 / 8, 1 / 8]), ("grpo", [1 / 2, 1 / 4])])
def test_token_weights_are_those_computed_by_hand(kind, expected):
    """Two answers of 2 and 4 tokens, one of the latter written by a tool."""
    config = RlConfig(advantage=kind, max_new_tokens=8)
    short = Completion([5, 6], [True] * 2, [0.0] * 2, True)
    long = Completion([5, 6, 7, 8, 9], [True, True, False, True, True], [0.0] * 5, True)
    batch = policy_rows([[1, 2, 3], [1]], [short, long], torch.tensor([1.0, -1.0]), config, 0, 2)
    assert batch.targets[0].tolist() == [IGNORE, IGNORE, 5, 6, IGNORE]
    assert batch.targets[1].tolist() == [5, 6, IGNORE, 8, 9]
    # Undo the trainer's division, and the mean over two answers.
    weight = batch.extra["weight"] / batch.count * 2
    assert weight[0].tolist() == pytest.approx([0, 0, expected[0], expected[0], 0])
    assert weight[1].tolist() == pytest.approx([-expected[1], -expected[1], 0, -expected[1], -expected[1]])


@pytest.fixture
def rollouts(random_model, tokenizer):
    config = RlConfig(prompts=4, samples=4, max_new_tokens=12, pool=50, engine="torch", threads=1)
    model, reference = random_model(seed=1), random_model(seed=1)
    return Rollouts(model, reference, tokenizer, Environment(), config, World())


class HalfRight(Environment):
    """Rewards the text's parity, so that a random model gets some reward."""

    def reward(self, problem, completion, finished):
        return float(len(completion) % 2)


def test_the_distribution_that_sampled_is_the_one_that_scores(rollouts):
    from model.attempts import chat_prompt

    prompts = [chat_prompt(rollouts.tokenizer, p.prompt) for p in rollouts.problems[:4]]
    answers = rollouts._sample(prompts, step=0)
    batch = policy_rows(prompts, answers, torch.ones(4), rollouts.config, 0, 4)
    with torch.no_grad():
        scored = -rollouts.model(batch.inputs, batch.targets)
    for row, targets, answer in zip(scored, batch.targets, answers, strict=True):
        assert row[targets != IGNORE].tolist() == pytest.approx(answer.logprobs, abs=1e-4)


def test_a_step_raises_rewarded_answers_and_lowers_the_others(rollouts):
    rollouts.environment = HalfRight()
    batch = rollouts.batch(0)
    assert batch.count > 0 and set(batch.extra["weight"].flatten().sign().tolist()) == {-1.0, 0.0, 1.0}
    rewarded = batch.extra["weight"].sum(1) > 0

    def logprobs():
        with torch.no_grad():
            return -rollouts.model(batch.inputs, batch.targets).sum(1)

    before = logprobs()
    optimiser = torch.optim.SGD(rollouts.model.parameters(), lr=0.05)
    loss, count = grpo_loss()(rollouts.model, batch)
    (loss / count).backward()
    optimiser.step()
    change = logprobs() - before
    assert change[rewarded].mean() > 0 > change[~rewarded].mean()


def test_the_same_step_samples_the_same_answers_and_another_step_others(rollouts):
    rollouts.environment = HalfRight()
    first, again, other = rollouts.batch(3), rollouts.batch(3), rollouts.batch(4)
    assert first.inputs.equal(again.inputs) and first.metrics == again.metrics
    assert first.inputs.shape != other.inputs.shape or not first.inputs.equal(other.inputs)


def test_problems_with_equal_rewards_give_no_gradient(rollouts):
    batch = rollouts.batch(0)  # a random model never states an answer
    assert batch.metrics["reward"] == 0.0
    assert batch.count == 0


def test_kl_of_a_model_to_itself_is_zero_and_has_no_gradient(rollouts, tokenizer):
    rollouts.environment = HalfRight()
    assert rollouts.batch(0).metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    batch = rollouts._with_reference(rollouts.batch(0))
    batch.extra["weight"].zero_()
    loss, _ = grpo_loss(kl=1.0)(rollouts.model, batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-4)
    assert max(float(p.grad.abs().max()) for p in rollouts.model.parameters() if p.grad is not None) < 1e-2


def test_rehearsal_is_its_mean_likelihood_and_changes_no_policy_gradient(rollouts):
    rollouts.environment = HalfRight()
    plain = rollouts.batch(0)
    conversation = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am Stemma."},
    ]
    row = render(conversation, rollouts.tokenizer)
    batch = with_rehearsal(plain, [row, row], 0.5, rollouts.tokenizer.pad_id)

    def objective(batch):
        loss, count = grpo_loss()(rollouts.model, batch)
        return float(loss.detach()) / int(count)

    ids, mask = (torch.tensor(part) for part in row)
    with torch.no_grad():
        nll = rollouts.model(ids[None, :-1], ids[None, 1:])[0][mask[1:].bool()].mean()
    assert batch.count == plain.count + 2 * sum(row[1])
    assert objective(batch) == pytest.approx(objective(plain) + 0.5 * float(nll), rel=1e-4)


def test_metrics_count_only_what_the_model_wrote():
    answers = [
        Completion([1, 2, 3], [True, False, True], [-1.0, 0.0, -3.0], True),
        Completion([1], [True], [-2.0], False),
    ]
    found = rollout_metrics(answers, torch.tensor([[1.0, 0.0]]))
    assert found == {
        "reward": 0.5,
        "finished": 0.5,
        "completion_tokens": 1.5,
        "entropy": 2.0,
        "useful_groups": 1.0,
    }


def test_invalid_settings_are_refused():
    for wrong in ({"advantage": "ppo"}, {"samples": 1}, {"zero_stage": 3}):
        with pytest.raises(ConfigError):
            RlConfig(**wrong)
