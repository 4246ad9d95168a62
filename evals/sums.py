"""The held-out problems that the reports ask, and that the training set is searched for."""

SUMS = "sums"  # their name as an evaluation set
SUMS_SEED, N_SUMS = 20_000, 600  # another seed than training's, though the split already separates them
