"""The commands and their options. What they do is in the modules beside this one."""

from __future__ import annotations

import sys
from typing import Any

import click

from asyncflow.cli.place import here, somewhere

EXIT_CODES = """
\b
Exit codes: 0 completed, 1 failed, 2 wrong usage, 3 crashed, 4 cancelled,
130 interrupted by Ctrl-C (can be resumed), 143 the same by SIGTERM.
"""

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_quiet = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
_params = click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE",
    help="A parameter to replace: JSON or text; @FILE reads a file.",
)  # fmt: skip


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run flows, look at them, and go on with what was cut off."""


@cli.command(epilog=EXIT_CODES)
@click.argument("target", metavar="FILE_OR_MODULE:FLOW")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE",
    help="A parameter: JSON or text; @FILE reads a JSON file, or a text file as a list of lines.",
)  # fmt: skip
@click.option("--params-file", metavar="FILE", help="A JSON file with parameters by name.")
@click.option("--name", "run_name", help="What to call the run.")
@click.option("--tag", "tags", multiple=True, help="A tag for the run; may be repeated.")
@click.option("--idempotency-key", help="The same key gives the same run.")
@click.option(
    "--durability", type=click.Choice(["full", "strict", "relaxed", "off"]), default="strict",
    show_default=True, help="What a crash may cost.",
)  # fmt: skip
@here
@_json
@_quiet
def run(**options: Any) -> None:
    """Run a flow to its end.

    Ctrl-C leaves the run Interrupted and prints the command that resumes it; pressed twice, it
    exits at once.
    """
    from asyncflow.cli.running import run_flow

    sys.exit(run_flow(**options))


@cli.command(epilog=EXIT_CODES)
@click.argument("run_id")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE",
    help="A parameter that was not stored because it is a secret.",
)  # fmt: skip
@somewhere
@_json
@_quiet
def resume(**options: Any) -> None:
    """Go on with a run that failed, crashed, was cancelled or interrupted.

    What completed is kept; what had not ended, or ended the run, runs again.
    """
    from asyncflow.cli.running import resume_run

    sys.exit(resume_run(**options))


@cli.command(epilog=EXIT_CODES)
@here
@_json
@_quiet
def recover(**options: Any) -> None:
    """Take over all runs that dead processes left, and run them to their end."""
    from asyncflow.cli.running import recover_runs

    sys.exit(recover_runs(**options))


@cli.command(epilog=EXIT_CODES)
@click.argument("run_id")
@click.option(
    "--from", "from_task", metavar="TASK",
    help="A task's name, or the id of a task run: it and what was called after it run again.",
)  # fmt: skip
@click.option(
    "--result", "results", multiple=True, metavar="NAME=JSON",
    help="A recorded result to replace, by the name of a task or of a task run (fetch-3), or by"
    " its id; @FILE reads a JSON file. May be repeated.",
)  # fmt: skip
@_params
@somewhere
@_json
@_quiet
def fork(**options: Any) -> None:
    """Run a run again under a new id, with what it has recorded.

    What is called with the same inputs as before is answered from the record.
    """
    from asyncflow.cli.repairing import fork_run

    sys.exit(fork_run(**options))


@cli.command(epilog=EXIT_CODES)
@click.argument("run_id")
@_params
@somewhere
@_json
@_quiet
def rerun(**options: Any) -> None:
    """Run the flow of a run again from the start, under a new id."""
    from asyncflow.cli.repairing import rerun_run

    sys.exit(rerun_run(**options))


@cli.command()
@click.argument("run_id")
@somewhere
@_json
def cancel(**options: Any) -> None:
    """Cancel a run, with everything below it, in whatever process it runs."""
    from asyncflow.cli.looking import cancel_run

    sys.exit(cancel_run(**options))


@cli.group()
def runs() -> None:
    """List runs, and look into them."""


@runs.command("ls")
@click.option("--state", "states", multiple=True, help="Only these states; may be repeated.")
@click.option("--flow", help="Only runs of this flow.")
@click.option("--tag", "tags", multiple=True, help="Only runs with this tag; may be repeated.")
@click.option("--all", "children", is_flag=True, help="Child runs too.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
@somewhere
@_json
def runs_ls(**options: Any) -> None:
    """List runs, newest first."""
    from asyncflow.cli.looking import list_runs

    sys.exit(list_runs(**options))


@runs.command("show")
@click.argument("run_id")
@click.option("--tasks", "all_tasks", is_flag=True, help="Every task run, not grouped.")
@somewhere
@_json
def runs_show(**options: Any) -> None:
    """Show a run as a tree: its tasks and child runs with durations and errors.

    RUN_ID may be the beginning of an id, or "last".
    """
    from asyncflow.cli.looking import show_run

    sys.exit(show_run(**options))


@runs.command("logs")
@click.argument("run_id")
@click.option("--level", default="DEBUG", show_default=True, help="The lowest level to show.")
@click.option("--search", default="", help="Only lines with this text.")
@somewhere
@_json
def runs_logs(**options: Any) -> None:
    """Print the log lines of a run."""
    from asyncflow.cli.looking import print_logs

    sys.exit(print_logs(**options))


@runs.command("artifacts")
@click.argument("run_id")
@somewhere
@_json
def runs_artifacts(**options: Any) -> None:
    """Print what a run shows: texts, tables, links, pictures and progress."""
    from asyncflow.cli.looking import print_artifacts

    sys.exit(print_artifacts(**options))


@runs.command("watch", epilog=EXIT_CODES)
@click.argument("run_id")
@somewhere
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON at each change.")
def runs_watch(**options: Any) -> None:
    """Follow a run of any process until it ends; exits with its code."""
    from asyncflow.cli.looking import watch_run

    sys.exit(watch_run(**options))


@runs.command("delete")
@click.argument("run_ids", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@somewhere
@_json
def runs_delete(**options: Any) -> None:
    """Delete ended runs, with their tasks, logs, results and child runs."""
    from asyncflow.cli.looking import delete_runs

    sys.exit(delete_runs(**options))


@runs.command("answer")
@click.argument("run_id")
@click.option("--data", metavar="JSON", help="The whole answer.")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE",
    help="A field of the answer: JSON or text; may be repeated.",
)  # fmt: skip
@somewhere
@_json
def runs_answer(**options: Any) -> None:
    """Answer a run that is paused and waits for input; it is checked before it is accepted."""
    from asyncflow.cli.repairing import answer_run

    sys.exit(answer_run(**options))


@runs.command("export")
@click.argument("run_id")
@click.option("--out", metavar="FILE", help="By default RUN_ID.run.gz; never overwritten.")
@here
@_json
def runs_export(**options: Any) -> None:
    """Write a run, with the runs below it, to one file, while others use the database."""
    from asyncflow.cli.moving import export_run

    sys.exit(export_run(**options))


@runs.command("import")
@click.argument("file")
@click.option("--new-id", is_flag=True, help="Give the run another id.")
@click.option(
    "--allow-pickle", is_flag=True,
    help="Keep results that are pickles, which run code when they are read.",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(1), metavar="N",
    help="What the file may expand to; by default 2 GiB.",
)  # fmt: skip
@here
@_json
def runs_import(**options: Any) -> None:
    """Add the run in a file that `runs export` wrote: all of it, or nothing.

    It keeps its id. One that had not ended waits for `asyncflow resume`.
    """
    from asyncflow.cli.moving import import_run

    sys.exit(import_run(**options))


@runs.command("diff")
@click.argument("first")
@click.argument("second")
@here
@_json
def runs_diff(**options: Any) -> None:
    """Say where two runs differ. Exits with 0 where they do not, with 1 where they do."""
    from asyncflow.cli.repairing import diff_runs

    sys.exit(diff_runs(**options))


@cli.group()
def db() -> None:
    """Check, copy, thin out and measure a database."""


@db.command("migrate")
@here
@_json
def db_migrate(**options: Any) -> None:
    """Bring a database to today's schema; a backup is made before."""
    from asyncflow.cli.database import migrate

    sys.exit(migrate(**options))


@db.command("check")
@here
@_json
def db_check(**options: Any) -> None:
    """Look for damage in the database and its result files. Exits with 1 where there is some."""
    from asyncflow.cli.database import check

    sys.exit(check(**options))


@db.command("backup")
@click.argument("target", metavar="FILE")
@here
@_json
def db_backup(**options: Any) -> None:
    """Copy the database as it is at one moment, while others use it."""
    from asyncflow.cli.database import backup

    sys.exit(backup(**options))


@db.command("prune")
@click.option("--older-than", default="30d", show_default=True, help="Age: 30d, 12h, 90m, ...")
@click.option("--flow", help="Only runs of this flow.")
@click.option("--keep-last", default=0, type=click.IntRange(0), help="Keep so many of each flow.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@here
@_json
def db_prune(**options: Any) -> None:
    """Remove runs that ended long ago, with all that belongs to them."""
    from asyncflow.cli.database import prune

    sys.exit(prune(**options))


@db.command("vacuum")
@here
@_json
def db_vacuum(**options: Any) -> None:
    """Give freed space back to the disk; others wait meanwhile."""
    from asyncflow.cli.database import vacuum

    sys.exit(vacuum(**options))


@db.command("stats")
@here
@_json
def db_stats(**options: Any) -> None:
    """Sizes and counts."""
    from asyncflow.cli.database import stats

    sys.exit(stats(**options))


@cli.command(epilog=EXIT_CODES)
@click.argument("targets", metavar="[FILE_OR_MODULE[:NAME]]...", nargs=-1)
@click.option("--cron", multiple=True, metavar="EXPRESSION", help="When a flow runs.")
@click.option("--interval", type=float, metavar="SECONDS", help="How often a flow runs.")
@click.option("--timezone", "--tz", metavar="ZONE", help="Of --cron; by default UTC.")
@click.option("--name", metavar="NAME", help="What to call the deployment of a flow.")
@click.option(
    "--config", metavar="FILE",
    help="What to declare; by default asyncflow.toml or pyproject.toml, if there is one.",
)  # fmt: skip
@_params
@here
@_quiet
def serve(**options: Any) -> None:
    """Run deployments when they are due, until Ctrl-C or SIGTERM.

    A target is a flow, or a file with deployments. Without, what asyncflow.toml or pyproject.toml
    declares is run, and all else that the database has.
    """
    from asyncflow.cli.planning import serve_targets

    sys.exit(serve_targets(**options))


@cli.group()
def deployments() -> None:
    """Flows with schedules and policies, under a name."""


@deployments.command("ls")
@somewhere
@_json
def deployments_ls(**options: Any) -> None:
    """List them, with what is next."""
    from asyncflow.cli.planning import list_deployments

    sys.exit(list_deployments(**options))


@deployments.command("show")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Ticks.")
@somewhere
@_json
def deployments_show(**options: Any) -> None:
    """Look into one: schedules, next ticks, and what became of the last."""
    from asyncflow.cli.planning import show_deployment

    sys.exit(show_deployment(**options))


@deployments.command("ticks")
@click.argument("name")
@click.option(
    "--state", "states", multiple=True,
    type=click.Choice(["run", "queued", "skipped", "missed"], case_sensitive=False),
    help="Only these; may be repeated.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@somewhere
@_json
def deployments_ticks(**options: Any) -> None:
    """What became of its ticks, newest first, and why."""
    from asyncflow.cli.planning import list_ticks

    sys.exit(list_ticks(**options))


@deployments.command("run", epilog=EXIT_CODES)
@click.argument("name")
@_params
@click.option("--name", "run_name", help="What to call the run.")
@click.option("--idempotency-key", help="The same key gives the same run.")
@somewhere
@_json
@_quiet
def deployments_run(**options: Any) -> None:
    """Run one now, here, to its end."""
    from asyncflow.cli.planning import run_deployment

    sys.exit(run_deployment(**options))


@deployments.command("pause")
@click.argument("name")
@click.option("--schedule", help="Only this one.")
@somewhere
@_json
def deployments_pause(**options: Any) -> None:
    """Let it, or one of its schedules, start no runs by itself."""
    from asyncflow.cli.planning import pause_deployment

    sys.exit(pause_deployment(paused=True, **options))


@deployments.command("resume")
@click.argument("name")
@click.option("--schedule", help="Only this one.")
@somewhere
@_json
def deployments_resume(**options: Any) -> None:
    """Let it start runs again. What has passed meanwhile does not run."""
    from asyncflow.cli.planning import pause_deployment

    sys.exit(pause_deployment(paused=False, **options))


@deployments.command("delete")
@click.argument("name")
@somewhere
@_json
def deployments_delete(**options: Any) -> None:
    """Forget it and its schedules; its runs stay."""
    from asyncflow.cli.planning import remove_deployment

    sys.exit(remove_deployment(**options))


@deployments.command("backfill", epilog=EXIT_CODES)
@click.argument("name")
@click.option("--start", required=True, metavar="DATE", help="The first instant.")
@click.option("--end", required=True, metavar="DATE", help="The first instant after it.")
@click.option("--schedule", help="Which, where there are several.")
@click.option(
    "--max-concurrency", type=click.IntRange(1), default=1, show_default=True,
    help="Runs at once.",
)  # fmt: skip
@here
@_json
@_quiet
def deployments_backfill(**options: Any) -> None:
    """Run the ticks of the past that have not run, here, to their end."""
    from asyncflow.cli.planning import backfill_deployment

    sys.exit(backfill_deployment(**options))


@cli.group()
def automations() -> None:
    """What is done by itself when something happens, or does not."""


@automations.command("ls")
@somewhere
@_json
def automations_ls(**options: Any) -> None:
    """List them."""
    from asyncflow.cli.automations import list_automations

    sys.exit(list_automations(**options))


@automations.command("show")
@click.argument("name")
@somewhere
@_json
def automations_show(**options: Any) -> None:
    """Look into one: trigger, actions, and what it did last."""
    from asyncflow.cli.automations import show_automation

    sys.exit(show_automation(**options))


@automations.command("test")
@click.argument("name")
@click.option("--since", metavar="DATE", help="Only events from then on.")
@click.option("--config", metavar="FILE", help="An automation of this file, before it is stored.")
@here
@_json
def automations_test(**options: Any) -> None:
    """When would it have fired on the stored events? Nothing is done."""
    from asyncflow.cli.automations import test_automation

    sys.exit(test_automation(**options))


@automations.command("deliveries")
@click.option("--automation", metavar="NAME", help="Only of this one.")
@click.option("--run", "run_id", metavar="RUN", help="Only what is about this run.")
@click.option(
    "--state", "states", multiple=True,
    type=click.Choice(["pending", "sending", "delivered", "failed", "suppressed"]),
    help="Only these; may be repeated.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@somewhere
@_json
def automations_deliveries(**options: Any) -> None:
    """What they have to do and have done, newest first."""
    from asyncflow.cli.automations import list_deliveries

    sys.exit(list_deliveries(**options))


@automations.command("enable")
@click.argument("name")
@somewhere
@_json
def automations_enable(**options: Any) -> None:
    """Switch one on. What happened while it was off does not count."""
    from asyncflow.cli.automations import enable_automation

    sys.exit(enable_automation(enabled=True, **options))


@automations.command("disable")
@click.argument("name")
@somewhere
@_json
def automations_disable(**options: Any) -> None:
    """Switch one off."""
    from asyncflow.cli.automations import enable_automation

    sys.exit(enable_automation(enabled=False, **options))


@automations.command("delete")
@click.argument("name")
@somewhere
@_json
def automations_delete(**options: Any) -> None:
    """Forget one."""
    from asyncflow.cli.automations import remove_automation

    sys.exit(remove_automation(**options))


@automations.command("send-test")
@click.argument("channel")
@click.option("--config", metavar="FILE", help="Where the channel is; by default asyncflow.toml.")
@here
@_json
def automations_send_test(**options: Any) -> None:
    """Send a test message through a channel of asyncflow.toml or pyproject.toml."""
    from asyncflow.cli.automations import send_test

    sys.exit(send_test(**options))


@cli.group()
def events() -> None:
    """What happened, and what runs wait for."""


def _event_options(command: Any) -> Any:
    for option in (
        click.option(
            "--kind", "kinds", multiple=True, metavar="KIND",
            help="Only these, such as flow-run.Failed, or task-run.*; may be repeated.",
        ),
        click.option("--run", "run_id", metavar="RUN", help="Only what is about this run."),
        click.option("--since", metavar="DATE", help="Only from then on."),
        somewhere,
        _json,
    ):  # fmt: skip
        command = option(command)
    return command


@events.command("ls")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@_event_options
def events_ls(**options: Any) -> None:
    """List the newest."""
    from asyncflow.cli.planning import list_events

    sys.exit(list_events(watch=False, **options))


@events.command("watch")
@_event_options
def events_watch(**options: Any) -> None:
    """Print them as they come, until Ctrl-C."""
    from asyncflow.cli.planning import list_events

    sys.exit(list_events(watch=True, limit=1000, **options))


@events.command("send")
@click.argument("name")
@click.option("--payload", metavar="JSON", help="What the run gets.")
@click.option("--run", "run_id", help="The run that shall get it; without, all runs.")
@here
@_json
def events_send(**options: Any) -> None:
    """Send an event to the runs that wait for it, or will."""
    from asyncflow.cli.repairing import send_event

    sys.exit(send_event(**options))


@cli.group()
def schedules() -> None:
    """Look at when things are to happen."""


@schedules.command("ls")
@somewhere
@_json
def schedules_ls(**options: Any) -> None:
    """List the schedules of all deployments, with what is next and what came of the last."""
    from asyncflow.cli.planning import list_schedules

    sys.exit(list_schedules(**options))


@schedules.command("preview")
@click.argument("cron", required=False)
@click.option("--interval", metavar="SECONDS", type=float, help="Instants of equal distance.")
@click.option("--rrule", metavar="RULE", help="A recurrence rule: FREQ=WEEKLY;BYDAY=MO.")
@click.option("--tz", default="UTC", show_default=True, help="The time zone: Europe/Berlin.")
@click.option(
    "--start", metavar="TIME", help="Where the rule begins, or what the interval is anchored to."
)
@click.option("--day-and", is_flag=True, help="Both the day of the month and of the week must fit.")
@click.option("--from", "begin", metavar="TIME", help="Show what comes after; by default now.")
@click.option("-n", "n", default=10, show_default=True, type=click.IntRange(1, 10_000))
@_json
def schedules_preview(**options: Any) -> None:
    """Show the next ticks of a schedule, and what changes of the clocks do to them.

    CRON is an expression such as "0 9 * * 1-5". Times are ISO 8601; without an offset they are on
    the clock of --tz.
    """
    from asyncflow.cli.scheduling import preview

    sys.exit(preview(**options))


@cli.group()
def limits() -> None:
    """Named limits, which hold for all engines on a database."""


@limits.command("ls")
@somewhere
@_json
def limits_ls(**options: Any) -> None:
    """List them, with how much of each is in use, and by which engines."""
    from asyncflow.cli.limits import list_limits

    sys.exit(list_limits(**options))


@limits.command("set")
@click.argument("name")
@click.argument("limit", type=click.FloatRange(0))
@click.option(
    "--period",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Makes it a rate: so many starts in so many seconds.",
)
@click.option("--burst", type=click.IntRange(1), help="Starts that a rate may save up.")
@somewhere
@_json
def limits_set(**options: Any) -> None:
    """Set one for all engines; 0 pauses. "tag:NAME" limits all tasks with a tag."""
    from asyncflow.cli.limits import set_limit

    sys.exit(set_limit(**options))


@limits.command("lift")
@click.argument("name")
@somewhere
@_json
def limits_lift(**options: Any) -> None:
    """Lift one."""
    from asyncflow.cli.limits import lift_limit

    sys.exit(lift_limit(**options))


@cli.group()
def server() -> None:
    """The dashboard and its REST API."""


@server.command("start")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65_535), default=4200, show_default=True)
@click.option(
    "--token", envvar="ASYNCFLOW_TOKEN", metavar="TOKEN",
    help="Of who may do everything, at least 16 characters; by default one is made.",
)  # fmt: skip
@click.option(
    "--read-token", envvar="ASYNCFLOW_READ_TOKEN", metavar="TOKEN", help="Of who may only look."
)
@click.option(
    "--host-name", "host_names", multiple=True, metavar="NAME",
    help="A name by which the server is called; may be repeated.",
)  # fmt: skip
@here
def server_start(**options: Any) -> None:
    """Show what a database has, and change it. What needs code of yours, `asyncflow serve` or your
    service is asked for.

    It runs no flows. An engine that does can serve the same dashboard itself:
    engine.serve_dashboard().
    """
    from asyncflow.cli.web import start_server

    sys.exit(start_server(**options))


@cli.group()
def variables() -> None:
    """Small values that flows and people read and set."""


@variables.command("ls")
@somewhere
@_json
def variables_ls(**options: Any) -> None:
    """List them."""
    from asyncflow.cli.variables import list_variables

    sys.exit(list_variables(**options))


@variables.command("get")
@click.argument("name")
@somewhere
@_json
def variables_get(**options: Any) -> None:
    """Print one: text as it is, all else as JSON."""
    from asyncflow.cli.variables import get_variable

    sys.exit(get_variable(**options))


@variables.command("set")
@click.argument("name")
@click.argument("value")
@somewhere
@_json
def variables_set(**options: Any) -> None:
    """Set one. VALUE is JSON, or else text; '"7"' is the text 7."""
    from asyncflow.cli.variables import set_variable

    sys.exit(set_variable(**options))


@variables.command("delete")
@click.argument("name")
@somewhere
@_json
def variables_delete(**options: Any) -> None:
    """Remove one."""
    from asyncflow.cli.variables import delete_variable

    sys.exit(delete_variable(**options))


@cli.command()
@_json
def version(as_json: bool) -> None:
    """Print the version."""
    from asyncflow import __version__
    from asyncflow.cli.output import print_json

    if as_json:
        print_json({"version": __version__, "python": sys.version.split()[0]})
    else:
        click.echo(f"asyncflow {__version__}")
