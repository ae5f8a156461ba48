#!/usr/bin/env python3
"""Writes a workspace of layout 3 as SQL: make_workspace_v3.py WORKSPACE.db > workspace-v3.sql

The workspace was made by espalier 0.1.0 at layout 3 (one label a feature) on the tiny model's dictionary (tests/cli/lib.sh) with starter labels of
features 5 and 6:
  label add --feature 3 --text hedging --tags "tone hedge" --rating 4 --author ann
  label add --feature 3 --text "perhaps, maybe" --author bob
  label add --feature 5 --text "five, by ann" --author ann
  label add --feature 9 --tags later --author ann; label add --feature 9 --text nine --author ann; label undo
  label import (20 "twenty", 21 "twenty-one" tagged n, both by zoe)
"""
import sqlite3
import sys

db = sqlite3.connect(sys.argv[1])
version, = db.execute("PRAGMA user_version").fetchone()
application, = db.execute("PRAGMA application_id").fetchone()
assert version == 3
print(f"PRAGMA application_id = {application}; PRAGMA user_version = {version};")
tables = []
for name, sql in db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'search_%' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"):
    print(sql.replace("\n", " ") + ";")
    if not sql.startswith("CREATE INDEX"):
        tables.append(name)
for name in tables:
    if name == "file_hash":  # paths of the machine it was made on
        continue
    columns = [r[1] for r in db.execute(f"PRAGMA table_info({name})")]
    rows = db.execute(f"SELECT rowid, {', '.join(columns)} FROM search WHERE rowid - (1 << 24) < 24" if name == "search" else f"SELECT {', '.join(columns)} FROM {name}")
    names = (["rowid"] if name == "search" else []) + columns
    for row in rows:
        if name == "feature" and row[1] >= 24:
            continue
        quoted = ["NULL" if v is None else "x'" + v.hex() + "'" if isinstance(v, bytes) else "'" + v.replace("'", "''") + "'" if isinstance(v, str) else repr(v) for v in row]
        print(f"INSERT INTO {name}({', '.join(names)}) VALUES({', '.join(quoted)});")
