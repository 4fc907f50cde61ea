"""What is in a file of tables: columns, kinds, counts, examples. Standard library only."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import sqlite3
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # the file is a person's, and whoever reads it is in a sandbox

Table = tuple[str, list[str], Iterator[list[Any]]]
"""Name, columns, rows."""

MOST_ROWS = 1_000_000
MOST_DISTINCT = 10_000
MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def tables(path: Path) -> Iterator[Table]:
    kind = path.suffix.lower()
    if kind in {".xlsx", ".xlsm"}:
        yield from _sheets(path)
    elif kind in {".sqlite", ".sqlite3", ".db"}:
        yield from _database(path)
    elif kind in {".json", ".jsonl", ".ndjson"}:
        yield _objects(path, lines=kind != ".json")
    else:
        yield _text(path, "\t" if kind == ".tsv" else None)


def _text(path: Path, delimiter: str | None) -> Table:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if delimiter is None:
        first = text[:8192]
        delimiter = max(",;\t|", key=first.count) if first else ","
    rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    return path.stem, next(rows, []), iter(rows)


def _objects(path: Path, *, lines: bool) -> Table:
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    found = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else json.loads(text)
    if isinstance(found, dict):
        found = next((each for each in found.values() if isinstance(each, list)), [found])
    objects = [each if isinstance(each, dict) else {"value": each} for each in found]
    columns = list(dict.fromkeys(key for each in objects for key in each))
    return path.stem, columns, ([each.get(column) for column in columns] for each in objects)


def _database(path: Path) -> Iterator[Table]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        for name in names:
            quoted = '"' + name.replace('"', '""') + '"'
            cursor = connection.execute(f"SELECT * FROM {quoted}")  # noqa: S608  # quoted
            yield name, [each[0] for each in cursor.description], (list(row) for row in cursor)


def _sheets(path: Path) -> Iterator[Table]:
    with zipfile.ZipFile(path) as archive:
        shared: list[str] = []
        if "xl/sharedStrings.xml" in archive.namelist():
            root = ET.fromstring(archive.read("xl/sharedStrings.xml"))  # noqa: S314
            shared = ["".join(text.text or "" for text in each.iter(f"{MAIN}t")) for each in root]
        book = ET.fromstring(archive.read("xl/workbook.xml"))  # noqa: S314
        names = [each.get("name", "?") for each in book.iter(f"{MAIN}sheet")]
        for number, name in enumerate(names, start=1):
            inner = f"xl/worksheets/sheet{number}.xml"
            if inner not in archive.namelist():
                continue
            rows = list(_cells(ET.fromstring(archive.read(inner)), shared))  # noqa: S314
            width = max(map(len, rows), default=0)
            padded = [row + [None] * (width - len(row)) for row in rows]
            yield name, [str(each or "") for each in padded[0]] if padded else [], iter(padded[1:])


def _cells(sheet: ET.Element, shared: list[str]) -> Iterator[list[Any]]:
    for row in sheet.iter(f"{MAIN}row"):
        cells: list[Any] = []
        for cell in row:
            column = _column(cell.get("r", "")) if cell.get("r") else len(cells)
            cells += [None] * (column - len(cells))
            value = cell.find(f"{MAIN}v")
            text = value.text if value is not None else None
            if cell.get("t") == "s" and text is not None:
                text = shared[int(text)]
            elif cell.get("t") == "inlineStr":
                text = "".join(each.text or "" for each in cell.iter(f"{MAIN}t"))
            cells.append(text)
        yield cells


def _column(reference: str) -> int:
    number = 0
    for letter in itertools.takewhile(str.isalpha, reference):
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


class Column:
    def __init__(self, name: str) -> None:
        self.name = name
        self.missing = self.numbers = self.count = 0
        self.distinct: set[str] = set()
        self.least: float | None = None
        self.most: float | None = None

    def add(self, value: Any) -> None:
        self.count += 1
        text = "" if value is None else str(value).strip()
        if not text:
            self.missing += 1
            return
        if len(self.distinct) < MOST_DISTINCT:
            self.distinct.add(text[:200])
        if NUMBER.fullmatch(text):
            number = float(text)
            self.numbers += 1
            self.least = number if self.least is None else min(self.least, number)
            self.most = number if self.most is None else max(self.most, number)

    def facts(self) -> dict[str, Any]:
        filled = self.count - self.missing
        kind = "empty" if not filled else "number" if self.numbers == filled else "mixed" if self.numbers else "text"
        distinct: int | str = len(self.distinct)
        if distinct == MOST_DISTINCT:
            distinct = f"{distinct} or more"
        facts: dict[str, Any] = {"column": self.name, "kind": kind, "missing": self.missing, "distinct": distinct}
        if self.numbers:
            facts |= {"least": self.least, "most": self.most}
        return facts | {"examples": sorted(self.distinct)[:3]}


def look(columns: list[str], rows: Iterable[list[Any]]) -> tuple[int, list[Column]]:
    found = [Column(name) for name in columns]
    count = 0
    for row in itertools.islice(rows, MOST_ROWS):
        count += 1
        for column, value in itertools.zip_longest(found, row[: len(found)]):
            column.add(value)
    return count, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="print so many rows, too")
    parser.add_argument("--csv", metavar="TABLE", help="write this table as CSV and nothing else")
    options = parser.parse_args()
    for name, columns, rows in tables(options.file):
        if options.csv is not None:
            if options.csv == name:
                csv.writer(sys.stdout).writerows(itertools.chain([columns], rows))
                return
            continue
        first = list(itertools.islice(rows, options.rows))
        count, found = look(columns, itertools.chain(first, rows))
        print(json.dumps({"table": name, "rows": count, "all": count < MOST_ROWS}, ensure_ascii=False))
        for column in found:
            print(json.dumps(column.facts(), ensure_ascii=False))
        for row in first:
            print(json.dumps(row, ensure_ascii=False, default=str))
    if options.csv is not None:
        sys.exit(f"there is no table {options.csv!r}")


if __name__ == "__main__":
    main()
