"""What people do with other tools: restore a full and its increments in sqlite3 or in DuckDB.

    peers.py prepare COLLECTION FOLDER      what sqlite3 restores from: a dump and change sets
    peers.py sqlite FOLDER DATABASE         a dump into a new database, then the change sets in order
    peers.py duckdb COLLECTION DATABASE     the parts of a full, then MERGE of each increment
    peers.py look sqlite|duckdb DATABASE    rows and sums that the database shows, as JSON
    peers.py sums FILE.parquet              the same of a dump of ours

Both restores begin with a new database: neither tool remembers how far it came.
"""

import glob
import json
import os
import subprocess
import sys

import apsw
import duckdb

COLUMNS = "id, customer, epoch_us(placed), amount, token::VARCHAR, note"
TABLE = (
    "CREATE TABLE measured(id INTEGER PRIMARY KEY, customer INTEGER, placed INTEGER, "
    "amount REAL, token TEXT, note TEXT)"
)
SUMS = "SELECT count(*), sum(id::HUGEINT), sum(customer::HUGEINT) FROM measured"
THREADS = 2


def links(collection):
    """The parts of each backup, in sequence order."""
    for entry in sorted(glob.glob(os.path.join(collection, "log", "*.json"))):
        with open(entry) as file:
            folder = os.path.join(collection, json.load(file)["directory"])
        with open(os.path.join(folder, "manifest.json")) as file:
            parts = json.load(file)["tables"][0]["parts"]
        yield [os.path.join(folder, part["name"]) for part in parts]


def change_set(folder, number):
    return os.path.join(folder, f"{number:03}.changeset")


def prepare(collection, folder):
    os.makedirs(folder)
    duck = duckdb.connect()
    path = os.path.join(folder, "source.db")
    lite = apsw.Connection(path)
    lite.execute("PRAGMA synchronous = off")
    lite.execute(TABLE)
    for number, parts in enumerate(links(collection)):
        session = apsw.Session(lite, "main")
        if number > 0:
            session.attach("measured")
        op = "__tidemark_op" if number > 0 else "NULL"
        rows = duck.execute(f"SELECT {op}, {COLUMNS} FROM read_parquet(?)", [parts])
        with lite:
            while batch := rows.fetchmany(50_000):
                gone = [row[1:2] for row in batch if row[0] == "delete"]
                kept = [row[1:] for row in batch if row[0] != "delete"]
                lite.executemany("DELETE FROM measured WHERE id = ?", gone)
                lite.executemany(
                    "INSERT INTO measured VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
                    "customer = excluded.customer, placed = excluded.placed, "
                    "amount = excluded.amount, token = excluded.token, note = excluded.note",
                    kept,
                )
        if number == 0:
            with open(os.path.join(folder, "full.sql"), "wb") as file:
                subprocess.run(["sqlite3", path, ".dump"], stdout=file, check=True)
        else:
            with open(change_set(folder, number), "wb") as file:
                file.write(session.changeset())
        session.close()
    lite.close()
    os.remove(path)


def remove(database):
    for suffix in ("", "-journal", "-wal", ".wal"):
        if os.path.exists(database + suffix):
            os.remove(database + suffix)


def restore_sqlite(folder, database):
    remove(database)
    with open(os.path.join(folder, "full.sql"), "rb") as file:
        subprocess.run(["sqlite3", "-bail", database], stdin=file, check=True)
    lite = apsw.Connection(database)

    def conflict(*_):
        raise RuntimeError("a change set does not fit the table")

    for path in sorted(glob.glob(os.path.join(folder, "*.changeset"))):
        with open(path, "rb") as file:
            apsw.Changeset.apply(file.read(), lite, conflict=conflict)
    lite.close()


def restore_duckdb(collection, database):
    remove(database)
    duck = duckdb.connect(database, config={"threads": THREADS})
    for number, parts in enumerate(links(collection)):
        if number == 0:
            duck.execute(
                "CREATE TABLE measured(id BIGINT PRIMARY KEY, customer BIGINT, placed TIMESTAMP, "
                "amount DOUBLE, token UUID, note VARCHAR)"
            )
            duck.execute(
                "INSERT INTO measured SELECT id, customer, placed, amount, token, note "
                "FROM read_parquet(?)",
                [parts],
            )
            continue
        duck.execute(
            "MERGE INTO measured USING (SELECT * FROM read_parquet(?)) AS change "
            "ON measured.id = change.id "
            "WHEN MATCHED AND change.__tidemark_op = 'delete' THEN DELETE "
            "WHEN MATCHED THEN UPDATE SET customer = change.customer, placed = change.placed, "
            "amount = change.amount, token = change.token, note = change.note "
            "WHEN NOT MATCHED AND change.__tidemark_op <> 'delete' THEN INSERT "
            "VALUES (change.id, change.customer, change.placed, change.amount, change.token, "
            "change.note)",
            [parts],
        )
    duck.close()


def look(tool, database):
    try:
        if tool == "sqlite":
            lite = apsw.Connection(database, flags=apsw.SQLITE_OPEN_READWRITE)
            count = lite.execute("SELECT count(*) FROM measured").get
            ids = lite.execute("SELECT coalesce(sum(id), 0) FROM measured").get
            customers = lite.execute("SELECT coalesce(sum(customer), 0) FROM measured").get
            return [count, str(ids), str(customers)]
        row = duckdb.connect(database).execute(SUMS).fetchone()
        return [row[0], str(row[1] or 0), str(row[2] or 0)]
    except (apsw.Error, duckdb.Error) as error:
        print(error, file=sys.stderr)
        return [0, "0", "0"]


def sums(file):
    duck = duckdb.connect()
    duck.execute("CREATE VIEW measured AS SELECT * FROM read_parquet('" + file + "')")
    row = duck.execute(SUMS).fetchone()
    return [row[0], str(row[1]), str(row[2])]


if __name__ == "__main__":
    verb, arguments = sys.argv[1], sys.argv[2:]
    if verb == "prepare":
        prepare(*arguments)
    elif verb == "sqlite":
        restore_sqlite(*arguments)
    elif verb == "duckdb":
        restore_duckdb(*arguments)
    elif verb == "look":
        print(json.dumps(look(*arguments)))
    elif verb == "sums":
        print(json.dumps(sums(*arguments)))
    else:
        sys.exit(__doc__)
