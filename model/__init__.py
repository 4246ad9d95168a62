"""From text to model: tokenizer, transformer, trainer, assistant. Knows nothing of Dagster, DVC or MLflow."""
