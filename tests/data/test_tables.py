"""One reader of tables: what each format gives, which columns are meant, and what is said of bad files."""

import gzip
import json
import pickle
import re

import polars as pl
import pytest

from vastmax.data.columns import Role, find_columns, labels, texts
from vastmax.data.tables import read_tables
from vastmax.validation import shown

TEXT, LABEL = Role("text_column", None, ("text", "review")), Role("label_column", None, ("label", "class"))
ROLES = [TEXT, LABEL]
ROWS = [('so, it\'s "good"', "1"), ("bad\tor worse", "0"), ("früh 早い", "1")]


def write(path, content, encoding="utf-8"):
    if isinstance(content, pl.DataFrame):
        content.write_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(path, roles=ROLES, **options):
    [table] = read_tables(path, roles, **options).parts["all"]
    columns = find_columns(table, roles)
    return list(zip(texts(table, columns[0], roles[0]), labels(table, columns[1], roles[1]), strict=True))


def csv(rows, mark=","):
    return "".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)


def in_lines(rows):
    return "\n".join(
        json.dumps({"id": i, "text": a, "label": int(b)}, ensure_ascii=False) for i, (a, b) in enumerate(rows)
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", csv([("text", "label"), *ROWS])),
        ("a.csv", csv(ROWS)),
        ("a.csv", csv([("label", "review"), *((b, a) for a, b in ROWS)])),
        ("a.csv", "\ufeff" + csv([("Text", "Label"), *ROWS]).replace("\n", "\r\n")),
        ("a.csv", csv([("id", "text", "label"), *((str(i), *row) for i, row in enumerate(ROWS))])),
        ("a.csv", csv([("", "text", "label"), *((str(i), *row) for i, row in enumerate(ROWS))])),
        *(("a.csv", csv([("text", "label"), *ROWS], mark)) for mark in ";\t|"),
        ("a.tsv", csv([("text", "label"), *ROWS], "\t")),
        ("a.tsv", csv(ROWS, "\t")),
        ("a.jsonl", in_lines(ROWS)),
        ("a.ndjson", in_lines(ROWS).replace("\n", "\n\n") + "\n"),
        ("a.json", in_lines(ROWS)),
        ("a.json", json.dumps([{"label": int(b), "text": a} for a, b in ROWS], indent=1)),
        ("a.json", json.dumps(ROWS)),
        ("a.parquet", pl.DataFrame({"label": [1, 0, 1], "text": [a for a, _ in ROWS], "more": [[1], [2], []]})),
        (
            "a.parquet",
            pl.DataFrame({"a": [a for a, _ in ROWS], "b": ["1", "0", "1"]}, schema_overrides={"b": pl.Categorical}),
        ),
        ("data[1]*.parquet", pl.DataFrame({"text": [a for a, _ in ROWS], "label": ["1", "0", "1"]})),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_gives_the_same_rows(tmp_path, name, content, zipped):
    path = write(tmp_path / name, content)
    if zipped:
        if isinstance(content, pl.DataFrame):
            pytest.skip("Parquet is compressed by itself")
        path = write(tmp_path / f"{name}.gz", gzip.compress(path.read_bytes()))
    assert read(path) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "gb18030"])
def test_other_encodings(tmp_path, name, encoding):
    content = {"a.csv": csv(ROWS), "a.tsv": csv(ROWS, "\t")}.get(name, in_lines(ROWS))
    path = write(tmp_path / name, content, encoding)
    assert read(path, encoding=encoding) == ROWS
    with pytest.raises(ValueError, match=r"a\.\w+: expected UTF-8 text, got byte 0x.* --encoding "):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-17", "hex", "a\0b", "x" * 5000])
def test_unknown_encodings(tmp_path, encoding):
    with pytest.raises(
        ValueError, match=r"^encoding: expected the name of a text encoding, such as utf-8"
    ) as caught:
        read(write(tmp_path / "a.csv", csv(ROWS)), encoding=encoding)
    assert len(str(caught.value)) < 250


def test_quotes_in_tabbed_lines_are_texts_unless_all_of_them_hold_cells(tmp_path):
    path = write(tmp_path / "a.tsv", '"Well," he said\tx\n"all"\ty\n')
    assert read(path) == [('"Well," he said', "x"), ('"all"', "y")]
    path = write(tmp_path / "a.tsv", '"Well,"" he said"\tx\n"all\nof it"\ty\n')
    assert read(path) == [('Well," he said', "x"), ("all\nof it", "y")]
    path = write(tmp_path / "a.tsv", '"never closed\tx\n' * 3)
    assert read(path) == [('"never closed', "x")] * 3


def test_a_quote_inside_a_cell_is_a_quote(tmp_path):
    path = write(tmp_path / "a.csv", 'a 5" pipe,x\n\n"so, ""good""",y\nthe "end",x\n')
    assert read(path) == [('a 5" pipe', "x"), ('so, "good"', "y"), ('the "end"', "x")]


def test_fasttexts_lines(tmp_path):
    path = write(tmp_path / "a.txt", "__label__x  how  are you\n\n__label__x __label__y fine\nthanks __label__y\n")
    assert read(path) == [("how are you", "x"), ("fine", "x,y"), ("thanks", "y")]


def test_the_parts_of_one_json_file(tmp_path):
    content = {"train": ROWS, "val": [{"review": "a", "class": True}], "oos": [], "test": [["b", 2.5]]}
    read_parts = read_tables(write(tmp_path / "a.json", json.dumps(content)), ROLES)
    assert list(read_parts.parts) == ["train", "valid", "test"]
    assert read_parts.notes == ["left out: oos of a.json"]
    [table] = read_parts.parts["valid"]
    assert (texts(table, 0, TEXT), labels(table, 1, LABEL)) == (["a"], ["True"])
    assert labels(read_parts.parts["test"][0], 1, LABEL) == ["2.5"]


# Headers


def header(path, roles=(), **options):
    found = read_tables(path, roles, **options)
    return [[table.named for table in tables] for tables in found.parts.values()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\ngood day,x\n", True),
        ("Text , LABEL\ngood day,x\n", True),
        ("tweet_text,airline mood\n" + "good day,x\nbad day,y\n" * 5, True),  # above a few values
        ("user,item,when\n7,8,2020\n9,3,2021\n", True),  # above numbers
        ("user,item\n7,\n,3\n", True),
        ("label,label\nx,a\n", True),
        ("good day,x\nbad day,y\n", False),  # nothing says so
        ("hello,x\n" + "good day,x\nbad day,y\n" * 5, False),  # x comes again
        ("text,label\nlabel,label\n", False),
        ("7,8\n9,3\n", False),
        ("text,label\n", False),  # nothing below
    ],
)
def test_what_is_a_header(tmp_path, content, expected):
    assert header(write(tmp_path / "a.csv", content), ROLES) == [[expected]]


def test_a_header_is_found_in_every_file_alike(tmp_path):
    content = "tweet\tmood\n{}\tx\n"
    files = {part: [write(tmp_path / f"{part}.tsv", content.format(part))] for part in ("train", "valid", "test")}
    assert header(tmp_path, parts=files) == [[True]] * 3
    found = read_tables(tmp_path, ROLES, parts=files)
    assert found.notes == [
        *(f"{part}: {part}.tsv" for part in files),
        "the first row of 3 files was taken for a header: tweet, mood",
    ]
    write(tmp_path / "test.tsv", "a\tx\nb\ty\n")
    assert header(tmp_path, parts=files) == [[True], [True], [False]]
    assert "no header in test.tsv: columns as in train.tsv" in read_tables(tmp_path, ROLES, parts=files).notes


def test_first_rows_that_are_alike_and_come_again_are_rows(tmp_path):
    """The first rows of both are alike; that of one has a label that comes again, so neither is a header."""
    files = {
        "train": [write(tmp_path / "train.tsv", "hello\tx\nbye\ty\nhi\tx\n")],
        "test": [write(tmp_path / "test.tsv", "hello\tx\nbye\ty\n")],
    }
    assert header(tmp_path, parts=files) == [[False], [False]]


# Columns


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((None, None), [2, 0]),
        (("1", None), None),  # two are left for the label, one of them by name
        (("title", "2"), [1, 1]),
        (("TITLE", None), [1, 0]),
        (("3", "1"), [2, 0]),
        (("body", "label"), "text_column: expected the name or the number of a column, got 'body'"),
        (("4", "label"), "text_column: expected the name or the number of a column, got '4'; its columns are"),
        (("0", "label"), "got '0'"),
        (("x" * 90_000, "label"), "got 'xxxx"),
    ],
)
def test_columns_by_name_or_number(tmp_path, wanted, expected):
    [table] = read_tables(write(tmp_path / "a.csv", "label,title,text\nx,a,b\n"), ROLES).parts["all"]
    roles = [Role(role.option, want, role.known) for role, want in zip(ROLES, wanted, strict=True)]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            find_columns(table, roles)
        assert len(str(caught.value)) < 350
    elif expected is None:
        with pytest.raises(ValueError, match="expected --label-column to say which column"):
            find_columns(table, roles)
    else:
        assert find_columns(table, roles) == expected


def test_columns_that_nothing_tells_apart(tmp_path):
    for content, message in (
        (
            "a,b,c\nd,e,f\n",
            r"expected --text-column and --label-column .* it has no names of columns, and begins with",
        ),
        ("user,item,rating\n1,2,3\n4,5,6\n", r"its columns are \['user', 'item', 'rating'\]"),
        ("text,when,who\na,1,b\n", "expected --label-column to say which column, got none"),
        (
            "text,label,label\na,x,y\n",
            "expected one column named 'label', got 2: give the option its number, one of 2, 3",
        ),
        ("a\nb\n", "expected a column each for text and label, got 1 in all"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read(write(tmp_path / "a.csv", content))
        assert "\n" not in str(caught.value)
    duplicate = Role("label_column", "3", ("label",))
    assert read(write(tmp_path / "a.csv", "text,label,label\na,x,y\n"), [TEXT, duplicate]) == [("a", "y")]


# Bad files

LONG = "x" * 200_000
BAD = [
    ("a.csv", "", "expected a table, got an empty file"),
    ("a.csv", " \n\t\n", "expected a table, got only whitespace"),
    (
        "a.csv",
        "a,b\nc,d,e\n",
        "row 2: expected 2 cells with a comma between, as in the first row, got 3: 'c,d,e'; a cell",
    ),
    ("a.csv", f"a,b\nc,d,{LONG}\n", "row 2: expected 2 cells"),
    (
        "a.csv",
        "text,label\nc,x\n\nd\n",
        r"row 4: expected a label in column 'label', got an empty cell in \['d', None\]",
    ),
    ("a.csv", "text,label\nc,x\n ,y\n", r"row 3: expected a text in column 'text', got an empty cell"),
    ("a.csv", 'a,b\n"c,d\n', "row 2: expected whole double quotes around a cell"),
    ("a.csv", 'a,b\n"c"d,e\n', "row 2: expected whole double quotes around a cell"),
    ("a.tsv", f"a\tb\nc\td\t{LONG}\n", "row 2: expected 2 cells with a tab between, as in the first row, got 3"),
    ("a.csv", b"PK\x03\x04\0\0\0\0zip", "expected UTF-8 text, got byte 0x00 at offset 4: a binary file"),
    ("a.csv", gzip.compress(b"a,b\n" * 99, mtime=0)[:-9], "expected a whole gzip file, got a damaged one"),
    ("a.jsonl", '{"text": "a"', "line 1: expected JSON, got text that is not"),
    (
        "a.jsonl",
        '{"text": "a", "label": 1}\n\n{"text": "b"}\n',
        "line 3: expected a label in column 'label', got an empty",
    ),
    ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', r"line 2: expected an object, got \[1\]"),
    ("a.jsonl", '{"text": "a", "text": "b"}\n', "line 1: expected JSON, got the name 'text' twice in one object"),
    (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": "b", "label": "c"}\n',
        "line 2: expected values of one kind in column",
    ),
    ("a.jsonl", '{"text": "a", "label": NaN}\n', "line 1: expected a label in column 'label', got an empty cell"),
    ("a.jsonl", '{"text": null, "label": 1}\n', "line 1: expected a text in column 'text', got an empty cell"),
    ("a.jsonl", '{"text": 3, "label": 1}\n', "expected --text-column to be a column of texts, got 'text' of Int64"),
    (
        "a.jsonl",
        '{"text": "a", "label": ["b"]}\n',
        r"one label in a cell, got 'label' of lists or objects, such as \['b'\]",
    ),
    (
        "a.jsonl",
        '{"text": "\\ud800", "label": 1}\n',
        "line 1: expected text in column 'text', got half a character",
    ),
    ("a.jsonl", f'{{"text": "a", "label": {10**60}}}\n', "expected numbers of at most 64 bits in column 'label'"),
    ("a.jsonl", "[" * 100_000, "line 1: expected JSON, got maximum recursion depth"),
    ("a.json", f'"{LONG}"', "expected a list of rows or an object with train, val and test, got 'xxx"),
    (
        "a.json",
        '{"a": 1}',
        r"expected rows, or lists of them named train, val and test, got an object with \['a'\]",
    ),
    ("a.json", '[[1, "a"], [2]]', r"\[1\]: expected a list of 2 cells, got \[2\]"),
    ("a.json", '{"train": {"a": 1}}', "train: expected a list of rows, got"),
    ("a.txt", "__label__x\n", "line 1: expected __label__ and a label, then a text, got '__label__x'"),
    ("a.txt", f"__label__x a\n{LONG}\n", "line 2: expected __label__ and a label"),
    ("a.parquet", b"", "expected a whole Parquet file, got another"),
    ("a.parquet", b"PAR1 and no more", "expected a whole Parquet file, got another"),
    ("a.parquet", pickle.dumps({"text": ["a"]}), "expected a whole Parquet file, got another"),
    ("a.parquet", pl.DataFrame({"text": [], "label": []}), "expected rows, got none"),
    ("a.parquet", pl.DataFrame({"text": ["a", None], "label": [1, 2]}), "row 2: expected a text in column 'text'"),
    (
        "a.parquet",
        pl.DataFrame({"text": ["a", "b"], "label": [1.0, float("nan")]}),
        "row 2: expected a label in column",
    ),
    ("a.parquet", pl.DataFrame({"text": ["a"], "label": [[1, 2]]}), r"of lists or objects, such as \[1, 2\]"),
    ("a.parquet", pl.DataFrame({"text": [b"a"], "label": [1]}), "a column of texts, got 'text' of Binary"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_files_get_one_short_line(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(shown(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 410


def test_a_cut_parquet_file(tmp_path):
    path = write(tmp_path / "a.parquet", pl.DataFrame({"text": [f"a {i}" for i in range(999)], "label": [1] * 999}))
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:100], whole[:50] + b"\xff" * 40 + whole[90:]):
        with pytest.raises(ValueError, match=r"a\.parquet: expected a whole Parquet file, got another"):
            read(write(path, content))


def test_a_file_larger_than_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", csv(ROWS))
    packed = write(tmp_path / "b.csv", gzip.compress(b"a,b\n" * 10_000))
    table = write(tmp_path / "c.parquet", pl.DataFrame({"text": ["a"], "label": ["b"]}))
    for large, most in ((path, 20), (packed, 1_000), (table, 100)):
        monkeypatch.setattr("vastmax.data.files.memory", lambda most=most: most)
        with pytest.raises(
            ValueError, match=r"expected a file that fits into the 0\.0 GB of memory, got one of more than"
        ):
            read(large)


def test_no_limit_of_the_csv_module_is_left_changed(tmp_path):
    import csv as module

    before = module.field_size_limit()
    rows = [(f'{LONG} "{LONG}"', "x"), ("b", "y")]
    assert read(write(tmp_path / "a.csv", csv(rows))) == rows
    assert module.field_size_limit() == before
