"""Who descends from whom: provenance statements, the audit of a family tree, why a page went where it went."""
