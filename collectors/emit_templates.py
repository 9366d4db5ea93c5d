"""What `collectors.emit` fills in, as the reader of the emitted file sees it: whole files, for one run each."""

CRONTAB = """\
# potstill: the standing run «{name}». Add these lines to a crontab: crontab -e
# Debian's cron does not know CRON_TZ and takes the machine's own time zone.
{zone}{lines}
"""

SERVICE = """\
# The standing run «{name}». Started by its timer; `systemctl start` starts it now if it is due.
{keys}[Unit]
Description=potstill run «{name}»
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
{environment}WorkingDirectory={folder}
ExecStart={command}
# 4: done in part, some answers were rejected or the budget is spent
SuccessExitStatus=4
# the run alone gets SIGTERM, so that its embedded teacher can still answer what is in flight
KillMode=mixed
TimeoutStopSec=120
"""

TIMER = """\
# cp potstill-{name}.* ~/.config/systemd/user/ && systemctl --user enable --now potstill-{name}.timer
[Unit]
Description=Times of the potstill run «{name}»

[Timer]
{calendars}
# what was missed while the machine was off is caught up once
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""

CRONJOB = """\
# The claim {base} holds the run file, its prompts and its table.
# Exit code 4, done in part (rejects, budget), shows as a failed job; nothing of it is lost.
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {name}
spec:
  schedule: {cron}
{zone}  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          terminationGracePeriodSeconds: 120
          containers:
            - name: potstill
              image: {image}
              workingDir: /data
              command: ["potstill", "schedule", "--once", {file}]
{env}              volumeMounts:
                - name: data
                  mountPath: /data
          volumes:
            - name: data
              persistentVolumeClaim:
                claimName: {base}
"""

CRONJOB_KEY = """\
                - name: {key}
                  valueFrom:
                    secretKeyRef:
                      name: {secret}
                      key: {key}
"""

AIRFLOW = '''\
"""The standing run «{name}» of potstill. Copy this file into Airflow's folder of DAGs."""

import pendulum

try:  # Airflow 3
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.operators.bash import BashOperator

ZONE = {zone!r} or pendulum.local_timezone()
# the second one is where its window opens: there a run that was cut off goes on
for number, cron in enumerate({times!r}):
    dag = DAG(
        dag_id={dag!r} if number == 0 else {dag!r} + "_on",
        schedule=cron,
        start_date=pendulum.datetime(2026, 1, 1, tz=ZONE),
        catchup=False,
        max_active_runs=1,
    )
    # exit code 4: done in part, some answers were rejected or the budget is spent
    BashOperator(task_id="collect", bash_command={command!r}, dag=dag)
    globals()[dag.dag_id] = dag
'''
