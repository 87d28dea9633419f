-- Version 6: what engines tell of what only they know, for those who look from other processes.

CREATE TABLE notices (
    -- 'limit': who holds units of it there; 'run': what its calls wait for.
    kind TEXT NOT NULL,
    -- Of the limit, or the number of the run.
    name TEXT NOT NULL,
    engine INTEGER NOT NULL,
    time REAL NOT NULL,
    -- JSON.
    data BLOB NOT NULL,
    PRIMARY KEY (kind, name, engine)
) WITHOUT ROWID;
