"""Lineage: provenance statements, the audit of a family tree, what happened to a page, `stemma sync`."""
