"""When assets are built: jobs and the schedule, and what a terminal asks of the chain."""
