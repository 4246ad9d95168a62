"""Where work units run: this machine, Ray or Slurm. It changes no output byte, so it is not a stage's parameter."""

from __future__ import annotations

import os
from typing import Any, Literal, cast

import dagster as dg
from pydantic import Field

from core.errors import ConfigError

EngineName = Literal["local", "ray", "slurm"]


class ExecutionEngine(dg.ConfigurableResource[Any]):
    """The engine of `cleaned_corpus`: set in the Launchpad for a run, or for all by STEMMA_ENGINE, STEMMA_WORKERS."""

    name: EngineName = Field(
        default="local",
        description="local: processes of this machine. ray: the cluster that RAY_ADDRESS names, else a Ray of its own "
        "here. slurm: a job array; sbatch reads SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_MEM_PER_CPU and the like.",
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="Units at a time; 0: one per core (on Slurm: as many as it allows).",
    )

    @classmethod
    def from_environment(cls) -> ExecutionEngine:
        """The engine that STEMMA_ENGINE and STEMMA_WORKERS name. Raises ConfigError for a value that is not valid."""
        name, workers = os.environ.get("STEMMA_ENGINE", "local"), os.environ.get("STEMMA_WORKERS", "0")
        try:
            return cls(name=cast(EngineName, name), workers=int(workers))
        except ValueError:  # pydantic's is one too
            raise ConfigError(
                f"STEMMA_ENGINE={name} STEMMA_WORKERS={workers}: the engine is local, ray or slurm, and workers is a "
                "number from 0 (one per core)."
            ) from None

    def settings(self) -> dict[str, Any]:
        """The arguments of corpus.clean.clean_crawl that choose where it runs."""
        return {"engine": self.name, "workers": self.workers or None}
