"""Sampling against the logits processors of transformers, in the order in which its `generate` applies them."""

import pytest
import torch

from model.generation.sampling import Sampling


def their_scores(logits, ids, settings):
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as theirs

    processors = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }
    chain = LogitsProcessorList(
        [make(settings[name]) for name, make in processors.items() if name in settings]
    )
    return chain(ids, logits.clone())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "repetition_penalty": 1.7},
        {"temperature": 1.0, "repetition_penalty": 0.6},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.03, "repetition_penalty": 1.2},
        {"temperature": 0.4, "top_k": 3, "top_p": 0.99, "min_p": 0.3, "repetition_penalty": 1.1},
    ],
)
def test_distributions_are_those_of_transformers(settings):
    torch.manual_seed(0)
    logits, ids = 3 * torch.randn(50, 300), torch.randint(300, (50, 40))
    seen = torch.zeros(50, 300, dtype=torch.bool).scatter_(1, ids, True)
    expected = their_scores(logits, ids, settings).log_softmax(-1)
    got = Sampling(**settings).logprobs(logits, seen)
    assert torch.equal(got.isinf(), expected.isinf())
    torch.testing.assert_close(got, expected)
    if settings.keys() & {"top_k", "top_p", "min_p"}:
        assert expected.isinf().any()


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    kept = Sampling(1.0, top_p=0.75).logprobs(logits).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 0.375, 0.625]]))
    assert (Sampling(1.0, top_p=1e-9).logprobs(logits).exp().max(-1).values == 1).all()


def test_a_draw_comes_with_its_log_probability():
    torch.manual_seed(0)
    logits, noise = torch.randn(100, 50), torch.empty(100, 50).exponential_()
    sampling = Sampling(0.8, top_k=10)
    tokens, logprobs = sampling.draw(logits, noise)
    assert (logits.topk(10).indices == tokens[:, None]).any(-1).all()
    torch.testing.assert_close(logprobs, sampling.logprobs(logits).gather(-1, tokens[:, None])[:, 0])
    greedy, plain = Sampling(repetition_penalty=2.0).draw(logits, None)
    assert torch.equal(greedy, logits.argmax(-1))  # no token seen, none penalised
    torch.testing.assert_close(plain, logits.log_softmax(-1).max(-1).values)
