"""Generation against the plain loop: one prompt, no cache, one token after another."""

import random

import pytest
import torch

from model.generation.batch import passes
from model.generation.generate import generate, stream
from model.generation.sampling import Sampling
from model.network.attention import Cached, KVCache
from model.network.transformer import Transformer
from model.tools import calculator


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
    seen = torch.zeros(ids.shape[1], model.config.vocab_size, dtype=torch.bool)
    for place, line in enumerate(seen):
        line[ids[0, : place + 1]] = True
    logprobs = sampling.logprobs(model(ids)[0], seen)
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    return [logprobs[place, token].item() for place, token in zip(places, completion.ids, strict=True)]


class Script(Transformer):
    """A model that writes a given text after any prompt, whatever tokens are inserted."""

    def __init__(self, like: Transformer, script: list[int], start: int):
        super().__init__(like.config)
        self.script, self.start = script, start

    def hidden(self, ids, cache=None):
        step = Cached.step(cache, ids.shape[1]) if isinstance(cache, KVCache) else cache
        step.done()
        return step.positions[..., None].float()

    def head(self, hidden):
        places = (hidden[..., 0].long() - self.start + 1).clamp(0, len(self.script) - 1)
        return 30.0 * torch.nn.functional.one_hot(torch.tensor(self.script)[places], self.config.vocab_size)


class PlainDecoder:
    """Decoding with the modules themselves, which a Script overrides."""

    def __init__(self, model, copy):
        self.model = model

    def step(self, tokens, cache):
        return self.model.head(self.model.hidden(tokens[:, None], cache)[:, -1])


@pytest.fixture
def scripted(random_model, monkeypatch):
    """A function: token ids, length of the prompt -> a model that writes exactly these."""
    monkeypatch.setattr("model.generation.batch.Decoder", PlainDecoder)
    return lambda script, start: Script(random_model(), script, start)


def test_greedy_with_cache_and_batch_equals_the_plain_loop(random_model):
    model = random_model()
    asked = prompts(12)
    stops = {5, 17, 100, 200, 300}
    got = generate(model, asked, max_new_tokens=40, stop_ids=stops)
    for prompt, completion in zip(asked, got, strict=True):
        assert completion.ids == greedy_without_cache(model, prompt, 40, stops)
        assert completion.finished == (completion.ids[-1] in stops)
        assert completion.logprobs == pytest.approx(scored(model, prompt, completion, Sampling()), abs=1e-4)


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.2, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.2},
]


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
    assert len({len(c.ids) for c in batch}) > 5  # rows have ended at different steps
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


def test_a_tools_response_is_inserted_into_the_answer(scripted, tokenizer):
    call = tokenizer.encode("Sum: <tool_call>12+7</tool_call>", specials=True)
    response = tokenizer.encode("<tool_response>19</tool_response>", specials=True)
    # The model's own tokens at the positions of the response ('x') must not be in the output.
    end = [*tokenizer.encode("It is 19."), tokenizer.im_end_id]
    script = [*call, *tokenizer.encode("x") * len(response), *end]
    prompt = tokenizer.encode("ab")
    model = scripted(script, start=len(prompt))
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


def test_a_tools_response_is_plain_text_and_stops_nothing(scripted, tokenizer):
    script = [*tokenizer.encode("<tool_call>1</tool_call>", specials=True), *tokenizer.encode(" ") * 200]
    model = scripted(script, start=1)
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


def test_a_call_that_was_never_opened_gets_no_response(scripted, tokenizer):
    script = tokenizer.encode("5</tool_call> no<|im_end|>", specials=True)
    history = tokenizer.encode("<tool_call>1</tool_call>", specials=True)  # an earlier call, already closed
    for prompt in ([7], history):
        model = scripted(script, start=len(prompt))
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


def test_no_prompts_or_no_new_tokens_give_empty_results(random_model):
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
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"stop_strings": ["x"]}, "pass the tokenizer"),
        ({"tool": calculator}, "needs a tokenizer"),
    ],
)
def test_invalid_arguments_are_refused_with_a_message(random_model, arguments, words):
    with pytest.raises(ValueError, match=words):
        generate(random_model(), **({"prompts": [[1]], "max_new_tokens": 3} | arguments))


def test_a_stop_string_ends_a_row_wherever_it_lies_among_the_tokens(scripted, tokenizer):
    text = "The façade costs 7 €. Then the end of it, and more"
    ids = tokenizer.encode(text)
    for stop in ("€", "ç", "e c", ". Then the e", "d of it,", "The", "more"):
        model = scripted([*ids, *ids], start=1)
        (got,) = generate(
            model, [[20]], max_new_tokens=60, stop_strings=["absent", stop], tokenizer=tokenizer
        )
        assert got.text == text[: text.index(stop)]
        assert got.finished
        written = tokenizer.decode_bytes(got.ids)
        assert got.ids == ids[: len(got.ids)]
        assert stop.encode() in written
        assert stop.encode() not in tokenizer.decode_bytes(got.ids[:-1])  # no token too late


def test_rows_stop_at_stop_strings_and_the_others_continue(random_model, tokenizer):
    model, asked = random_model(), prompts(12)
    plain = generate(model, asked, max_new_tokens=40, temperature=1.0, tokenizer=tokenizer)
    stops = ["e", "th", "0"]
    got = generate(
        model,
        asked,
        max_new_tokens=40,
        temperature=1.0,
        tokenizer=tokenizer,
        stop_strings=stops,
        batch_size=5,
    )
    assert sum(c.finished for c in got) > 2
    for before, after in zip(plain, got, strict=True):
        places = [p for stop in stops if (p := before.text.find(stop)) >= 0]
        assert after.finished == bool(places)
        assert after.text == (before.text[: min(places)] if places else before.text)
        assert after.ids == before.ids[: len(after.ids)]


def test_a_stop_string_in_a_tools_response_stops_nothing(scripted, tokenizer):
    call = tokenizer.encode("<tool_call>1</tool_call>", specials=True)
    model = scripted([*call, *tokenizer.encode(" ") * 30, *tokenizer.encode("stop there")], start=1)
    (got,) = generate(
        model,
        [[20]],
        max_new_tokens=120,
        stop_strings=["stop", "1</tool_response> "],
        tool=lambda text: f"stop {text}",
        tokenizer=tokenizer,
    )
    assert got.finished
    assert got.text.startswith("<tool_call>1</tool_call><tool_response>stop 1</tool_response> ")
    assert got.text.endswith(" ")
    assert got.text.count("stop") == 1


def test_a_stream_gives_the_same_text_in_whole_characters(random_model, tokenizer):
    model, asked = random_model(), prompts(9)
    common = {"max_new_tokens": 40, "temperature": 1.0, "tokenizer": tokenizer, "batch_size": 4}
    for stops in ([], ["e", "th", "of t"]):
        whole = generate(model, asked, stop_strings=stops, stop_ids=range(0, 512, 60), **common)
        pieces: dict[int, list[str]] = {row: [] for row in range(9)}
        run = stream(model, asked, stop_strings=stops, stop_ids=range(0, 512, 60), **common)
        while True:
            try:
                row, piece = next(run)
            except StopIteration as end:
                assert end.value == whole
                break
            assert piece
            pieces[row].append(piece)
        assert ["".join(pieces[row]) for row in range(9)] == [c.text for c in whole]
        assert max(map(len, pieces.values())) > 5  # it came in pieces


def test_the_text_of_a_completion_leaves_out_the_stop_token(scripted, tokenizer):
    model = scripted([*tokenizer.encode("Yes."), tokenizer.im_end_id], start=1)
    (got,) = generate(model, [[20]], max_new_tokens=20, stop_ids=[tokenizer.im_end_id], tokenizer=tokenizer)
    assert (got.text, got.ids[-1]) == ("Yes.", tokenizer.im_end_id)
    (plain,) = generate(model, [[20]], max_new_tokens=20, stop_ids=[tokenizer.im_end_id])
    assert plain.text is None


def test_prompts_are_prefilled_in_passes_of_bounded_size_and_none_is_lost(random_model, monkeypatch):
    model, asked = random_model(), prompts(20)
    asked += asked[:5]  # equal prompts are prefilled once
    whole = generate(model, asked, max_new_tokens=10)
    monkeypatch.setattr("model.generation.batch.PREFILL_TOKENS", 50)
    sizes = [[len(prompt) for prompt in some] for some in passes(list(map(tuple, asked)))]
    assert sum(map(len, sizes)) == 25 and len(sizes) > 5
    assert all(sum(some) <= 50 or len(some) == 1 for some in sizes)
    assert [c.ids for c in generate(model, asked, max_new_tokens=10)] == [c.ids for c in whole]


def test_autocast_computes_in_its_type_and_gives_the_logprobs_of_its_samples(random_model):
    model, asked = random_model(), prompts(6)
    with torch.autocast("cpu", torch.bfloat16):
        got = generate(model, asked, max_new_tokens=20, temperature=1.0)
        expected = [scored(model, p, c, Sampling(1.0)) for p, c in zip(asked, got, strict=True)]
    for completion, wanted in zip(got, expected, strict=True):
        assert completion.logprobs == pytest.approx(wanted, abs=0.15)
