"""What the assets run on: DVC ledger, MLflow tracker, training launcher, execution engine, workspace.

The only package that talks to DVC and MLflow. Import its modules by name; nothing is loaded here.
"""
