-- Version 5: what one process asks another to do, because only that one has the code for it.

CREATE TABLE commands (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    -- The id of the run, or the name of the deployment, that it is about.
    run TEXT,
    deployment TEXT,
    -- JSON.
    arguments BLOB NOT NULL,
    -- What is asked with the same key is the same command, unless nothing came of it.
    key TEXT,
    asked_by TEXT NOT NULL,
    asked_at REAL NOT NULL,
    -- Nobody takes it from then on.
    expires_at REAL NOT NULL,
    state TEXT NOT NULL,
    -- The engine that took it last, when, and how often it was taken.
    engine INTEGER,
    taken_at REAL,
    taken INTEGER NOT NULL,
    -- JSON: the engines that cannot do it.
    declined BLOB NOT NULL,
    ended_at REAL,
    -- The id of the run that it made, or that goes on.
    made TEXT,
    detail TEXT NOT NULL
);
CREATE INDEX commands_open ON commands (pk) WHERE ended_at IS NULL;
CREATE INDEX commands_ended ON commands (ended_at) WHERE ended_at IS NOT NULL;
CREATE UNIQUE INDEX commands_key ON commands (key)
    WHERE key IS NOT NULL AND state NOT IN ('FAILED', 'EXPIRED');

-- The engines that look for commands, dead ones too until somebody asks for something.
CREATE TABLE takers (
    engine INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    since REAL NOT NULL
);
