"""The engines by name."""

from pathlib import Path

from core.errors import ConfigError
from corpus.engines.engine import Engine

DECIDES_NOTHING = "where the units run"

ENGINES = ("local", "ray", "slurm")


def choose_engine(engine: str | Engine, work: Path, workers: int | None = None) -> Engine:
    """The engine of that name; an Engine is returned as it is.

    `work`: a folder for the engine's own files, shared by all nodes. `workers`: units at a time (None: one a core; on
    Slurm no limit). Raises ConfigError for an unknown name or too few workers. Ray is imported only where it is chosen.
    """
    if not isinstance(engine, str):
        return engine
    if engine not in ENGINES:
        raise ConfigError(f"There is no engine '{engine}'. Choose one of: {', '.join(ENGINES)}.")
    if engine == "local":
        from corpus.engines.pool import LocalEngine

        return LocalEngine(workers)
    if workers is not None and workers < 1:
        raise ConfigError(f"The engine '{engine}' needs at least one worker; it was given {workers}.")
    if engine == "ray":
        from corpus.engines.ray_engine import RayEngine

        return RayEngine(workers)
    from corpus.engines.slurm import SlurmEngine

    return SlurmEngine(work / "slurm", workers)
