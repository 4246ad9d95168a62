"""The small chain that the ledger and its lineage are tested on."""

from tiny_project import chain as chain
