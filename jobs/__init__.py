"""When assets are made: jobs and schedules."""
