"""Only the assistant's tokens are learnt, a step's rows follow from seed and step, and no batch gives NaN."""

import pytest
import torch

from core.errors import ConfigError
from model.chat import render
from model.data.batch import padded
from model.network.config import IGNORE
from model.sft import batch_of, mean_loss
from model.training.sft_config import SftConfig
from model.training.world import World

CONVERSATIONS = [
    [{"role": "user", "content": "What is 7 + 8?"}, {"role": "assistant", "content": "The answer is 15."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Use the calculator: 12 + 7"},
        {
            "role": "assistant",
            "content": "<tool_call>12 + 7</tool_call><tool_response>19</tool_response>The answer is 19.",
        },
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "You are welcome."},
    ],
]


@pytest.fixture(scope="module")
def rows(tokenizer):
    return [render(conversation, tokenizer) for conversation in CONVERSATIONS]


def test_targets_decode_to_the_assistants_text_and_its_stop_token(rows, tokenizer):
    batch = padded(rows, tokenizer.pad_id)
    learnt = [tokenizer.decode([i for i in row.tolist() if i != IGNORE]) for row in batch.targets]
    assert learnt == [
        "The answer is 15.<|im_end|>",
        "<tool_call>12 + 7</tool_call>The answer is 19.<|im_end|>You are welcome.<|im_end|>",
    ]
    assert batch.count == sum(sum(mask) for _, mask in rows)


def test_a_target_is_the_token_after_its_input(rows, tokenizer):
    batch = padded(rows, tokenizer.pad_id)
    for i, (ids, _) in enumerate(rows):
        for t in (batch.targets[i] != IGNORE).nonzero()[:, 0].tolist():
            assert batch.targets[i, t] == ids[t + 1] and batch.inputs[i, t] == ids[t]


def test_every_epoch_reads_every_conversation_once_in_an_order_of_its_own(tokenizer):
    rows = [([i, i + 1, 0], [0, 1, 0]) for i in range(1, 24)]
    steps = [
        batch_of(rows, step, 4, seed=5, pad_id=0, world=World()).inputs[:, 0].tolist() for step in range(12)
    ]
    read = [i for step in steps for i in step]
    assert sorted(read[:23]) == list(range(1, 24)) == sorted(read[23:46])
    assert read[:23] != read[23:46]
    assert steps[7] == batch_of(rows, 7, 4, seed=5, pad_id=0, world=World()).inputs[:, 0].tolist()


def test_two_processes_share_what_one_would_read(tokenizer):
    rows = [([i, i + 1, 0], [0, 1, 0]) for i in range(1, 24)]
    whole = batch_of(rows, 3, 4, 0, 0, World()).inputs.tolist()
    halves = [batch_of(rows, 3, 4, 0, 0, World(rank, 2)).inputs.tolist() for rank in (0, 1)]
    assert halves[0] + halves[1] == whole


def test_a_row_without_supervised_tokens_weighs_nothing(rows, tokenizer, random_model):
    model = random_model()
    silent = ([5, 6, 7, 8], [0, 0, 0, 0])
    with_it = mean_loss(model, [*rows, silent], tokenizer.pad_id, World())
    assert with_it == pytest.approx(mean_loss(model, rows, tokenizer.pad_id, World()), rel=1e-5)
    assert torch.isfinite(torch.tensor(with_it))


def test_padding_changes_no_loss(rows, tokenizer, random_model):
    model = random_model()
    alone = [mean_loss(model, [row], tokenizer.pad_id, World()) * sum(row[1]) for row in rows]
    together = mean_loss(model, rows, tokenizer.pad_id, World()) * sum(sum(mask) for _, mask in rows)
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_steps_follow_from_epochs_and_invalid_settings_are_refused():
    assert SftConfig(epochs=2, batch_rows=32).planned(100, 128).steps == 6
    with pytest.raises(ConfigError, match="greater than 0"):
        SftConfig(epochs=0)


def test_a_wider_model_is_tuned_at_a_lower_rate_unless_one_is_given():
    narrow, wide = (SftConfig().planned(100, width).lr for width in (128, 512))
    assert narrow == 4 * wide > 0
    assert SftConfig(lr=1e-3).planned(100, 512).lr == 1e-3
