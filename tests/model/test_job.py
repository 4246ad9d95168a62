"""What a script is started with, and what it leaves: configuration in, an output folder and an exit code out."""

import json
from dataclasses import dataclass

import pytest

from core.errors import ConfigError, RunError
from core.settings import read_settings
from model.job import read_job, run_main


@dataclass(frozen=True)
class Settings:
    depth: int = 4


def test_an_unknown_setting_is_refused_with_those_there_are():
    assert read_settings(Settings, {"depth": 2}, "base_model").depth == 2
    with pytest.raises(
        ConfigError, match=r"base_model: there is no setting called dept\. Did you mean depth\? It has: depth"
    ):
        read_settings(Settings, {"dept": 2}, "base_model")


def config_file(tmp_path, **config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return ["--config", str(path)]


def test_the_output_appears_by_rename_when_complete(tmp_path):
    job = read_job("test", config_file(tmp_path, out=str(tmp_path / "out")))
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "left by a killed run").touch()
    (job.fresh_partial() / "model").touch()
    assert not job.out.exists()
    job.publish()
    assert [p.name for p in job.out.iterdir()] == ["model"] and not job.partial.exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "needs out"),
        ({"out": "o", "parms": {}}, "does not know parms"),
        ({"out": "o"}, 'no input "tokenizer"'),
    ],
)
def test_a_wrong_configuration_is_a_sentence_and_exit_code_1(tmp_path, capsys, config, sentence):
    assert run_main("test", lambda job: job.input("tokenizer"), config_file(tmp_path, **config)) == 1
    assert sentence in capsys.readouterr().err


def test_known_failures_show_no_traceback(tmp_path, capsys):
    def full(job):
        raise OSError(28, "No space left on device", "data/x")

    def refused(job):
        raise RunError("Not today. Come back tomorrow.")

    argv = config_file(tmp_path, out="o")
    assert run_main("test", full, argv) == run_main("test", refused, argv) == 1
    stderr = capsys.readouterr().err
    assert "data/x: No space left on device. Free some disk space" in stderr and "Not today" in stderr
    assert "Traceback" not in stderr
