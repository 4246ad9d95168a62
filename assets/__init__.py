"""The stages of a language model as Dagster assets, one file an asset, in the order in which the data flows."""

from assets.base_model import base_model
from assets.cleaned_corpus import cleaned_corpus
from assets.eval_reports import eval_reports
from assets.raw_crawl import raw_crawl
from assets.rl_model import rl_model
from assets.sft_model import sft_model
from assets.tokenizer import tokenizer
from assets.training_set import training_set

DECIDES_NOTHING = "a list of the stages"
STAGES = (raw_crawl, cleaned_corpus, training_set, tokenizer, base_model, sft_model, rl_model, eval_reports)
