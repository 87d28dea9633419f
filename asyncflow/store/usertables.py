"""The user's own tables in our database: a function on them, and a record of ours, in one
transaction.

The function gets a connection that can do what it likes to its own tables, and can neither end
the transaction nor touch ours.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from asyncflow.errors import BlockingCall
from asyncflow.store.base import WorkError

T = TypeVar("T")

#: Pragmas that only tell, or that concern nothing but this transaction.
_HARMLESS = frozenset(
    {
        "collation_list", "compile_options", "data_version", "database_list", "defer_foreign_keys",
        "encoding", "foreign_key_check", "foreign_key_list", "foreign_keys", "function_list",
        "index_info", "index_list", "index_xinfo", "page_count", "page_size", "table_info",
        "table_list", "table_xinfo",
    }
)  # fmt: skip

_ENDS = "the function is one transaction, which is committed when it returns and taken back when it"
_ENDS += " raises"


class UserConnection(sqlite3.Connection):
    """The connection that a transactional task gets.

    `commit` and leaving ``with connection:`` do nothing: the function is one transaction.
    """

    #: Why something was refused last.
    refused = ""

    def commit(self) -> None:
        """Nothing: the commit is made when the function returns."""

    def rollback(self) -> NoReturn:
        raise BlockingCall(f"a transactional task cannot roll back halfway: {_ENDS}")

    def close(self) -> NoReturn:
        raise BlockingCall(f"a transactional task cannot close its connection: {_ENDS}")

    def __enter__(self) -> UserConnection:
        return self

    def __exit__(self, *_: object) -> None:  # type: ignore[override] # that of sqlite3 commits
        """Nothing: an exception goes its way, and takes the whole transaction back."""

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        """Run several statements. (That of `sqlite3` would commit first.)"""
        cursor = self.cursor()
        for statement in statements(sql_script):
            cursor.execute(statement)
        return cursor

    def finish(self) -> None:
        """Really close it."""
        super().close()

    def __del__(self) -> None:
        # One in memory lives as long as the stores that share it; all others are finished.
        with contextlib.suppress(sqlite3.ProgrammingError):
            super().close()


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one (`executescript` would commit first)."""
    one = ""
    for part in script.split(";")[:-1]:
        one += f"{part};"
        if sqlite3.complete_statement(one):
            yield one.strip()
            one = ""
    one += script.rpartition(";")[2]
    if one.strip():
        yield one.strip()


def do(db: UserConnection, work: Callable[[sqlite3.Connection], T], ours: frozenset[str]) -> T:
    """Run *work* in the transaction that is open on *db*.

    Args:
        ours: names of tables that it may read only.

    Raises:
        WorkError: it raised.
    """
    db.refused = ""
    db.set_authorizer(_guard(db, ours))
    try:
        answer = work(db)
        if not db.in_transaction:
            raise sqlite3.OperationalError(
                "a statement ended the transaction (as INSERT OR ROLLBACK does), so what came"
                f" after it cannot be taken back: {_ENDS}"
            )
    except BaseException as error:
        if db.refused and isinstance(error, sqlite3.Error):
            error.add_note(f"asyncflow: {db.refused}")
        raise WorkError from error
    finally:
        db.set_authorizer(None)
    return answer


def _guard(db: UserConnection, ours: frozenset[str]) -> Callable[..., int]:
    """What allows the function its own tables only."""
    on_first = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
    on_first |= {sqlite3.SQLITE_DROP_TABLE}
    on_second = {
        sqlite3.SQLITE_ALTER_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_CREATE_TRIGGER, sqlite3.SQLITE_DROP_TRIGGER,
    }  # fmt: skip

    def allow(action: int, first: Any, second: Any, _database: Any, _trigger: Any) -> int:
        if (action in on_first and first in ours) or (action in on_second and second in ours):
            table = first if action in on_first else second
            db.refused = f"the table {table!r} is asyncflow's: give your own tables other names"
        elif action == sqlite3.SQLITE_TRANSACTION:
            db.refused = f"{first} cannot be used here: {_ENDS}"
        elif action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
            db.refused = "other databases cannot be attached in a transactional task"
        elif action == sqlite3.SQLITE_PRAGMA and first not in _HARMLESS:
            db.refused = f"PRAGMA {first} cannot be used in a transactional task"
        else:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    return allow
