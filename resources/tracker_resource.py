"""The MLflow tracker as a Dagster resource: its settings in the Launchpad. The tracker itself does not need Dagster."""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from resources.tracking import MlflowTracker


class MlflowTrackerResource(dg.ConfigurableResource[MlflowTracker]):
    """Where runs are tracked: a database file of the project by default, or an MLflow server."""

    root: str = Field(description="The project's folder.")
    tracking_uri: str = Field(
        default="",
        description="MLflow's database or server. Empty: MLFLOW_TRACKING_URI if set, else mlflow.db of the project.",
    )
    artifacts: str = Field(default="", description="Folder of artifacts. Empty: mlartifacts/ of the project.")
    spool: str = Field(
        default="", description="Folder for what is not yet sent. Empty: spool/ of the project."
    )

    def create_resource(self, context: dg.InitResourceContext) -> MlflowTracker:
        """The tracker with these settings."""
        return MlflowTracker(self.root, self.tracking_uri, self.artifacts, self.spool)
