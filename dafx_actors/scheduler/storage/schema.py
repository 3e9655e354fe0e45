"""The form of the database file, by version.

`PRAGMA user_version` says which version a file has. A newer scheduler brings an older file up to date, one step
at a time, inside one transaction; an older scheduler refuses a newer file. A step, once released, never changes:
what it did to somebody's file cannot be undone. `APPLICATION_ID` marks a file as ours, so that somebody else's
SQLite file is refused instead of being given our tables.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x64616678
"""`dafx` in ASCII."""

_FIRST: Final = """
-- One row: the next id that no run of the scheduler has reserved.
CREATE TABLE ids (next INTEGER NOT NULL);
INSERT INTO ids VALUES (1);

CREATE TABLE hubs (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

-- What changes at every episode is kept apart from payloads, or each episode would write those again. Ids grow, so they
-- also give the order of creation; each index more would cost every start another page to write.
CREATE TABLE orchestrations (
    id INTEGER PRIMARY KEY,
    hub INTEGER NOT NULL,
    instance_id TEXT NOT NULL,
    execution_id TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT,
    status INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    completed INTEGER,
    scheduled INTEGER,
    custom_status TEXT,
    trace BLOB,
    parent INTEGER,
    parent_instance TEXT,
    parent_execution TEXT,
    parent_task INTEGER,
    parent_name TEXT,
    parent_version TEXT,
    UNIQUE (hub, instance_id)
);
CREATE INDEX orchestrations_completed ON orchestrations (hub, completed, id) WHERE completed IS NOT NULL;
CREATE INDEX orchestrations_parent ON orchestrations (parent) WHERE parent IS NOT NULL;

CREATE TABLE payloads (
    id INTEGER PRIMARY KEY REFERENCES orchestrations,
    input TEXT,
    output TEXT,
    failure BLOB,
    tags TEXT,
    trace BLOB,
    scheduled INTEGER
);

-- What belongs to one orchestration or entity lies together: no index beside the table that every write would have
-- to change as well, and one look finds all.

-- One row for each episode: the events that it added, framed as they are sent (see proto.py).
CREATE TABLE histories (
    orchestration INTEGER NOT NULL,
    id INTEGER NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (orchestration, id)
) WITHOUT ROWID;

CREATE TABLE inbox (
    orchestration INTEGER NOT NULL,
    id INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (orchestration, id)
) WITHOUT ROWID;

CREATE TABLE activities (
    orchestration INTEGER NOT NULL,
    id INTEGER NOT NULL,
    task INTEGER NOT NULL,
    name TEXT NOT NULL,
    version TEXT,
    request BLOB NOT NULL,
    PRIMARY KEY (orchestration, id)
) WITHOUT ROWID;

-- kind 0: an orchestration's timer; 1: its scheduled start; 2: a delayed operation for `entity`.
CREATE TABLE timers (
    id INTEGER PRIMARY KEY,
    hub INTEGER NOT NULL,
    due INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    orchestration INTEGER,
    event BLOB,
    entity TEXT,
    request TEXT,
    caller INTEGER,
    caller_instance TEXT,
    caller_execution TEXT
);
CREATE INDEX timers_orchestration ON timers (orchestration) WHERE orchestration IS NOT NULL;

CREATE TABLE entities (
    id INTEGER PRIMARY KEY,
    hub INTEGER NOT NULL,
    entity_id TEXT NOT NULL,
    state TEXT,
    modified INTEGER NOT NULL,
    section TEXT,
    holder INTEGER,
    holder_instance TEXT,
    UNIQUE (hub, entity_id)
);
CREATE INDEX entities_locked ON entities (holder) WHERE holder IS NOT NULL;

CREATE TABLE operations (
    entity INTEGER NOT NULL,
    id INTEGER NOT NULL,
    event BLOB NOT NULL,
    request TEXT NOT NULL,
    caller INTEGER,
    caller_instance TEXT,
    caller_execution TEXT,
    PRIMARY KEY (entity, id)
) WITHOUT ROWID;

CREATE TABLE lock_requests (
    id INTEGER PRIMARY KEY,
    hub INTEGER NOT NULL,
    section TEXT NOT NULL,
    holder INTEGER NOT NULL,
    holder_instance TEXT NOT NULL,
    holder_execution TEXT NOT NULL,
    entities TEXT NOT NULL
);

-- Signals that clients sent lately: the same one again, after a lost reply, is not carried out again.
CREATE TABLE signals (
    hub INTEGER NOT NULL,
    request TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (hub, request)
) WITHOUT ROWID;
CREATE INDEX signals_at ON signals (at);
"""

_HOSTED: Final = """
-- Which names workers took, and when one that did was last known to be connected.
CREATE TABLE hosted (
    hub INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (hub, kind, name)
) WITHOUT ROWID;
"""

_ENDINGS: Final = """
-- Orchestrations that were terminated with all below them, as long as not all of that has ended.
CREATE TABLE endings (orchestration INTEGER PRIMARY KEY, hub INTEGER NOT NULL, output TEXT);
"""

STEPS: Final[tuple[str, ...]] = (_FIRST, _HOSTED, _ENDINGS)
"""Step n brings a file from version n to version n + 1."""

VERSION: Final = len(STEPS)
