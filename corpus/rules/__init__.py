"""Quality rules: what they measure, their thresholds by language, what another threshold would do."""
