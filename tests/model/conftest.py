"""A vocabulary and models with random weights, for the tests of `model`."""

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer learned from the texts of Python's own help, which is on every machine."""
    from pydoc_data.topics import topics

    from model.vocabulary.config import TokenizerConfig
    from model.vocabulary.train import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(list(topics.values()), folder, TokenizerConfig(vocab_size=512))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from model.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def random_model():
    """A function: settings -> a small model none of whose weights is at its starting value (0 or 1)."""
    import torch

    from model.network.config import Config
    from model.network.transformer import Transformer

    def build(seed: int = 0, **settings):
        torch.manual_seed(seed)
        shape = {"depth": 3, "vocab_size": 512, "max_seq_len": 128} | settings
        model = Transformer(Config.from_depth(**shape)).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.uniform_(0.5, 1.5)
                elif not weight.any():
                    weight.normal_(0, 0.3 * weight.shape[1] ** -0.5)
        return model

    return build
