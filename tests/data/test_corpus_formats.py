"""Corpora of other formats than lines of text: tables, data sets, folders of files without a suffix, encodings."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from vastmax.data import Corpus, read_corpus

PROSE = [f"Line {i}, which is (nearly) as long as any other; isn't it?" for i in range(100, 300)]


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# Tables


def write_table(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pl.DataFrame({"id": range(len(texts)), "text": texts}).write_parquet(path)
        return path
    return write(path, [json.dumps({"text": text, "id": i, "tags": ["a"]}) for i, text in enumerate(texts)])


def all_lines(corpus: Corpus) -> list[str]:
    return corpus.train + corpus.valid + corpus.test


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_table_is_its_column_of_texts(tmp_path: Path, name: str) -> None:
    corpus = read_corpus(write_table(tmp_path / name, [*PROSE, "", "two\nlines"]))
    assert all_lines(corpus) == [*PROSE, "", "two", "lines"]
    assert corpus.notes[0] == "texts from column 'text'"
    other = read_corpus(write_table(tmp_path / name, PROSE), text_column="TEXT")
    assert all_lines(other) == PROSE


def test_the_column_is_named_or_found(tmp_path: Path) -> None:
    rows = "".join(f'{i},"{line}"\n' for i, line in enumerate(PROSE))
    path = tmp_path / "a.csv"
    path.write_text("id,review\n" + rows, encoding="utf-8")
    found = read_corpus(path)
    assert all_lines(found) == PROSE
    assert found.notes[:2] == ["the first row was taken for a header: id, review", "texts from column 'review'"]
    path.write_text("id,what\n" + rows, encoding="utf-8")
    plain = read_corpus(path)
    assert all_lines(plain) == ("id,what\n" + rows).splitlines()
    assert plain.notes[0] == (
        "read as plain lines, for neither --text-column nor a first row names a column: a.csv"
    )
    for column in ("what", "2"):
        assert all_lines(read_corpus(path, text_column=column)) == PROSE
    with pytest.raises(
        ValueError, match=r"a\.csv: text_column: expected the name or the number .* \['id', 'what'\]"
    ):
        read_corpus(path, text_column="text")
    table = write_table(tmp_path / "b.parquet", PROSE)
    with pytest.raises(ValueError, match="expected --text-column to be a column of texts, got 'id' of Int64"):
        read_corpus(table, text_column="1")
    with pytest.raises(
        ValueError, match=r"text_column: expected a table .* to take a column of, got 'text' beside"
    ):
        read_corpus(write(tmp_path / "a.md", PROSE), text_column="text")


@pytest.mark.parametrize("place", ["", "data", "plain_text/v1"])
def test_a_folder_of_a_data_set(tmp_path: Path, place: str) -> None:
    """Its README is about the data, and its shards are one text."""
    write(tmp_path / "README.md", ["about"] * 9_000)
    write(tmp_path / "dataset_infos.json", ["{}"])
    for name, texts in (
        ("train-00000-of-00002", ["a b"]),
        ("train-00001-of-00002", ["c"]),
        ("test-00000-of-00001", ["d"]),
    ):
        write_table(tmp_path / place / f"{name}.parquet", texts)
    write_table(tmp_path / place / "validation.jsonl", ["e"])
    corpus = read_corpus(tmp_path)
    assert (corpus.train, corpus.valid, corpus.test) == (["a b", "c"], ["e"], ["d"])
    prefix = f"{place}/" if place else ""
    assert corpus.notes == [
        f"train: {prefix}train-00000-of-00002.parquet, {prefix}train-00001-of-00002.parquet",
        f"valid: {prefix}validation.jsonl",
        f"test: {prefix}test-00000-of-00001.parquet",
        "texts from column 'text'",
        "left out: README.md, dataset_infos.json",
    ]


def test_two_data_sets_in_one_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_table(tmp_path / name / "train.parquet", PROSE)
    with pytest.raises(ValueError, match="expected one data set, got one, two: name the folder of one"):
        read_corpus(tmp_path)


def test_a_folder_of_tables_without_names_of_parts(tmp_path: Path) -> None:
    write(tmp_path / "README.md", ["about"] * 9_000)
    write(tmp_path / "notes.txt", ["a few words"])
    for i in range(4):
        write_table(tmp_path / f"{i}.jsonl", PROSE[50 * i : 50 * i + 50])
    corpus = read_corpus(tmp_path)
    assert all_lines(corpus) == PROSE
    assert corpus.notes[0] == "4 files: 0.jsonl, 1.jsonl, 2.jsonl and 1 more"
    assert corpus.notes[-1] == "left out: README.md, notes.txt"


def test_files_without_a_suffix_are_text_where_most_of_a_folder_is(tmp_path: Path) -> None:
    """As in NLTK's Brown corpus: 500 files ca01 to cr09, README, CONTENTS, and cats.txt."""
    for i in range(100, 150):
        write(tmp_path / f"ca{i}", [f"ca{i} the/at jury/nn said/vbd ./."] * 5)
    for name in ("README", "CONTENTS", "cats.txt"):
        write(tmp_path / name, [f"{name} about"] * 3)
    (tmp_path / "binary").write_bytes(b"\0" * 100)
    corpus = read_corpus(tmp_path)
    assert {line.split()[0] for line in all_lines(corpus)} == {f"ca{i}" for i in range(100, 150)}
    assert corpus.notes[0] == "50 files: ca100, ca101, ca102 and 47 more"
    assert corpus.notes[-1] == "left out: CONTENTS, README, binary and 1 more"
    write(tmp_path / "long.txt", PROSE * 5)
    texts = read_corpus(tmp_path)
    assert sorted(all_lines(texts)) == sorted([*["cats.txt about"] * 3, *PROSE * 5])
    assert texts.notes[-1] == "left out: CONTENTS, README, binary and 50 more"


def test_a_folder_of_nothing_but_what_it_is_about(tmp_path: Path) -> None:
    write(tmp_path / "README.md", PROSE)
    assert all_lines(read_corpus(tmp_path)) == PROSE
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"expected text files .* got \.md \(1\), \.zip \(1\)"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "gb18030"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    lines = [f"é{line}" for line in PROSE]
    for name in ("a.txt", "folder/a.txt", "folder/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes("\n".join(lines).encode(encoding))
    assert all_lines(read_corpus(tmp_path / "a.txt", encoding=encoding)) == lines
    assert all_lines(read_corpus(tmp_path / "folder", encoding=encoding)) == lines * 2
    hint = {"utf-16": "utf-16 reads", "utf-16-le": "utf-16-le reads"}.get(encoding, "names another")
    for path in (tmp_path / "a.txt", tmp_path / "folder"):
        with pytest.raises(ValueError, match=f"expected UTF-8 text, got byte 0x.*--encoding {hint}"):
            read_corpus(path)


# Text without spaces

CLAUSES = ["我们去年夏天去过北京，今年冬天想去南方看海。", "他们没有去过那里，所以很想知道那里是什么样子。"]


@pytest.mark.parametrize("between", ["", "\n", " "])
def test_a_text_without_spaces_is_cut_in_order(tmp_path: Path, between: str) -> None:
    text = between.join(CLAUSES * 60)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    corpus = read_corpus(tmp_path / "a.txt")
    parts = ["".join("".join(lines).split()) for lines in (corpus.train, corpus.valid, corpus.test)]
    assert "".join(parts) == "".join(text.split())
    assert [len(part) / len("".join(parts)) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)


def test_one_long_word_is_refused_in_a_line_and_cut_for_byte_pairs(tmp_path: Path) -> None:
    (tmp_path / "dna.txt").write_text("ACGGT" * 10_000, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"got 1: 'ACGGT.*--split says where words end, and --tokens bpe"
    ) as caught:
        read_corpus(tmp_path / "dna.txt")
    assert len(str(caught.value)) < len(str(tmp_path)) + 250
    corpus = read_corpus(tmp_path / "dna.txt", within_words=True)
    assert [len(lines[0]) for lines in (corpus.train, corpus.valid, corpus.test)] == [45_000, 2_500, 2_500]
    (tmp_path / "dna.txt").write_text("\n".join(["A" * 50_000] * 4), encoding="utf-8")
    with pytest.raises(ValueError, match=r"at least 2 distinct tokens, got only 'AAAA.*again and again") as caught:
        read_corpus(tmp_path / "dna.txt")
    assert len(str(caught.value)) < len(str(tmp_path)) + 250
