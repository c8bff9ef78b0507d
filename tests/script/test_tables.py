from tables import README, TABLES, with_tables


def test_the_readmes_tables_are_those_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run script/write-tables"


def test_every_table_is_in_the_readme_and_has_rows() -> None:
    for make in TABLES.values():
        assert make().count("\n") >= 3
        assert make() in README.read_text(encoding="utf-8")
