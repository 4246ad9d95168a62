"""From crawl to text: read archives, extract the main text, judge it, remove repeats and personal data.

Plain functions and scripts: nothing here knows of Dagster, DVC or MLflow. `clean_crawl` in clean.py is the way
through all of it; every other file is one step.
"""
