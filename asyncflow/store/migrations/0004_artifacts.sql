-- Version 4: what runs show (artifacts), and variables.

-- The id tells the order in which they were first made. Of one key a run has one.
CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    key TEXT NOT NULL,
    -- The task run that made it; NULL: the body of the flow.
    seq INTEGER,
    kind TEXT NOT NULL,
    description TEXT NOT NULL,
    -- JSON.
    data BLOB NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (run, key)
);

CREATE TABLE variables (
    name TEXT PRIMARY KEY,
    -- JSON.
    value BLOB NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID;
