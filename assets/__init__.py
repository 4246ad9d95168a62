"""Stages of a language model as Dagster assets, one file an asset, in the order the data flows."""
