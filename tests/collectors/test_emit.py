import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from collectors.config import RunConfig, read_run
from collectors.cron import Cron
from collectors.emit import FileThere, emit_schedule, on_calendar
from collectors.errors import ScheduleMissing
from tests.collectors.runs import write_run

WEEKLY = '[schedule]\ncron = "30 22 1,15 * fri"\nwindow = "22:00-06:00"\ntimezone = "Europe/Berlin"\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = write_run(tmp_path / 'a "folder" of 100%', "http://127.0.0.1:8000", more=WEEKLY)
    path.write_text(path.read_text().replace("POTSTILL_CANARY_KEY", "A_KEY"))
    return path


def config(run: Path) -> RunConfig:
    return read_run(run)


def test_systemd_takes_the_unit_and_its_timer(run: Path, tmp_path: Path) -> None:
    service, timer = emit_schedule("systemd", run, config(run), out=tmp_path / "out")
    text = service.read_text()
    assert "KillMode=mixed" in text
    assert "EnvironmentFile=-" in text
    assert "Persistent=true" in timer.read_text()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for path in (service, timer):
        done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_systemd_means_the_times_that_cron_means() -> None:
    assert on_calendar(Cron.parse("0 22 * * *"), None) == ["*-*-* 22:00:00"]
    assert on_calendar(Cron.parse("*/30 8 * 1 0"), "UTC") == ["Sun *-01-* 08:00,30:00 UTC"]
    assert on_calendar(Cron.parse("5 4 1 * mon,tue"), None) == ["*-*-01 04:05:00", "Mon,Tue *-*-* 04:05:00"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for line in on_calendar(Cron.parse("*/30 8-10 1-7 jan,jul *"), "Europe/Berlin"):
        subprocess.run(["systemd-analyze", "calendar", line], check=True, capture_output=True)


def test_kubernetes_takes_the_manifest(run: Path, tmp_path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    [path] = emit_schedule("k8s", run, config(run), out=tmp_path / "out", image="registry.example/potstill:0.1")
    jobs = list(yaml.safe_load_all(path.read_text()))
    assert [job["spec"]["schedule"] for job in jobs] == ["30 22 1,15 * fri", "0 22 * * *"]
    for job in jobs:
        kubernetes_validate.validate(job, "1.33", strict=True)
        assert job["spec"]["timeZone"] == "Europe/Berlin"
        [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["potstill", "schedule", "--once", "run.toml"]
        assert container["env"][0]["name"] == "A_KEY"
    broken = jobs[0] | {"spec": jobs[0]["spec"] | {"schedule": 5}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


def test_a_manifest_needs_an_image(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ScheduleMissing, match="--image"):
        emit_schedule("k8s", run, config(run), out=tmp_path)


def test_the_dag_compiles_and_airflow_imports_it(run: Path, tmp_path: Path) -> None:
    [path] = emit_schedule("airflow", run, config(run), out=tmp_path / "out")
    code = compile(path.read_text(), str(path), "exec")
    pytest.importorskip("airflow", reason="Airflow is not installed")
    found: dict[str, object] = {}
    exec(code, found)
    assert {"potstill_run", "potstill_run_on"} <= found.keys()


def test_the_crontab_line_does_what_it_says(run: Path, tmp_path: Path) -> None:
    [path] = emit_schedule("cron", run, config(run), out=tmp_path / "out")
    zone, first, second = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert (zone, first[:17], second[:11]) == ("CRON_TZ=Europe/Berlin", "30 22 1,15 * fri ", "0 22 * * * ")
    command = first[17:].replace(r"\%", "%")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "run: not due now" in done.stderr or "A_KEY" in done.stderr, done.stderr


def test_a_file_that_says_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    emit_schedule("cron", run, config(run), out=tmp_path)
    [path] = emit_schedule("cron", run, config(run), out=tmp_path)
    path.write_text("mine")
    with pytest.raises(FileThere, match="remove it"):
        emit_schedule("cron", run, config(run), out=tmp_path)
    assert path.read_text() == "mine"


def test_a_window_that_cron_opens_needs_no_second_time(tmp_path: Path) -> None:
    more = '[schedule]\ncron = "0 22 * * *"\nwindow = "22:00-06:00"\n'
    run = write_run(tmp_path, "http://127.0.0.1:8000", more=more)
    [path] = emit_schedule("k8s", run, config(run), out=tmp_path, image="x")
    assert path.read_text().count("kind: CronJob") == 1
    assert "timeZone" not in path.read_text()
