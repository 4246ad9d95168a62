"""The special tokens: no text is encoded to them, only our own code inserts them. Light: imports nothing."""

# The names that Qwen's models gave them, so that vLLM and llama.cpp recognise turns, tool calls and thoughts.
SPECIAL_TOKENS = {
    "eos": "<|endoftext|>",  # between documents, and the end of a base model's text
    "pad": "<|pad|>",
    "im_start": "<|im_start|>",  # a turn, ChatML
    "im_end": "<|im_end|>",
    "tool_call": "<tool_call>",
    "tool_call_end": "</tool_call>",
    "tool_response": "<tool_response>",
    "tool_response_end": "</tool_response>",
    "think": "<think>",
    "think_end": "</think>",
}
