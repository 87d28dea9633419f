"""Where a command looks and acts: ``--db`` and ``--server``, which exclude each other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import click
from click.core import ParameterSource


class WrongPlace(click.ClickException):
    """It cannot be done there: one sentence, and the exit code of wrong usage."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        from asyncflow.cli.output import fail

        fail(self.message)


class Place(NamedTuple):
    """A database, by its path (None: the usual one), or a server, by its URL."""

    db: str | None = None
    server: str | None = None


database = click.option(
    "--db",
    metavar="PATH",
    envvar="ASYNCFLOW_DATABASE",
    help="The database. By default $ASYNCFLOW_DATABASE, else .asyncflow/asyncflow.db.",
)
_server = click.option(
    "--server",
    metavar="URL",
    envvar="ASYNCFLOW_SERVER",
    help="A server to ask instead of a database; by default $ASYNCFLOW_SERVER. The token is in the"
    " URL, or $ASYNCFLOW_TOKEN.",
)


def somewhere(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that works on a database or on a server: it is given `at`."""

    @functools.wraps(command)
    def placed(*, db: str | None, server: str | None, **options: Any) -> Any:
        at = _chosen(click.get_current_context(), db, server)
        return command(at=at, **options)

    return database(_server(placed))


def _chosen(context: click.Context, db: str | None, server: str | None) -> Place:
    if not server:
        return Place(db)
    if not db:
        return Place(None, server)
    said = {
        name
        for name in ("db", "server")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if len(said) == 1:
        return Place(db) if "db" in said else Place(None, server)
    if said:
        raise WrongPlace("--db and --server are two places: give one of them")
    raise WrongPlace(
        "$ASYNCFLOW_DATABASE and $ASYNCFLOW_SERVER name two places: say --db or --server"
    )


def _refuse(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise WrongPlace(
            f"`{context.command_path}` is done on this machine, with a database here: leave out"
            " --server"
        )


def here(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that works on a database of this machine only."""
    refused = click.option(
        "--server", hidden=True, expose_value=False, callback=_refuse, metavar="URL"
    )
    return database(refused(command))


__all__ = ["Place", "database", "here", "somewhere"]
