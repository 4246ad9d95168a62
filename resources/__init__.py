"""With what the assets are made: the DVC ledger, the MLflow tracker, the training launcher, the workspace.

The only room that talks to DVC and MLflow. Import the modules by name; nothing is loaded here.
"""
