"""Conversations as tokens: ChatML turns, and the loss mask of the assistant's tokens.

    <|im_start|>user
    What is 12 + 7?<|im_end|>
    <|im_start|>assistant
    <tool_call>12+7</tool_call><tool_response>19</tool_response>It is 19.<|im_end|>

Notable:
- a tool is called in the middle of the assistant's turn: it writes an expression between <tool_call> and
  </tool_call>, the environment inserts <tool_response>result</tool_response>, the assistant continues. One turn, no
  second prompt: the simplest form for a tiny model. Conversations may write the tags inside the assistant's
  content, or use the common form (`tool_calls`, then a message of role `tool`); both give the same tokens;
- the loss mask is 1 on what the assistant writes (text, calls, <|im_end|>) and 0 on the rest, including the tool's
  response with both its tags;
- the tokens are those of `transformers`' apply_chat_template, with one intended difference: a user, system or
  tool message that contains the text of a special token gets ordinary tokens, so it cannot forge a turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import DataError
from model.vocabulary.special import SPECIAL_TOKENS

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

# Jinja, for other programs; `render` does the same without it. Contents are trimmed: a turn then starts with the same
# token in training as after a generation prompt.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- set before = loop.previtem.role if loop.previtem is defined else '' %}
    {%- set after = loop.nextitem.role if loop.nextitem is defined else '' %}
    {%- if message.role == 'tool' %}
        {%- if before not in ['assistant', 'tool'] %}
            {{- raise_exception('A tool message must follow the assistant that called the tool.') }}
        {%- endif %}
        {{- '<tool_response>' + (message.content | trim) + '</tool_response>' }}
    {%- else %}
        {%- if before != 'tool' or message.role != 'assistant' %}
            {{- '<|im_start|>' + message.role + '\\n' }}
        {%- endif %}
        {{- (message.content or '') | trim }}
        {%- for call in message.tool_calls or [] %}
            {%- set arguments = call.function.arguments %}
            {%- set expression = arguments if arguments is string else arguments.expression %}
            {{- '<tool_call>' + expression + '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {%- set goes_on = after == 'assistant' or (loop.last and add_generation_prompt) %}
    {%- if after != 'tool' and not (message.role == 'tool' and goes_on) %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
Message = Mapping[str, Any]  # {"role": one of ROLES, "content": text}; an assistant's may have "tool_calls"
ROLES = ("system", "user", "assistant", "tool")
INLINE = ("tool_call", "tool_call_end", "tool_response", "tool_response_end", "think", "think_end")
_TAGS = re.compile("(" + "|".join(re.escape(SPECIAL_TOKENS[name]) for name in INLINE) + ")")


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Messages [{"role": …, "content": …}] -> (ids, mask), equally long; mask is 1 where the assistant writes.

    `add_generation_prompt`: end with the header of an assistant turn (or within it, after a tool's response), to be
    continued. Raises DataError for an unknown role, a tool's message without a call, or a vocabulary without ChatML.
    """
    ids: list[int] = []
    mask: list[int] = []

    def append(tokens: list[int], supervised: int) -> None:
        ids.extend(tokens)
        mask.extend([supervised] * len(tokens))

    for n, message in enumerate(messages):
        role, before, after = message["role"], _role(messages, n - 1), _role(messages, n + 1)
        _check(role, before, n)
        content = (message.get("content") or "").strip()
        by_assistant = int(role == "assistant")
        if role == "tool":
            append(_wrapped("tool_response", content, tokenizer), 0)
        else:
            header = "" if role == "assistant" and before == "tool" else f"{role}\n"
            if header:
                append([tokenizer.im_start_id], 0)
            append(tokenizer.encode(header if by_assistant else header + content), 0)
            if by_assistant:
                for tokens, supervised in _assistant_parts(content, tokenizer):
                    append(tokens, supervised)
            for call in message.get("tool_calls") or []:
                append(_wrapped("tool_call", _expression(call), tokenizer), by_assistant)
        continues = after == "assistant" or (after is None and add_generation_prompt)
        if after != "tool" and not (role == "tool" and continues):
            append([tokenizer.im_end_id], by_assistant)
            append(tokenizer.encode("\n"), 0)
    if add_generation_prompt and _role(messages, len(messages) - 1) != "tool":
        append([tokenizer.im_start_id, *tokenizer.encode("assistant\n")], 0)
    return ids, mask


def _assistant_parts(content: str, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """(ids, mask) of the parts of content between its inline tags; 0 inside <tool_response>…</tool_response>."""
    supervised = 1
    for part in _TAGS.split(content):
        if part == SPECIAL_TOKENS["tool_response"]:
            supervised = 0
        yield ([tokenizer.special_ids[part]] if _TAGS.fullmatch(part) else tokenizer.encode(part)), supervised
        if part == SPECIAL_TOKENS["tool_response_end"]:
            supervised = 1


def _wrapped(name: str, text: str, tokenizer: Tokenizer) -> list[int]:
    opening, closing = SPECIAL_TOKENS[name], SPECIAL_TOKENS[f"{name}_end"]
    return [tokenizer.special_ids[opening], *tokenizer.encode(text), tokenizer.special_ids[closing]]


def _expression(call: Mapping[str, Any]) -> str:
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else arguments["expression"]


def _role(messages: Sequence[Message], n: int) -> str | None:
    return messages[n]["role"] if 0 <= n < len(messages) else None


def _check(role: str, before: str | None, n: int) -> None:
    if role not in ROLES:
        raise DataError(f"Message {n} has the role '{role}'. Known roles: {', '.join(ROLES)}.")
    if role == "tool" and before not in ("assistant", "tool"):
        raise DataError(f"Message {n} is a tool's, but no assistant before it called the tool.")
