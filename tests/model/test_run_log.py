"""What a run reports: metrics, messages and results."""

import json

from model import system_metrics
from model.run_log import RunLog


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_json_object_a_line(tmp_path):
    with RunLog(tmp_path / "deep" / "metrics.jsonl") as log:
        log.log(1, loss=2.5, **{"system/cpu_utilization_percentage": 50})
        log.log(2, loss=2)
    first, second = lines(tmp_path / "deep" / "metrics.jsonl")
    assert first["step"] == 1
    assert first["metrics"] == {"loss": 2.5, "system/cpu_utilization_percentage": 50.0}
    assert second["t"] >= first["t"] > 1.6e9


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"t": 1, "step": 1, "metrics": {}}\n{"t": 2, "st')
    with RunLog(path) as log:
        log.log(2, loss=1.0)
    assert path.read_text().splitlines()[1] == '{"t": 2, "st'
    assert json.loads(path.read_text().splitlines()[2])["step"] == 2


def test_metrics_that_cannot_be_written_never_stop_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    log = RunLog(tmp_path / "file" / "metrics.jsonl", enabled=True)
    log.log(1, loss=1.0)
    log.log(2, loss=1.0)
    assert capsys.readouterr().err.count("Training goes on without metrics") == 1


def test_other_ranks_report_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    log = RunLog(tmp_path / "m.jsonl", tmp_path / "r.json")
    log.log(1, loss=1.0)
    log.message("hello")
    log.result(loss=1.0)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err


def test_system_metrics_bear_mlflows_names(tmp_path, monkeypatch):
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

    monkeypatch.setattr(system_metrics, "SYSTEM_METRICS_EVERY", 0.0)
    log = RunLog(tmp_path / "m.jsonl")
    log.log_system(1)
    log.log_system(2)
    (line,) = lines(tmp_path / "m.jsonl")
    theirs = set()
    for monitor in (CPUMonitor(), DiskMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.metrics}
    assert theirs <= set(line["metrics"])


def test_the_result_reaches_the_file_and_dagster(tmp_path):
    import dagster as dg

    script = tmp_path / "script.py"
    script.write_text(
        "from model.run_log import RunLog\n"
        f"with RunLog(result={str(tmp_path / 'result.json')!r}) as log:\n"
        "    log.message('half way')\n"
        "    log.result(loss=1.5)\n"
    )

    @dg.asset
    def model_asset(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient):
        import os
        import sys

        env = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = pipes.run(command=[sys.executable, str(script)], context=context, env=env)
        assert list(done.get_custom_messages()) == [{"result": {"loss": 1.5}}]
        return done.get_materialize_result()

    assert dg.materialize([model_asset], resources={"pipes": dg.PipesSubprocessClient()}).success
    assert json.loads((tmp_path / "result.json").read_text()) == {"loss": 1.5}
