-- The state of asyncflow, version 1. One row per thing; times are seconds since the epoch.
-- Rows of the hot table (task_runs) have no second index: a run's rows are contiguous by
-- primary key (run << 32 | seq), and resume reads them all.

CREATE TABLE engines (
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    started_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    closed_at REAL
);

CREATE TABLE flow_runs (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    flow_name TEXT NOT NULL,
    flow_ref TEXT NOT NULL,
    name TEXT NOT NULL,
    parent INTEGER,
    parent_identity BLOB,
    parent_seq INTEGER,
    root INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_name TEXT NOT NULL,
    message TEXT NOT NULL,
    state_at REAL NOT NULL,
    parameters BLOB NOT NULL,
    tags TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    deadline_at REAL,
    engine INTEGER,
    epoch INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    recoveries INTEGER NOT NULL,
    idempotency_key TEXT,
    version TEXT,
    result_kind INTEGER NOT NULL,
    result BLOB,
    error BLOB,
    ended_by TEXT NOT NULL
);
CREATE INDEX flow_runs_state ON flow_runs (state, pk);
CREATE INDEX flow_runs_flow ON flow_runs (flow_name, pk);
CREATE INDEX flow_runs_parent ON flow_runs (parent, pk);
CREATE INDEX flow_runs_root ON flow_runs (root, pk);
CREATE UNIQUE INDEX flow_runs_key ON flow_runs (idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE task_runs (
    id INTEGER PRIMARY KEY,
    identity BLOB NOT NULL,
    task TEXT NOT NULL,
    parent INTEGER,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    result_kind INTEGER NOT NULL,
    result BLOB,
    name TEXT,
    state_name TEXT,
    message TEXT,
    failures INTEGER,
    interruptions INTEGER,
    retry_at REAL,
    upstream TEXT,
    tags TEXT,
    error BLOB
);

CREATE TABLE attempts (
    id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_at REAL,
    ended_at REAL NOT NULL,
    retry_at REAL,
    error BLOB NOT NULL,
    PRIMARY KEY (id, attempt)
) WITHOUT ROWID;

CREATE TABLE logs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    seq INTEGER,
    time REAL NOT NULL,
    level INTEGER NOT NULL,
    logger TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX logs_run ON logs (run, id);

CREATE TABLE states (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    time REAL NOT NULL,
    state TEXT NOT NULL,
    state_name TEXT NOT NULL,
    message TEXT NOT NULL,
    epoch INTEGER NOT NULL
);
CREATE INDEX states_run ON states (run, id);

CREATE TABLE marks (
    run INTEGER NOT NULL,
    scope BLOB NOT NULL,
    n INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (run, scope, n)
) WITHOUT ROWID;

CREATE TABLE limits (
    name TEXT PRIMARY KEY,
    "limit" REAL,
    period REAL,
    burst INTEGER
) WITHOUT ROWID;

-- What other processes ask of the engine that owns a run, such as to cancel it.
CREATE TABLE requests (
    run INTEGER NOT NULL,
    kind TEXT NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (run, kind)
) WITHOUT ROWID;
