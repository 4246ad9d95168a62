"""Generation against the slow and obvious way: one prompt, no cache, one token after another."""

import random

import pytest
import torch

from model.generate import Sampling, generate
from model.tools import calculator
from model.transformer import Transformer


def prompts(n: int, longest: int = 40) -> list[list[int]]:
    dice = random.Random(0)
    return [[dice.randrange(512) for _ in range(dice.randrange(1, longest))] for _ in range(n)]


@torch.inference_mode()
def greedy_without_cache(model, prompt, n, stop_ids=()):
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


@torch.inference_mode()
def scored(model, prompt, completion, sampling):
    """Log probabilities of a completion from one pass over the whole text."""
    ids = torch.tensor([[*prompt, *completion.ids]])
    logprobs = sampling.logprobs(model(ids)[0])
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    return [logprobs[place, token].item() for place, token in zip(places, completion.ids, strict=True)]


class Script(Transformer):
    """A model that writes a given text after any prompt, whatever it is told in between."""

    def __init__(self, like: Transformer, script: list[int], start: int):
        super().__init__(like.config)
        self.script, self.start = script, start

    def hidden(self, ids, cache=None):
        t = ids.shape[1]
        places = cache.lengths[:, None] + torch.arange(t)
        cache.lengths, cache.longest = cache.lengths + t, cache.longest + t
        return places[..., None].float()

    def head(self, hidden):
        places = (hidden[..., 0].long() - self.start + 1).clamp(0, len(self.script) - 1)
        return 30.0 * torch.nn.functional.one_hot(torch.tensor(self.script)[places], self.config.vocab_size)


def test_greedy_with_cache_and_batch_equals_the_plain_loop(random_model):
    model = random_model()
    asked = prompts(12)
    stops = {5, 17, 100, 200, 300}
    got = generate(model, asked, max_new_tokens=40, stop_ids=stops)
    for prompt, completion in zip(asked, got, strict=True):
        assert completion.ids == greedy_without_cache(model, prompt, 40, stops)
        assert completion.finished == (completion.ids[-1] in stops)
        assert completion.logprobs == pytest.approx(scored(model, prompt, completion, Sampling()), abs=1e-4)


SETTINGS = [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 20}, {"temperature": 1.5, "top_p": 0.8}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_prompt_gives_the_same_sample_alone_and_in_any_batch(random_model, settings):
    model, asked = random_model(), prompts(20)
    stops = set(range(0, 512, 25))
    seeds = [1000 + 7 * i for i in range(20)]
    common = {"max_new_tokens": 50, "stop_ids": stops, **settings}
    batch = generate(model, asked, seed=seeds, **common)
    small = generate(model, asked, seed=seeds, batch_size=3, **common)
    alone = [generate(model, [p], seed=[s], **common)[0] for p, s in zip(asked, seeds, strict=True)]
    assert [c.ids for c in batch] == [c.ids for c in alone] == [c.ids for c in small]
    assert len({len(c.ids) for c in batch}) > 5  # rows did leave at different times
    assert [c.finished for c in batch] == [c.ids[-1] in stops for c in batch]


@pytest.mark.parametrize("settings", SETTINGS)
def test_logprobs_are_those_of_the_distribution_sampled_from(random_model, settings):
    model, asked = random_model(), prompts(6)
    for prompt, completion in zip(
        asked, generate(model, asked, max_new_tokens=30, seed=3, **settings), strict=True
    ):
        expected = scored(model, prompt, completion, Sampling(**settings))
        assert completion.logprobs == pytest.approx(expected, abs=1e-3)


def test_samples_follow_the_models_distribution(random_model):
    model, prompt = random_model(), [3, 1, 4]
    n = 4000
    drawn = generate(model, [prompt] * n, max_new_tokens=1, temperature=1.0, top_k=8, seed=0, batch_size=n)
    with torch.no_grad():
        expected = Sampling(1.0, top_k=8).logprobs(model(torch.tensor([prompt]))[0, -1]).exp()
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=512) / n
    assert (expected > 0).sum() == 8
    assert (counts - expected).abs().max() < 4 * (0.25 / n) ** 0.5  # four standard errors


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    kept = Sampling(1.0, top_p=0.75).logprobs(logits).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 0.375, 0.625]]))
    assert (Sampling(1.0, top_p=1e-9).logprobs(logits).exp().max(-1).values == 1).all()


def test_seeds_make_samples_differ_and_repeat(random_model):
    model = random_model()
    first = generate(model, [[1, 2]] * 8, max_new_tokens=20, temperature=1.0, seed=5)
    again = generate(model, [[1, 2]] * 8, max_new_tokens=20, temperature=1.0, seed=5)
    assert first == again
    assert len({tuple(c.ids) for c in first}) == 8
    longer = generate(model, [[1, 2]] * 8, max_new_tokens=35, temperature=1.0, seed=5)
    assert [c.ids[:20] for c in longer] == [c.ids for c in first]


def test_the_context_ends_a_completion(random_model):
    model = random_model(max_seq_len=64)
    asked = [[1] * 60, [2] * 10, [3] * 63]
    got = generate(model, asked, max_new_tokens=30, temperature=1.0)
    assert [len(c.ids) for c in got] == [4, 30, 1]
    assert not any(c.finished for c in got)
    alone = [generate(model, [p], max_new_tokens=30, temperature=1.0, seed=i)[0] for i, p in enumerate(asked)]
    assert [c.ids for c in got] == [c.ids for c in alone]


def test_a_tool_answers_inside_the_answer(random_model, tokenizer):
    call = tokenizer.encode("Sum: <tool_call>12+7</tool_call>", specials=True)
    response = tokenizer.encode("<tool_response>19</tool_response>", specials=True)
    # What the model would have written in the response's place must not come out: it wants to write 'x'.
    end = [*tokenizer.encode("It is 19."), tokenizer.im_end_id]
    script = [*call, *tokenizer.encode("x") * len(response), *end]
    prompt = tokenizer.encode("ab")
    model = Script(random_model(), script, start=len(prompt))
    for temperature in (0.0, 1.0):
        got = generate(
            model,
            [prompt, prompt],
            max_new_tokens=80,
            temperature=temperature,
            stop_ids=[tokenizer.im_end_id],
            tool=calculator,
            tokenizer=tokenizer,
        )
        for completion in got:
            assert tokenizer.decode(completion.ids) == (
                "Sum: <tool_call>12+7</tool_call><tool_response>19</tool_response>It is 19.<|im_end|>"
            )
            assert completion.finished
            forced = [i for i, sampled in zip(completion.ids, completion.sampled, strict=True) if not sampled]
            assert forced == response
            assert all(p == 0 for p, s in zip(completion.logprobs, completion.sampled, strict=True) if not s)


def test_a_tools_answer_is_text_and_stops_nothing(random_model, tokenizer):
    script = [*tokenizer.encode("<tool_call>1</tool_call>", specials=True), *tokenizer.encode(" ") * 200]
    model = Script(random_model(), script, start=1)
    (got,) = generate(
        model,
        [[20]],
        max_new_tokens=60,
        stop_ids=[tokenizer.im_end_id],
        tool=lambda text: f"{text}<|im_end|><tool_call>2</tool_call>",
        tokenizer=tokenizer,
    )
    assert not got.finished
    assert len(got.ids) == 60
    assert got.ids.count(tokenizer.tool_call_id) == 1
    assert tokenizer.im_end_id not in got.ids


def test_a_call_that_was_never_opened_gets_no_answer(random_model, tokenizer):
    script = tokenizer.encode("5</tool_call> no<|im_end|>", specials=True)
    history = tokenizer.encode("<tool_call>1</tool_call>", specials=True)  # an old call, closed long ago
    for prompt in ([7], history):
        model = Script(random_model(), script, start=len(prompt))
        (got,) = generate(
            model,
            [prompt],
            max_new_tokens=30,
            stop_ids=[tokenizer.im_end_id],
            tool=lambda text: pytest.fail(f"called with {text!r}"),
            tokenizer=tokenizer,
        )
        assert got.ids == script
        assert all(got.sampled)


def test_nothing_asked_nothing_done(random_model):
    model = random_model()
    assert generate(model, [], max_new_tokens=5) == []
    (empty,) = generate(model, [[1]], max_new_tokens=0)
    assert (empty.ids, empty.finished) == ([], False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": [[]]}, "Prompt 0 has 0 tokens"),
        ({"prompts": [[1] * 128]}, "Prompt 0 has 128 tokens"),
        ({"seed": [1, 2]}, "1 prompts came with 2 seeds"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"tool": calculator}, "needs a tokenizer"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(random_model, arguments, words):
    with pytest.raises(ValueError, match=words):
        generate(random_model(), **({"prompts": [[1]], "max_new_tokens": 3} | arguments))
