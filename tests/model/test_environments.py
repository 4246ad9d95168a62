"""Problems, their split, and the reward: only a right final answer of a completion that stopped gets it."""

import pytest

from model.environments import Environment, Problem, final_answer, worked_solution
from model.tools import calculator

PROBLEM = Problem("7 + 8 - 3", "What is 7 + 8 - 3?", "12", "", "", {"answer": "12"})


@pytest.mark.parametrize(
    ("completion", "finished", "reward"),
    [
        ("7 + 8 = 15. 15 - 3 = 12. The answer is 12.", True, 1.0),
        ("The answer is 12.", True, 1.0),
        ("The answer is 12", True, 1.0),
        ("the answer is +12.0", True, 1.0),  # reasoning-gym: sign and trailing decimals do not matter
        ("The answer is 12.", False, 0.0),  # never stopped
        ("The answer is 13.", True, 0.0),
        ("The answer is 112.", True, 0.0),  # contains the answer: reasoning-gym would give partial credit
        ("The answer is -12.", True, 0.0),
        ("The answer is 12. The answer is 13.", True, 0.0),  # the last one counts
        ("The answer is 12 or 13.", True, 0.0),
        ("12", True, 0.0),
        ("The answer is .", True, 0.0),
        ("I don't know.", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_reward_truth_table(completion, finished, reward):
    assert Environment().reward(PROBLEM, completion, finished) == reward


def test_final_answer_is_what_ends_the_text():
    assert final_answer("So the answer is 7.") == "7"
    assert final_answer("The answer is\n7 .") == "7"
    assert final_answer("7") is None


def test_training_and_heldout_problems_are_different_problems_whatever_the_seed():
    environment = Environment()
    heldout = {p.key for seed in (0, 1, 2) for p in environment.generate(seed, 200, "heldout")}
    train = {p.key for seed in (0, 1, 2) for p in environment.generate(seed, 800, "train")}
    assert not heldout & train
    assert all(environment.split_of(key) == "heldout" for key in heldout)


def test_problems_are_different_and_the_same_for_the_same_seed():
    first, again, other = (Environment().generate(seed, 300) for seed in (3, 3, 4))
    assert first == again != other
    assert len({p.key for p in first}) == 300


def test_too_few_different_problems_are_reported():
    tiny = Environment(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    with pytest.raises(ValueError, match=r"only .* different heldout problems"):
        tiny.generate(0, 500, "heldout")


@pytest.mark.parametrize("environment", [Environment(), Environment("spell_backward", {})])
def test_every_solution_gets_the_reward(environment):
    for problem in environment.generate(0, 60):
        assert environment.reward(problem, problem.solution, True) == 1.0
        assert environment.reward(problem, problem.call, True) == 1.0


def test_worked_steps_are_true_equations():
    for problem in Environment().generate(0, 100):
        *steps, last = problem.solution.split(". ")
        for step in steps:
            left, right = step.split(" = ")
            assert calculator(left) == right
        assert last == f"The answer is {problem.answer}."
    with pytest.raises(ValueError, match="worked to 3"):
        worked_solution("1 + 2", "4")
