"""Special tokens: the tokens that no text is encoded to, only our own code puts them."""

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
