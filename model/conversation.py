"""A conversation with a model folder: the base of `stemma chat`, and the way to ask a model from Python."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError
from model.chat import render
from model.generation.generate import generate
from model.hub.load import load_pretrained
from model.tools import calculator


class Conversation:
    """Keeps the messages so far. The model may use the calculator; its calls and their results are in the answers."""

    def __init__(
        self, folder: Path | str, temperature: float = 0.0, max_new_tokens: int = 128, seed: int = 0
    ):
        """Load the model. Raises what `load_pretrained` raises."""
        self.model, self.tokenizer = load_pretrained(folder)
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self.messages: list[dict[str, str]] = []

    def ask(self, question: str) -> str:
        """Return the answer. The oldest messages are dropped where all do not fit into the model's context.

        Raises ConfigError where the question alone does not fit, or the settings of sampling are out of range.
        """
        self.messages.append({"role": "user", "content": question})
        while len(prompt := self._prompt()) + self.max_new_tokens > self.model.config.max_seq_len:
            if len(self.messages) == 1:
                raise ConfigError(
                    f"The question has {len(prompt):,} tokens; with an answer of {self.max_new_tokens} the model "
                    f"takes {self.model.config.max_seq_len:,}. Ask in fewer words."
                )
            self.messages = self.messages[2:]
        ends = [self.tokenizer.im_end_id, self.tokenizer.eos_id]
        (answer,) = generate(
            self.model,
            [prompt],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop_ids=ends,
            seed=self.seed + len(self.messages),
            tool=calculator,
            tokenizer=self.tokenizer,
        )
        text = self.tokenizer.decode([token for token in answer.ids if token not in ends]).strip()
        self.messages.append({"role": "assistant", "content": text})
        return text

    def _prompt(self) -> list[int]:
        ids, _ = render(self.messages, self.tokenizer, add_generation_prompt=True)
        return ids
