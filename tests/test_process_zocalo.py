"""dials.diffuse_process as a wrapper of zocalo: alone, and by zocalo.wrap over a RabbitMQ server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processing import OPTIONS, on_path, small_run
from helpers.rabbitmq import MISSING, rabbitmq

pytest.importorskip("zocalo", reason="THE WRAPPER FOR ZOCALO NOT TESTED: install zocalo (extra [zocalo])")

from dials_diffuse.pipeline.zocalo_wrapper import DiffuseProcessWrapper, Job, JobError

CHANNELS = (
    "starting",
    "updates",
    "success",
    "failure",
    "completed",
    "result-individual-file",
    "result-all-files",
    "verdict",
)


def recipe(parameters: dict) -> dict:
    """A step for the wrapper, and one step for each of its channels: a queue of that name."""
    steps = {str(i): {"queue": f"test.{name}"} for i, name in enumerate(CHANNELS, start=2)}
    output = {name: int(number) for number, name in zip(steps, CHANNELS)}
    return {
        "1": {"service": "wrapper", "queue": "test.jobs", "job_parameters": parameters, "output": output},
        **steps,
        "start": [[1, []]],
    }


class Recwrap:
    """As much of zocalo's wrapped recipe as wrappers use."""

    def __init__(self, parameters: dict):
        self.recipe_step, self.environment, self.sent = {"job_parameters": parameters}, {"ID": "1"}, []

    def send_to(self, channel, payload):
        json.dumps(payload)
        self.sent.append((channel, payload))

    def of(self, channel) -> list:
        return [payload for name, payload in self.sent if name == channel]


def wrapper(parameters: dict) -> DiffuseProcessWrapper:
    result = DiffuseProcessWrapper(environment={})
    result.set_recipe_wrapper(Recwrap(parameters))
    return result


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({}, r"diffuse_process\.input: nothing is given"),
        ({"diffuse_process": {"input": []}}, r"diffuse_process\.input: nothing is given"),
        ({"diffuse_process": "a.expt"}, "'a.expt' is no group of parameters"),
        ({"diffuse_process": {"input": "a.expt", "phil": ["output.prefix=x"]}}, "output.prefix=x: outputs go to"),
        ({"diffuse_process": {"input": "a.expt"}, "timeout": "soon"}, "timeout: 'soon' is no number of seconds"),
    ],
)
def test_unusable_parameters_fail_with_a_reason(parameters, said):
    with pytest.raises(JobError, match=said):
        Job.from_parameters(parameters)
    failing = wrapper(parameters)
    assert failing.run() is False
    failing.failure("Processing failed")
    (reason,) = failing.recwrap.of("failure")
    assert re.search(said, reason)


def test_parameters_as_recipes_give_them():
    job = Job.from_parameters({"diffuse_process": {"input": "run", "phil": {"nproc": 4}}, "timeout": "60"})
    assert job == Job(("run",), ("nproc=4",), Path(), None, 60.0)
    job = Job.from_parameters({"diffuse_process": {"input": ["a.expt", "a.refl"], "phil": "nproc=4"}})
    assert job == Job(("a.expt", "a.refl"), ("nproc=4",))


def test_program_that_fails_or_is_late_or_absent(tmp_path, monkeypatch):
    told = {"diffuse_process": {"input": "a.expt"}, "working_directory": str(tmp_path / "work")}
    programs = tmp_path / "programs"
    on_path(programs, """-c "import sys; sys.exit('dials.diffuse_process: a.expt: no such file')" """, monkeypatch)
    failing = wrapper(told)
    assert failing.run() is False
    failing.failure("Processing failed")
    assert failing.recwrap.of("failure") == ["dials.diffuse_process: a.expt: no such file"]

    on_path(programs, '-c "import time; time.sleep(60)"', monkeypatch)
    late, start = wrapper({**told, "timeout": 0.5}), time.monotonic()
    assert late.run() is False and time.monotonic() - start < 20
    late.failure()
    assert late.recwrap.of("failure") == [
        "dials.diffuse_process: not done after timeout=0.5 s; run the job again to go on"
    ]

    monkeypatch.setenv("PATH", str(tmp_path))
    absent = wrapper(told)
    assert absent.run() is False
    absent.failure()
    assert "no such program; load DIALS" in absent.recwrap.of("failure")[0]


@pytest.mark.skipif(bool(MISSING), reason=f"THE WRAPPER NOT RUN BY zocalo.wrap: {MISSING}")
def test_zocalo_wrap_over_rabbitmq(tmp_path, monkeypatch):
    import pika

    run = tmp_path / "run"
    run.mkdir()
    small_run(run)
    on_path(tmp_path / "programs", "-m dials_diffuse.cli.process", monkeypatch)
    folder, results = tmp_path / "work", tmp_path / "results"
    step = {
        "working_directory": str(folder),
        "results_directory": str(results),
        "diffuse_process": {
            "input": [str(run)],
            "phil": list(OPTIONS),
        },
    }
    message = {
        "recipe": recipe(step),
        "recipe-pointer": 1,
        "recipe-path": [],
        "environment": {"ID": "7"},
        "payload": [],
    }
    (tmp_path / "job.json").write_text(json.dumps(message))
    server = tmp_path / "server"
    server.mkdir()
    with rabbitmq(server) as port:
        connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
        channel = connection.channel()
        channel.exchange_declare("transient.status", exchange_type="fanout")
        for name in CHANNELS:
            channel.queue_declare(f"test.{name}")
        wrap = [sys.executable, "-c", "from zocalo.cli.wrap import run; run()"]
        told = ["--wrap", "dials.diffuse_process", "--recipewrapper", str(tmp_path / "job.json")]
        done = subprocess.run(
            [*wrap, *told, "--rabbit-host", "127.0.0.1", "--rabbit-port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "ZOCALO_CONFIG": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        got: dict = {name: [] for name in CHANNELS}
        for name in CHANNELS:
            while True:
                method, _, body = channel.basic_get(f"test.{name}", auto_ack=True)
                if method is None:
                    break
                received = json.loads(body)
                assert received["environment"] == {"ID": "7"}
                got[name].append(received["payload"])
        connection.close()
    assert got["success"] == ["Finished processing"] and not got["failure"]
    assert len(got["starting"]) == len(got["completed"]) == len(got["result-all-files"]) == 1
    (verdict,) = got["verdict"]
    record = json.loads((results / "dials.diffuse_process.json").read_text())
    assert verdict["verdict"] == record["verdict"] and verdict["n_images_used"] == 10
    files = {item["file_name"]: item for item in got["result-individual-file"]}
    assert set(files) == set(os.listdir(results)) == {Path(p).name for p in got["result-all-files"][0]["filelist"]}
    assert files["diffuse_merged.nxs"] == {
        "file_path": str(results.resolve()),
        "file_name": "diffuse_merged.nxs",
        "file_type": "Result",
        "importance_rank": 1,
    }
    assert {files[n]["file_type"] for n in ("diffuse_merged.png", "dials.diffuse_process.log")} == {"Graph", "Log"}
