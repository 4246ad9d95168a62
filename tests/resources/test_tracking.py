"""Every point arrives in MLflow exactly once, and no server can delay a run or lose it."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from resources.spool import Entry, entries
from resources.supervised import Supervised
from resources.tracking import MlflowTracker

CORPUS = "0123456789abcdef0123456789abcdef.dir"  # a DVC version: 36 characters, MLflow's limit
MODEL = "fedcba9876543210fedcba9876543210.dir"


def append(path: Path, first: int, last: int) -> None:
    """Points in the format of the trainer: two curves and one system metric."""
    with open(path, "a", encoding="utf-8") as file:
        for step in range(first, last):
            metrics = {"loss": 10 / (step + 1), "lr": 0.01, "system/cpu_utilization_percentage": 50.0}
            file.write(json.dumps({"t": 1_800_000_000 + step / 10, "step": step, "metrics": metrics}) + "\n")


def wait_for(what, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.05)
    return found


def history(tracker: MlflowTracker, run_id: str, name: str) -> list[int]:
    """Steps of all recorded points, duplicates included."""
    client = tracker.uploader().client
    return sorted(m.step for m in client.get_metric_history(run_id, name))


class Server:
    """A real MLflow server that can be killed and started again at the same address."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = root / "server.log"
        self._local = MlflowTracker(root=str(root), tracking_uri="sqlite:///mlflow.db")
        self._process: Supervised | None = None

    def start(self) -> None:
        argv, env = self._local.server_command(port=self.port)
        with open(self.log, "ab") as log:
            self._process = Supervised(argv, env=env, stdout=log.fileno(), stderr=log.fileno(), grace=3)
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def stop(self) -> None:
        self._process.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> MlflowTracker:
    return MlflowTracker(root=str(tmp_path_factory.mktemp("local")), tracking_uri="sqlite:///mlflow.db")


def remote(server: Server, root: Path) -> MlflowTracker:
    return MlflowTracker(root=str(root), tracking_uri=server.uri)


@pytest.fixture(params=["local", "server"])
def tracker(request, tmp_path) -> MlflowTracker:
    """A database file and a server must behave the same."""
    if request.param == "local":
        return request.getfixturevalue("local")
    return remote(request.getfixturevalue("server"), tmp_path)


def test_a_run_has_everything_that_was_recorded(tracker, tmp_path):
    weights = tmp_path / "data" / "rl_model"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "report.md").write_text("# Report")
    name = f"model_{tmp_path.name}"
    with tracker.start(
        "rl",
        "a run",
        {"depth": 4, "optim": {"lr": 0.01}},
        {"git.commit": "abc"},
        [("corpus", CORPUS, "data/c")],
    ) as run:
        append(run.metrics_path, 0, 2500)
        run.set_tags({"stemma.data_version": MODEL})
        run.log_metrics({"accuracy": 0.9, "bits/byte (held out), %": float("nan")}, step=7)
        run.log_artifact(tmp_path / "report.md", "reports")
        run.register_model(name, weights, alias="candidate", tags={"stemma.data_version": MODEL})
        assert run.run_id
    client = tracker.uploader().client
    seen = client.get_run(run.run_id)
    assert seen.info.status == "FINISHED" and seen.info.run_name == "a run"
    assert seen.data.params == {"depth": "4", "optim.lr": "0.01"}
    assert seen.data.tags["git.commit"] == "abc" and seen.data.tags["stemma.run_key"] == run.key
    assert seen.data.metrics["accuracy"] == 0.9 and "bits/byte _held out__ _" in seen.data.metrics
    for curve in ("loss", "system/cpu_utilization_percentage"):
        assert history(tracker, run.run_id, curve) == list(range(2500))
    assert [a.path for a in client.list_artifacts(run.run_id, "reports")] == ["reports/report.md"]
    version = client.get_model_version_by_alias(name, "candidate")
    assert version.run_id == run.run_id and version.tags["stemma.data_version"] == MODEL
    assert version.tags["stemma.folder"] == str(weights)
    assert not entries(tracker.spool_path())


def test_runs_are_found_by_the_version_they_made_or_used(tracker):
    made, used = "a" * 32 + ".dir", "b" * 32 + ".dir"
    with tracker.start("base", "maker", datasets=[("corpus", used, "data/c")]) as run:
        run.set_tags({"stemma.data_version": made})
    assert [(r["run_id"], r["role"]) for r in tracker.find_runs(made) if r["run_id"] == run.run_id] == [
        (run.run_id, "made")
    ]
    (found,) = [r for r in tracker.find_runs(used) if r["run_id"] == run.run_id]
    assert found["role"] == "used" and found["datasets"] == {"corpus": used}
    assert tracker.find_runs("c" * 32) == []


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")], ids=["failure", "interrupt"]
)
def test_a_run_that_raises_ends_with_the_matching_status(local, error, status):
    with pytest.raises(error), local.start("base", "fails") as run:
        raise error("no")
    assert local.uploader().client.get_run(run.run_id).info.status == status


def test_a_server_killed_during_a_run_gets_every_point_once_after_its_restart(server, tmp_path):
    tracker = remote(server, tmp_path)
    with tracker.start("base", "interrupted") as run:
        append(run.metrics_path, 0, 700)
        wait_for(lambda: run._entry.sent().metrics > 0)
        server.kill()
        append(run.metrics_path, 700, 1500)
        run.set_tags({"late": "yes"})
    assert len(entries(tracker.spool_path())) == 1  # nothing was lost
    server.start()
    assert tracker.replay() == (1, 0)
    assert history(tracker, run.run_id, "loss") == list(range(1500))
    seen = tracker.uploader().client.get_run(run.run_id)
    assert (seen.info.status, seen.data.tags["late"]) == ("FINISHED", "yes")
    assert tracker.replay() == (0, 0)


def test_what_was_sent_but_not_acknowledged_is_not_sent_twice(tracker, tmp_path):
    """As after a crash between the server's commit and our acknowledgement: all is sent again, nothing twice."""
    entry = Entry.create(tracker.spool_path(), "again")
    entry.append(
        op="start",
        experiment="again",
        name="again",
        params={"a": "1"},
        tags={},
        datasets=[["c", CORPUS, "d"]],
    )
    entry.append(
        op="model", id=entry.key, name=f"again_{tmp_path.name}", folder="/m", alias="candidate", tags={}
    )
    append(entry.metrics_path, 0, 1200)
    uploader = tracker.uploader()
    uploader.upload(entry)
    first = entry.sent().run_id
    (entry.folder / "sent.json").unlink()
    append(entry.metrics_path, 1200, 1300)
    entry.append(op="end", status="FINISHED")
    assert uploader.upload(entry)
    assert entry.sent().run_id == first
    assert history(tracker, first, "loss") == list(range(1300))
    assert len(uploader.client.get_run(first).inputs.dataset_inputs) == 1
    assert len(uploader.client.search_model_versions(f"name = 'again_{tmp_path.name}'")) == 1
    entry.close()


class BlackHole:
    """A server that accepts connections and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self._held.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()
        for held in self._held:
            held.close()


RUN = textwrap.dedent("""
    import json, sys, time
    from pathlib import Path
    from resources.tracking import MlflowTracker
    tracker = MlflowTracker(root=sys.argv[1], tracking_uri=sys.argv[2])
    with tracker.start("base", "unheard") as run:
        with open(run.metrics_path, "a") as file:
            for step in range(100):
                line = {"t": 1800000000 + step, "step": step, "metrics": {"loss": 1.0}}
                print(json.dumps(line), file=file, flush=True)
        run.set_tags({"a": "b"})
        if len(sys.argv) > 3:
            print("ready", flush=True)
            time.sleep(600)
""")


def test_a_server_that_hangs_delays_nothing_and_loses_nothing(tmp_path, root, server):
    hole = BlackHole()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), hole.uri],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,  # MLflow alone would wait 120 s for each of its calls
    )
    hole.close()
    assert done.returncode == 0, done.stderr
    assert "stemma sync" in done.stderr and "Nothing is lost" in done.stderr
    tracker = remote(server, tmp_path)
    assert tracker.replay() == (1, 0)
    (run,) = tracker.uploader().client.search_runs(
        [tracker.uploader().client.get_experiment_by_name("base").experiment_id], "run_name = 'unheard'"
    )
    assert history(tracker, run.info.run_id, "loss") == list(range(100))


def test_a_dead_server_costs_one_warning_at_the_end(tmp_path, caplog):
    tracker = MlflowTracker(root=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    with tracker.start("base", "alone") as run:
        append(run.metrics_path, 0, 10)
        assert run.run_id is None
    assert "stemma sync" in caplog.text
    assert tracker.replay() == (0, 1)
    with pytest.raises(ConnectionError):
        tracker.find_runs(MODEL)


def test_a_killed_process_leaves_a_run_that_ends_as_killed(tmp_path, root, local):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, local.root, "http://127.0.0.1:9", "wait"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    assert local.replay() == (0, 0)  # it is alive: its run is left to it
    process.kill()
    process.wait()
    (entry,) = entries(local.spool_path())
    assert local.replay() == (1, 0)
    client = local.uploader().client
    experiment = client.get_experiment_by_name("base").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`stemma.run_key` = '{entry.key}'")
    assert run.info.status == "KILLED"
    assert history(local, run.info.run_id, "loss") == list(range(100))


def test_the_next_run_sends_what_an_earlier_one_could_not(tmp_path):
    away = MlflowTracker(root=str(tmp_path), tracking_uri="http://127.0.0.1:9")
    with away.start("base", "earlier"):
        pass
    here = MlflowTracker(root=str(tmp_path), tracking_uri="sqlite:///mlflow.db")
    with here.start("base", "later"):
        wait_for(lambda: len(entries(here.spool_path())) == 1)
    client = here.uploader().client
    experiment = client.get_experiment_by_name("base").experiment_id
    assert {r.info.run_name for r in client.search_runs([experiment])} == {"earlier", "later"}


def test_an_alias_is_not_moved_back_by_a_run_that_arrives_late(local, tmp_path):
    away = MlflowTracker(root=local.root, tracking_uri="http://127.0.0.1:9")
    name = f"model_{tmp_path.name}"
    with away.start("base", "older") as run:
        run.register_model(name, tmp_path, alias="candidate")
    waiting = entries(local.spool_path())[0]
    assert waiting.try_lock()  # as if another machine's spool came late
    with local.start("base", "newer") as newer:
        newer.register_model(name, tmp_path, alias="candidate")
    waiting.lock.release()
    assert local.replay() == (1, 0)
    client = local.uploader().client
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    assert client.get_model_version_by_alias(name, "candidate").run_id == newer.run_id


def test_what_mlflow_rejects_permanently_is_kept_apart_and_the_rest_arrives(local):
    with local.start("base", "half refused", {"depth": 4}) as run:
        with open(run.metrics_path, "a") as file:
            file.write('{"t": 1, "step": 0, "metr\n')
        append(run.metrics_path, 0, 5)
        run._entry.append(op="model", id="x", name="", folder="/m", alias=None, tags={})  # no name
    assert history(local, run.run_id, "loss") == list(range(5))
    assert not entries(local.spool_path())
    refused = (local.spool_path() / "rejected" / run.key / "rejected.jsonl").read_text().splitlines()
    assert len(refused) == 2


def test_a_digest_that_mlflow_would_truncate_is_rejected_at_once(local):
    with pytest.raises(ValueError, match="36"):
        local.start("base", "x", datasets=[("corpus", "a" * 37, "d")])
    assert not entries(local.spool_path())


def test_importing_the_tracker_does_not_import_mlflow(root):
    code = "import sys, resources.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
