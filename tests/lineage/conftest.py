"""The small project on which the ledger and its lineage are tested."""

from tiny_project import chain as chain
