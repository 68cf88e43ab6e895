"""Labelled text in the formats people have: what is taken for what, and what is said of it."""

import gzip
import json
import random

import numpy as np
import polars as pl
import pytest

from vastmax.commands import run
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import labelled_text, pose, read_data

WORDS = {"cat": "meow, purr", "dog": 'bark "wag"', "owl": "hoot; fly"}
ROWS = [(f"{words} {i}", label) for i in range(10) for label, words in WORDS.items()]
COLUMNS = "texts from column {}, labels from column {}"


def csv(rows, mark=","):
    return "".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)


def tsv(rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def frame(rows=ROWS, names=("text", "label")):
    return pl.DataFrame(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pl.DataFrame):
        content.write_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(data):
    return [(text, data.classes[label]) for text, label in zip(data.inputs, data.label, strict=True)]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.tsv", tsv(ROWS), "12"),
        ("a.txt", tsv(ROWS), "12"),
        ("a.csv", csv(ROWS), "12"),
        ("a.csv.gz", gzip.compress(csv(ROWS).encode()), "12"),
        ("a.csv", csv([("text", "label"), *ROWS]), ("'text'", "'label'")),
        ("a.csv", csv([("Category", "Review"), *((b, a) for a, b in ROWS)], ";"), ("'Review'", "'Category'")),
        ("a.tsv", tsv([("what was heard", "animal"), *ROWS]), ("'what was heard'", "'animal'")),
        ("a.jsonl", "\n".join(json.dumps({"label": b, "text": a}) for a, b in ROWS), ("'text'", "'label'")),
        ("a.json", json.dumps([{"text": a, "label": b} for a, b in ROWS]), ("'text'", "'label'")),
        ("a.parquet", frame(), ("'text'", "'label'")),
        ("a.parquet", frame(names=("heard", "class")), ("'heard'", "'class'")),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content, names):
    data = labelled_text(write(tmp_path / name, content))
    assert rows_of(data) == ROWS
    assert data.name == "a"
    assert COLUMNS.format(*names) in data.notes
    headed = not name.startswith(("a.json", "a.parquet")) and names != "12"
    assert any("was taken for a header" in note for note in data.notes) is headed


def test_fasttexts_lines(tmp_path):
    lines = "".join(f"__label__{label} {text}\n" for text, label in ROWS)
    data = labelled_text(write(tmp_path / "a.txt", lines))
    assert rows_of(data) == ROWS


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("names", [("text", "label"), ("heard", "animal")])
def test_a_header_is_no_class_in_any_file_of_a_folder(tmp_path, suffix, names):
    make = {
        ".tsv": lambda rows: tsv([names, *rows]),
        ".csv": lambda rows: csv([names, *rows]),
        ".jsonl": lambda rows: "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows),
        ".parquet": lambda rows: frame(rows, names),
    }[suffix]
    for part, rows in (("train", ROWS), ("valid", ROWS[:6]), ("test", ROWS[:9])):
        write(tmp_path / f"{part}{suffix}", make(rows))
    write(tmp_path / "README.md", "about")
    data = labelled_text(tmp_path)
    assert data.classes == tuple(WORDS)
    assert np.bincount(data.part).tolist() == [30, 6, 9]
    expected = [f"{part}: {part}{suffix}" for part in ("train", "valid", "test")]
    if suffix in (".tsv", ".csv"):
        expected.append(f"the first row of 3 files was taken for a header: {', '.join(names)}")
    assert list(data.notes) == [*expected, "left out: README.md", COLUMNS.format(*map(repr, names))]


def test_columns_in_another_order_in_each_file(tmp_path):
    write(tmp_path / "train.csv", csv([("label", "text"), *((b, a) for a, b in ROWS)]))
    write(tmp_path / "valid.csv", csv([("text", "id", "label"), *((a, "7", b) for a, b in ROWS[:3])]))
    write(tmp_path / "test.csv", csv([("text", "label"), *ROWS[:3]]))
    assert rows_of(labelled_text(tmp_path)) == [*ROWS, *ROWS[:3], *ROWS[:3]]
    write(tmp_path / "test.csv", csv([("text", "class"), *ROWS[:3]]))
    with pytest.raises(
        ValueError, match=r"test\.csv: label_column: expected the name .* got 'label'; its columns are"
    ):
        labelled_text(tmp_path)
    write(tmp_path / "test.csv", csv((a, b, a) for a, b in ROWS))
    with pytest.raises(ValueError, match=r"test\.csv: expected 2 columns, as in train\.csv, got 3"):
        labelled_text(tmp_path)


def test_a_data_set_as_it_is_published(tmp_path):
    """Parquet in a folder of its own, in shards, without a part for validation."""
    write(tmp_path / "README.md", "about")
    write(tmp_path / "data" / "train-00000-of-00002.parquet", frame(ROWS[:15]))
    write(tmp_path / "data" / "train-00001-of-00002.parquet", frame(ROWS[15:]))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", frame(ROWS[:6]))
    data = labelled_text(tmp_path)
    assert [np.bincount(data.label[data.part == part]).tolist() for part in range(3)] == [[9] * 3, [1] * 3, [2] * 3]
    assert "valid: no file says so; 10% of train, class by class" in data.notes
    assert labelled_text(tmp_path).fingerprint() == data.fingerprint()


@pytest.mark.parametrize(("text", "label"), [("what", "mood"), ("3", "2"), ("WHAT", None)])
def test_columns_as_the_user_names_them(tmp_path, text, label):
    content = csv([("who", "mood", "what"), *(("me", b, a) for a, b in ROWS)])
    path = write(tmp_path / "a.csv", content)
    config = ClassifyConfig(data=str(path), text_column=text, label_column=label)
    if label is None:
        with pytest.raises(ValueError, match="expected --label-column to say which column, got none"):
            read_data(config)
    else:
        assert rows_of(read_data(config)) == ROWS


SWAPPED = tsv((b, a) for a, b in ROWS)


@pytest.mark.parametrize("content", [SWAPPED, tsv((str(i), a * 3) for i, (a, _) in enumerate(ROWS))])
def test_columns_that_look_swapped_are_named(tmp_path, content):
    path = write(tmp_path / "a.tsv", content)
    with pytest.raises(
        ValueError, match="30 different ones in 30 rows: they look swapped; if so: --text-column 2 --lab"
    ):
        labelled_text(path)


def test_columns_that_are_named_are_taken_as_named(tmp_path):
    path = write(tmp_path / "a.tsv", SWAPPED)
    right = ClassifyConfig(text_column="2", label_column="1")
    assert rows_of(labelled_text(path, right)) == ROWS
    with pytest.raises(
        ValueError, match=r"at least 2 classes to train on, got 0; expected texts .* they look swapped"
    ):
        labelled_text(path, ClassifyConfig(text_column="1", label_column="2"))
    many = tsv((b, f"{i % 20} and {a}") for i in range(3) for a, b in ROWS)
    path = write(tmp_path / "b.tsv", many + tsv([("cat", "one")] * 3 + [("dog", "two")] * 3))
    read = labelled_text(path, ClassifyConfig(text_column="1", label_column="2"))
    assert any("they look swapped" in note for note in read.notes)


@pytest.mark.parametrize(
    "rows",
    [
        [(f"{i} {words}", f"{i} of 9") for i in range(20) for words in WORDS.values()],  # many classes
        [("yes", "a"), ("no", "b")] * 20,  # few texts
        [(f"w{i}", f"a class of many words, number {i % 4}") for i in range(40)],
    ],
)
def test_columns_that_are_not_swapped(tmp_path, rows):
    assert not any("swapped" in note for note in labelled_text(write(tmp_path / "a.tsv", tsv(rows))).notes)


@pytest.mark.parametrize(
    ("label", "several"),
    [
        ("cat,dog", True),
        ("cat, dog", True),
        ("cat|owl|bat", True),
        ("fish;fowl", True),
        ("New York, NY", False),
        ("cat,", False),
        ("cat dog", False),
    ],
)
def test_labels_that_look_like_several_are_said(tmp_path, label, several):
    rows = [*ROWS, *((f"howl {i}", label) for i in range(4))]
    data = labelled_text(write(tmp_path / "a.csv", csv(rows)))
    assert label in data.classes
    note = f"4 rows seem to have several labels, such as '{label}': each is a class of its own"
    assert (note in data.notes) is several


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings(tmp_path, encoding, capsys):
    path = write(tmp_path / "a.tsv", tsv((f"é {a}", b) for a, b in ROWS).encode(encoding))
    data = read_data(ClassifyConfig(data=str(path), encoding=encoding))
    assert rows_of(data)[0] == ("é meow, purr 0", "cat")
    assert run(["compare", "classify", f"--data={path}", f"--out={tmp_path / 'out'}"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "--encoding" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"encoding": "utf-16"}, {"text_column": "text"}, {"label_column": "x" * 9_000}]
)
def test_options_of_a_file_without_one(options):
    with pytest.raises(
        ValueError, match=f"^{next(iter(options))}: expected beside --data, got .* without it"
    ) as caught:
        read_data(ClassifyConfig(**options))
    assert len(str(caught.value)) < 200


def test_a_file_is_never_unpickled(tmp_path):
    class Code:
        def __reduce__(self):
            return (write, (tmp_path / "ran", "code"))

    import pickle

    for name in ("a.pkl", "a.parquet", "a.csv", "a.jsonl"):
        write(tmp_path / name, pickle.dumps(Code()))
        with pytest.raises(ValueError, match="expected"):
            labelled_text(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_texts_without_spaces_are_told_apart_by_their_characters(tmp_path):
    """A clause is no word: it is met once, and a classifier learns nothing from it."""
    draw = random.Random(0)
    rows = []
    for i in range(60):
        letters = [chr(0x4E00 + draw.randrange(300)) for _ in range(12)]
        letters[draw.randrange(12)] = "猫犬"[i % 2]
        rows.append(("".join(letters), ("cat", "dog")[i % 2]))
    data = labelled_text(write(tmp_path / "a.csv", csv(rows)))
    problem = pose(data, ClassifyConfig(), 0)
    shared = (problem.test.features.toarray() > 0).sum(1)
    assert shared.min() > 5  # of twelve characters; of clauses, none
