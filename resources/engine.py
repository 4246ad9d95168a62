"""Where the chain's work units run: this machine, Ray or Slurm. It decides no byte, so it is no stage's parameter."""

from __future__ import annotations

import os
from typing import Any, Literal

import dagster as dg
from pydantic import Field


class ExecutionEngine(dg.ConfigurableResource):
    """The engine of `cleaned_corpus`: set in the Launchpad for a run, or for all by STEMMA_ENGINE, STEMMA_WORKERS."""

    name: Literal["local", "ray", "slurm"] = Field(
        default="local",
        description="local: processes of this machine. ray: the cluster that RAY_ADDRESS names, else a Ray of its own "
        "here. slurm: a job array; sbatch reads SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_MEM_PER_CPU and the like.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Units at a time; 0 is one a core (on Slurm: as many as it gives).",
    )

    @classmethod
    def from_environment(cls) -> ExecutionEngine:
        """As STEMMA_ENGINE and STEMMA_WORKERS say. Raises ValueError where they say what is not there."""
        return cls(
            name=os.environ.get("STEMMA_ENGINE", "local"), workers=int(os.environ.get("STEMMA_WORKERS", "0"))
        )

    def settings(self) -> dict[str, Any]:
        """The arguments of corpus.clean.clean_crawl that say where it works."""
        return {"engine": self.name, "workers": self.workers or None}
