"""The same standing run for another scheduler: crontab lines, a systemd unit and timer, a Kubernetes CronJob or an
Airflow DAG. All of them call `potstill schedule --once`, which knows by itself when a run is due and when to drain."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collectors.config import RunConfig
from collectors.cron import WEEKDAYS, Cron, ScheduleSettings, Window
from collectors.emit_templates import AIRFLOW, CRONJOB, CRONJOB_KEY, CRONTAB, SERVICE, TIMER
from collectors.errors import CollectError, ScheduleMissing


class FileThere(CollectError):
    """A file of the same name is there already and says something else."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What every form of it is made of. `times` are cron expressions."""

    name: str
    path: Path
    settings: ScheduleSettings
    times: tuple[str, ...]
    key_names: tuple[str, ...]
    image: str

    @property
    def command(self) -> list[str]:
        """What is typed, with the whole path of the program that runs now."""
        program = Path(sys.executable).with_name("potstill")
        start = [str(program)] if program.is_file() else [sys.executable, "-m", "potstill"]
        return [*start, "schedule", "--once", str(self.path)]


def emit_schedule(kind: str, path: Path, config: RunConfig, *, out: Path, image: str = "") -> list[Path]:
    """Write the files that make `kind` (cron, systemd, k8s or airflow) run the file at `path`; → their paths.

    image: what holds potstill, for k8s. Raises ScheduleMissing, and FileThere rather than to write over another file.
    """
    if config.schedule is None:
        raise ScheduleMissing(f"{config.name} has no schedule: add [schedule] with cron to {path}.")
    keys = tuple(sorted({one.api_key_env for one in config.pool if one.api_key_env is not None}))
    run = _Run(config.name, path.absolute(), config.schedule, _times(config.schedule), keys, image)
    files = _FORMS[kind](run)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        target = out / name
        if target.exists() and target.read_text("utf-8") != text:
            raise FileThere(f"{target} is there already and says something else: remove it, or give another --out.")
        target.write_text(text, "utf-8")
    return [out / name for name in files]


def _times(settings: ScheduleSettings) -> tuple[str, ...]:
    """The cron expression, and each opening of the window where that is another time: there a drained run goes on."""
    cron = Cron.parse(settings.cron)
    if settings.window is None:
        return (cron.text,)
    opens = Window.parse(settings.window).opens
    daily = cron.days is None and cron.months is None and cron.weekdays is None
    clock = (cron.hours is None or opens.hour in cron.hours) and (cron.minutes is None or opens.minute in cron.minutes)
    return (cron.text,) if daily and clock else (cron.text, f"{opens.minute} {opens.hour} * * *")


def _crontab(run: _Run) -> dict[str, str]:
    command = f"cd {shlex.quote(str(run.path.parent))} && {shlex.join(run.command)}".replace("%", r"\%")
    zone = f"CRON_TZ={run.settings.timezone}\n" if run.settings.timezone else ""
    lines = "\n".join(f"{time} {command}" for time in run.times)
    return {f"potstill-{run.name}.cron": CRONTAB.format(name=run.name, lines=lines, zone=zone)}


def _systemd(run: _Run) -> dict[str, str]:
    calendars = [line for time in run.times for line in on_calendar(Cron.parse(time), run.settings.timezone)]
    environment = f"EnvironmentFile=-{_specifier(str(run.path.with_suffix('.env')))}\n" if run.key_names else ""
    service = SERVICE.format(
        name=_specifier(run.name),
        keys=f"# It sets {', '.join(run.key_names)}.\n" if run.key_names else "",
        environment=environment,
        folder=_specifier(str(run.path.parent)),
        command=" ".join(_systemd_word(word) for word in run.command),
    )
    timer = TIMER.format(name=_specifier(run.name), calendars="\n".join(f"OnCalendar={one}" for one in calendars))
    return {f"potstill-{run.name}.service": service, f"potstill-{run.name}.timer": timer}


def on_calendar(cron: Cron, timezone: str | None) -> list[str]:
    """The expression in the words of systemd.time(7): two lines where either day is enough."""
    names = [] if cron.weekdays is None else [WEEKDAYS[day].capitalize() for day in cron.weekdays]
    clock = f"{_starred(cron.hours)}:{_starred(cron.minutes)}:00" + (f" {timezone}" if timezone else "")
    weekly = f"{','.join(names)} " if names else ""
    by_day = f"*-{_starred(cron.months)}-{_starred(cron.days)} {clock}"
    if cron.either_day:
        return [by_day, f"{weekly}*-{_starred(cron.months)}-* {clock}"]
    return [weekly + by_day]


def _starred(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02}" for value in values)


def _specifier(text: str) -> str:
    return text.replace("%", "%%")


def _systemd_word(word: str) -> str:
    """One word of ExecStart: quotes, backslashes, specifiers and variables stand for themselves."""
    escaped = _specifier(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"' if escaped != word or re.search(r"[\s']", word) else word


def _kubernetes(run: _Run) -> dict[str, str]:
    if not run.image:
        raise ScheduleMissing("A CronJob needs an image that holds potstill: give --image REGISTRY/NAME:TAG.")
    base = re.sub(r"[^a-z0-9]+", "-", f"potstill-{run.name}".lower())[:48].strip("-")
    keys = "".join(CRONJOB_KEY.format(key=json.dumps(key), secret=json.dumps(base)) for key in run.key_names)
    zone = f"  timeZone: {json.dumps(run.settings.timezone)}\n" if run.settings.timezone else ""
    jobs = [
        CRONJOB.format(
            name=base if number == 0 else f"{base}-on",
            base=base,
            cron=json.dumps(time),
            zone=zone,
            image=json.dumps(run.image),
            file=json.dumps(run.path.name),
            env=f"              env:\n{keys}" if keys else "",
        )
        for number, time in enumerate(run.times)
    ]
    return {f"potstill-{run.name}.yaml": "---\n".join(jobs)}


def _airflow(run: _Run) -> dict[str, str]:
    command = f"cd {shlex.quote(str(run.path.parent))} && {shlex.join(run.command)} || [ $? -eq 4 ]"
    if "{" in command:
        command = f"{{% raw %}}{command}{{% endraw %}}"  # Airflow fills templates in it
    text = AIRFLOW.format(
        name=run.name, zone=run.settings.timezone or "", command=command, times=list(run.times),
        dag="potstill_" + re.sub(r"[^A-Za-z0-9_]", "_", run.name),
    )  # fmt: skip
    return {f"potstill_{re.sub(r'[^A-Za-z0-9_]', '_', run.name)}.py": text}


_FORMS: dict[str, Callable[[_Run], dict[str, str]]] = {
    "cron": _crontab,
    "systemd": _systemd,
    "k8s": _kubernetes,
    "airflow": _airflow,
}
