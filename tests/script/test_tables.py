"""The tables of the README are those that script/write-tables writes."""

from tables import README, TABLES, with_tables


def test_the_tables_of_the_readme_are_current_and_not_empty() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run script/write-tables"
    for make in TABLES.values():
        table = make()
        assert table.count("\n") >= 3 and table in text
