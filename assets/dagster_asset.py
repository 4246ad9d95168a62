"""A stage as a Dagster asset: dependencies, code version and description come from dvc.yaml."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.materialize import RESOURCES, Materialization
from assets.stage import Stage
from core.errors import WorkspaceError
from resources.dvc_ledger import DvcLedger

OWNER = "team:stemma"
# The Launchpad's only setting: all others are in params.yaml, so that dvc.lock records each of them.
LAUNCHPAD = {
    "force": dg.Field(bool, default_value=False, description="Rebuild it even if nothing has changed.")
}


def as_asset(stage: Stage, ledger: DvcLedger, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """The Dagster asset of a stage. Raises WorkspaceError if dvc.yaml does not declare it."""
    if stage.name not in ledger.chain.assets:
        raise WorkspaceError(
            f"dvc.yaml: no stage '{stage.name}', though assets/{stage.name}.py has its body. Declare it."
        )
    declared = ledger.chain.partitions(stage.name)
    partitioned = declared[0].partition is not None
    code = stage.body.__code__

    @dg.asset(
        name=stage.name,
        deps=sorted({asset_of(path) for s in declared for path in s.data_deps}),
        group_name=stage.group,
        kinds={*stage.kinds, "dvc"},
        owners=[OWNER],
        description=f"{declared[0].desc}\n\n{inspect.cleandoc(stage.body.__doc__ or '')}",
        code_version=ledger.code_version(stage.name),
        partitions_def=partitions if partitioned else None,
        check_specs=[
            dg.AssetCheckSpec(name, asset=stage.name, description=meaning, blocking=True)
            for name, meaning in stage.checks.items()
        ],
        config_schema=LAUNCHPAD,
        output_required=False,
        pool=stage.pool,
        required_resource_keys=RESOURCES,
        metadata={
            "dagster/code_references": dg.CodeReferencesMetadataValue(
                code_references=[
                    _reference(code.co_filename, code.co_firstlineno, "the stage's body"),
                    _reference(str(ledger.root / "dvc.yaml"), 1, "its declaration"),
                ]
            )
        },
    )
    def compute(context: dg.AssetExecutionContext) -> Iterator[Any]:
        name = f"{stage.name}@{context.partition_key}" if partitioned else stage.name
        given: DvcLedger = context.resources.ledger
        yield from Materialization(
            stage=stage,
            declared=given.chain.stage(name),
            context=context,
            ledger=given,
            tracker=context.resources.tracker,
            launcher=context.resources.launcher,
            engine=context.resources.engine,
        ).run(force=context.op_execution_context.op_config["force"])

    return compute


def asset_of(path: str) -> str:
    """Return the asset whose folder a path is: 'data/cleaned_corpus/sample' -> 'cleaned_corpus'."""
    return Path(path).parts[1]


def _reference(path: str, line: int, label: str) -> dg.LocalFileCodeReference:
    return dg.LocalFileCodeReference(file_path=path, line_number=line, label=label)
