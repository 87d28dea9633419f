-- Version 3: deployments with schedules, events of all kinds, automations and their deliveries.

-- The name of the deployment that a run is of; NULL: of none.
ALTER TABLE flow_runs ADD COLUMN deployment TEXT;
-- The planned instant that it is for, where a schedule or a backfill began it.
ALTER TABLE flow_runs ADD COLUMN scheduled_at REAL;
-- What began it, such as "schedule:nightly" or "automation:mend"; NULL: a call.
ALTER TABLE flow_runs ADD COLUMN cause TEXT;
CREATE INDEX flow_runs_deployment ON flow_runs (deployment, pk) WHERE deployment IS NOT NULL;

-- States of runs are events among others: one series of ids for all that happens.
ALTER TABLE states RENAME TO events;
-- What happened; NULL: a flow run moved to the state of this row.
ALTER TABLE events ADD COLUMN kind TEXT;
-- The task run that it is about; NULL: none.
ALTER TABLE events ADD COLUMN seq INTEGER;
-- JSON.
ALTER TABLE events ADD COLUMN payload BLOB;
-- Of events without a run (run = 0) that have to go when they are old.
CREATE INDEX events_time ON events (time) WHERE run = 0;

CREATE TABLE deployments (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    flow_name TEXT NOT NULL,
    flow_ref TEXT NOT NULL,
    -- JSON: all that was declared, such as parameters and policies.
    spec BLOB NOT NULL,
    source TEXT NOT NULL,
    paused INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL
);

CREATE TABLE schedules (
    id INTEGER PRIMARY KEY,
    deployment INTEGER NOT NULL,
    name TEXT NOT NULL,
    -- JSON: the schedule and its own parameters, jitter, start and end.
    spec BLOB NOT NULL,
    paused INTEGER NOT NULL,
    -- Why it is paused, where nobody did it by hand.
    reason TEXT NOT NULL,
    -- Up to this instant all its ticks have been dealt with.
    position REAL NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (deployment, name)
);

-- What became of each tick. Its primary key is why a tick runs once, whoever looks at the clock.
CREATE TABLE ticks (
    schedule INTEGER NOT NULL,
    tick REAL NOT NULL,
    deployment INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- The id of the run that it began.
    run TEXT,
    backfill INTEGER,
    -- When that was decided.
    at REAL NOT NULL,
    -- A long series of ticks that were not run is one row: how many, and the last of them.
    count INTEGER NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (schedule, tick)
) WITHOUT ROWID;
CREATE INDEX ticks_deployment ON ticks (deployment, tick);
CREATE INDEX ticks_queued ON ticks (deployment, tick) WHERE state = 'QUEUED';
CREATE INDEX ticks_backfill ON ticks (backfill, tick) WHERE backfill IS NOT NULL;

CREATE TABLE backfills (
    id INTEGER PRIMARY KEY,
    deployment INTEGER NOT NULL,
    schedule INTEGER NOT NULL,
    start_at REAL NOT NULL,
    end_at REAL NOT NULL,
    max_concurrency INTEGER NOT NULL,
    created_at REAL NOT NULL,
    ended_at REAL
);

CREATE TABLE automations (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    spec BLOB NOT NULL,
    source TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    -- JSON: how far its trigger is.
    state BLOB NOT NULL,
    -- The id of the last event that it has seen.
    position INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    fired INTEGER NOT NULL,
    fired_at REAL
);

-- What automations have to do and have done, each exactly once on record.
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    automation TEXT NOT NULL,
    action INTEGER NOT NULL,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    channel TEXT NOT NULL,
    run TEXT,
    event INTEGER NOT NULL,
    payload BLOB NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_at REAL NOT NULL,
    created_at REAL NOT NULL,
    ended_at REAL,
    error TEXT NOT NULL,
    reply TEXT NOT NULL,
    engine INTEGER,
    UNIQUE (automation, action, key)
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE ended_at IS NULL;
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE ended_at IS NOT NULL;
