"""Model folders in Hugging Face's format, written and read, and the way from and to llama.cpp's GGUF files.

A folder of ours is loaded by transformers, vLLM and llama.cpp without any code of ours:
- the architecture is written as Qwen3's, or Llama's when the model has no QK-norm (config_json.py); our parameter
  names are theirs behind the prefix `model.`;
- weights are safetensors only, in one file or several (weights.py, write.py): no pickle is ever read or written;
- nothing in a folder holds a time, a host or a path: the same model gives the same bytes.
"""
