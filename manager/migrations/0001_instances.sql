-- Clusters with their dynamic configuration; 0 leaves a value to the receiver's own configuration.
CREATE TABLE clusters (
    name                      TEXT    NOT NULL PRIMARY KEY,
    -- Grows with each change of the values below.
    config_version            INTEGER NOT NULL,
    parents_per_child         INTEGER NOT NULL,
    children_per_parent       INTEGER NOT NULL,
    download_bytes_per_second INTEGER NOT NULL,
    upload_bytes_per_second   INTEGER NOT NULL,
    origin_bytes_per_second   INTEGER NOT NULL,
    prefetch_bytes_per_second INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Schedulers, seed peers and peers. Times are milliseconds since 1970-01-01 UTC.
CREATE TABLE instances (
    cluster     TEXT    NOT NULL REFERENCES clusters (name) ON DELETE CASCADE,
    kind        TEXT    NOT NULL CHECK (kind IN ('scheduler', 'seed', 'peer')),
    id          TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    address     TEXT    NOT NULL,
    version     TEXT    NOT NULL,
    region      TEXT    NOT NULL,
    zone        TEXT    NOT NULL,
    rack        TEXT    NOT NULL,
    -- The last keepalive.
    last_seen   INTEGER NOT NULL,
    -- Active before this time; 0 after a good-bye.
    alive_until INTEGER NOT NULL,
    PRIMARY KEY (cluster, kind, id)
) STRICT, WITHOUT ROWID;

-- When a manager last worked on this database: its own absence is not held against the instances.
CREATE TABLE manager (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    alive_at INTEGER NOT NULL
) STRICT;

INSERT INTO manager (id, alive_at) VALUES (1, 0);
