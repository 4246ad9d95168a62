"""What the models know and can do, in numbers: probes, tasks, baselines, intervals, reports.

Nothing here imports Dagster, DVC or MLflow: `python -m evals.probes` and `python -m evals.report` run alone.
"""
