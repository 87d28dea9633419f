-- Version 2: waits that outlive their process, messages to runs, results shared between runs.

-- When a run that waits goes on by itself, in seconds since the epoch; NULL: only when told to.
ALTER TABLE flow_runs ADD COLUMN wake_at REAL;
-- What it waits for, as JSON, such as {"event": "paid"}; NULL: nothing.
ALTER TABLE flow_runs ADD COLUMN waits_for BLOB;
-- The id of the run that it was forked from or is another run of.
ALTER TABLE flow_runs ADD COLUMN origin TEXT;
-- After how many calls of the run a decision was made: what a fork of a part of it keeps.
ALTER TABLE marks ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;

-- What was sent to one run, or (run IS NULL) to all. A run takes each at most once.
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    run INTEGER,
    payload BLOB NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX messages_name ON messages (name, id);
CREATE INDEX messages_run ON messages (run) WHERE run IS NOT NULL;

-- Results that other runs may use, by canonical key.
CREATE TABLE cache (
    key BLOB PRIMARY KEY,
    task TEXT NOT NULL,
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    result_kind INTEGER NOT NULL,
    result BLOB
) WITHOUT ROWID;
CREATE INDEX cache_run ON cache (run);
CREATE INDEX cache_expires ON cache (expires_at) WHERE expires_at IS NOT NULL;

-- What each engine may use of a named limit: a dead engine's part comes back by itself.
CREATE TABLE shares (
    "limit" TEXT NOT NULL,
    engine INTEGER NOT NULL,
    units REAL NOT NULL,
    wanted REAL NOT NULL,
    since REAL NOT NULL,
    free_at REAL,
    PRIMARY KEY ("limit", engine)
) WITHOUT ROWID;
