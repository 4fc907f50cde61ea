"""Where skills come from, and the ones that are shipped."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.groups import skills as shelf_module
from hermitcrab.groups.materials import group_documents, shared_instructions, tool_fragments
from hermitcrab.groups.skills import SkillShelf
from hermitcrab.logic.instructions import ALL_CHARACTERS_AT_MOST
from hermitcrab.logic.skills import chosen, missing, missing_hint
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.ids import AgentGroupId
from hermitcrab.settings.home import Home

SHIPPED = Path(shelf_module.__file__).parent / "shared" / "skills"
NAMES = sorted(each.name for each in SHIPPED.iterdir())


def add(place: Path, name: str, text: str = "text") -> Path:
    folder = place / name
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(text)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_home_without_skills_has_the_shipped_ones(home: Home) -> None:
    assert sorted(SkillShelf(home).folders("chat")) == NAMES == ["memory", "status", "tables"]


def test_the_nearer_place_wins_and_other_groups_have_no_part_in_it(home: Home) -> None:
    add(home.skills, "memory", "the installation's")
    add(home.skills, "ours", "the installation's")
    add(home.group_skills("chat"), "ours", "the group's")
    add(home.group_skills("other"), "theirs")
    found = {each.name: each for each in SkillShelf(home).read("chat", ContainerConfig())}
    assert sorted(found) == sorted([*NAMES, "ours"])
    assert found["memory"].files["SKILL.md"].content == b"the installation's"
    assert found["ours"].files["SKILL.md"].content == b"the group's"


def test_all_means_whatever_there_is_at_the_moment_and_a_list_what_is_left_of_it(home: Home) -> None:
    shelf = SkillShelf(home)
    add(home.skills, "new")
    assert "new" in [each.name for each in shelf.read("chat", ContainerConfig())]
    assert [each.name for each in shelf.read("chat", ContainerConfig(skills=("new", "gone")))] == ["new"]
    assert shelf.read("chat", ContainerConfig(skills=())) == ()


def test_what_is_no_skill_is_passed_over(home: Home, tmp_path: Path) -> None:
    outside = add(tmp_path / "outside", "linked")
    home.skills.mkdir(parents=True)
    (home.skills / "linked").symlink_to(outside)
    (home.skills / "file").write_text("x")
    (home.skills / "empty").mkdir()
    add(home.skills, "Bad Name")
    add(home.skills, "-v")
    (add(home.skills, "fake") / "SKILL.md").unlink()
    (home.skills / "fake" / "SKILL.md").symlink_to(outside / "SKILL.md")
    assert sorted(SkillShelf(home).folders("chat")) == NAMES


def test_a_link_in_a_skill_is_not_followed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's own")
    folder = add(home.skills, "ours")
    (folder / "stolen").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (skill,) = SkillShelf(home).read("chat", ContainerConfig(skills=("ours",)))
    assert list(skill.files) == ["SKILL.md"]


def test_a_skill_without_end_is_passed_over_and_the_others_are_there(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "SKILL_FILES_AT_MOST", 20)
    folder = add(home.skills, "many")
    for number in range(30):
        (folder / str(number)).write_text("x")
    with (add(home.skills, "large") / "data").open("wb") as file:
        file.truncate(1 << 40)
    assert [each.name for each in SkillShelf(home).read("chat", ContainerConfig())] == NAMES


@given(st.lists(st.sampled_from("abcd"), unique=True), st.sets(st.sampled_from("abcd")))
def test_a_selection_is_what_there_is_of_it_and_the_rest_is_missing(selection: list[str], available: set[str]) -> None:
    names = tuple(selection)
    assert set(chosen(names, available)) | set(missing(names, available)) == set(names)
    assert not set(chosen(names, available)) & set(missing(names, available))
    assert chosen("all", available) == tuple(sorted(available))
    assert missing("all", available) == ()
    assert missing_hint("zz", available)


# The shipped ones.


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_skill_says_its_name_and_when_it_is_used(name: str) -> None:
    head, _, body = (SHIPPED / name / "SKILL.md").read_text().removeprefix("---\n").partition("\n---\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert fields["name"] == name
    assert "Use it" in fields["description"]
    assert body.strip().startswith("# ")


def test_everything_shipped_fits_into_what_an_agent_is_told(home: Home) -> None:
    group = AgentGroup(id=AgentGroupId("ag-1"), name="Chat", folder="chat")
    documents = group_documents(SkillShelf(home), group, ContainerConfig(), {})
    assert "left out" not in documents["CLAUDE.md"].content.decode()
    assert sum(map(len, [shared_instructions(), *tool_fragments().values()])) < ALL_CHARACTERS_AT_MOST / 4
    assert "skills/memory/SKILL.md" in documents


def run(script: str, *words: str) -> str:
    path = SHIPPED / script
    return subprocess.run([sys.executable, "-I", str(path), *words], capture_output=True, text=True, check=True).stdout


def tables(*words: str) -> list[Any]:
    return [json.loads(line) for line in run("tables/tables.py", *words).splitlines()]


ROWS = [["name", "age"], ["Ada", "36"], ["Bob", ""], ["Cy", "x"]]
AGE = {"column": "age", "kind": "mixed", "missing": 1, "distinct": 2, "least": 36.0, "most": 36.0}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_looks_into_text(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / ("people.tsv" if delimiter == "\t" else "people.csv")
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(ROWS)
    table, name, age, first = tables(str(path), "--rows", "1")
    assert table == {"table": "people", "rows": 3, "all": True}
    assert (name["kind"], name["examples"]) == ("text", ["Ada", "Bob", "Cy"])
    assert age == AGE | {"examples": ["36", "x"]}
    assert first == ["Ada", "36"]


def test_tables_looks_into_json_and_sqlite_and_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": 2, "m": "x"}\n')
    assert tables(str(tmp_path / "a.jsonl"))[1]["most"] == 2.0
    (tmp_path / "a.json").write_text('{"rows": [{"n": 1}]}')
    assert tables(str(tmp_path / "a.json"))[0]["rows"] == 1
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as connection:
        connection.execute('CREATE TABLE "a ""b" (n)')
        connection.execute('INSERT INTO "a ""b" VALUES (5)')
        connection.commit()
    assert tables(str(tmp_path / "a.sqlite"))[0] == {"table": 'a "b', "rows": 1, "all": True}
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", f'<workbook {space}><sheets><sheet name="One"/></sheets></workbook>')
        archive.writestr("xl/sharedStrings.xml", f"<sst {space}><si><t>name</t></si><si><t>n</t></si></sst>")
        cells = '<c r="A1" t="s"><v>0</v></c><c r="C1" t="s"><v>1</v></c>'
        more = '<c r="A2" t="inlineStr"><is><t>Ada</t></is></c><c r="C2"><v>7</v></c>'
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f"<worksheet {space}><sheetData><row>{cells}</row><row>{more}</row></sheetData></worksheet>",
        )
    assert [each.get("column") for each in tables(str(tmp_path / "a.xlsx"))[1:]] == ["name", "", "n"]
    written = run("tables/tables.py", str(tmp_path / "a.xlsx"), "--csv", "One")
    assert list(csv.reader(io.StringIO(written))) == [["name", "", "n"], ["Ada", "", "7"]]


def test_status_tells_what_it_finds_anywhere() -> None:
    facts = dict(item for line in run("status/status.py").splitlines() for item in json.loads(line).items())
    assert {"agent", "limits", "space", "programs", "network"} == facts.keys()
