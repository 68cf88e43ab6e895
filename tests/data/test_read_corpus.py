import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vastmax.data import looks_tokenised, read_corpus
from vastmax.validation import shown

PROSE = [f"Line {i}, which is (nearly) as long as any other; isn't it?" for i in range(100, 300)]
TOKENISED = [f"line {i} , which is ( nearly ) as long as any other ; is n't it ?" for i in range(200)]


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_a_file_is_cut_in_order_at_line_ends(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path / "song.txt", PROSE))
    assert corpus.train + corpus.valid + corpus.test == PROSE
    assert [len(corpus.train), len(corpus.valid), len(corpus.test)] == pytest.approx([180, 10, 10], abs=1)
    assert (corpus.name, corpus.source) == ("song", str(tmp_path / "song.txt"))


def test_one_giant_line_is_cut_between_words(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(1000, 2000)]
    corpus = read_corpus(write(tmp_path / "text8", [" ".join(words)]))
    train, valid, test = [" ".join(lines).split() for lines in (corpus.train, corpus.valid, corpus.test)]
    assert train + valid + test == words
    assert [len(train), len(valid), len(test)] == pytest.approx([900, 50, 50], abs=1)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param(b"a b\r\nc d\r\n", ["a b", "c d"], id="carriage returns"),
        pytest.param(b"\xef\xbb\xbfa b\nc d", ["a b", "c d"], id="byte order mark, no last line end"),
        pytest.param(b"\na\n\nb c\n\n", ["", "a", "", "b c", ""], id="blank lines"),
        pytest.param("a\x0bb\nc\u2028d\x85e\rf\n".encode(), ["a\x0bb", "c\u2028d\x85e\rf"], id="other separators"),
    ],
)
def test_lines_end_at_newlines_only(tmp_path: Path, content: bytes, lines: list[str], zipped: bool) -> None:
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    corpus = read_corpus(tmp_path)
    assert corpus.train == corpus.valid == corpus.test == lines


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        ("train.txt", "val.txt", "test.txt"),
        ("train.txt.gz", "validation.txt", "test.txt.gz"),
        ("Train.TXT", "DEV.TXT", "Test.TXT"),
    ],
)
def test_a_folder_whose_names_say_which_split(tmp_path: Path, train: str, valid: str, test: str) -> None:
    write(tmp_path / train, ["a b c"])
    write(tmp_path / valid, ["d"])
    write(tmp_path / test, ["e"])
    write(tmp_path / "train_test.txt", ["says two"])
    corpus = read_corpus(tmp_path)
    assert (corpus.train, corpus.valid, corpus.test) == (["a b c"], ["d"], ["e"])
    assert corpus.name == tmp_path.name
    assert "left out: train_test.txt" in corpus.notes


@pytest.mark.parametrize(
    ("given", "missing", "left"),
    [(["test"], ["valid"], 190), (["valid"], ["test"], 190), ([], ["valid", "test"], 180)],
)
def test_missing_splits_come_from_the_end_of_train(
    tmp_path: Path, given: list[str], missing: list[str], left: int
) -> None:
    write(tmp_path / "train.txt", PROSE)
    for split in given:
        write(tmp_path / f"{split}.txt", [split])
    corpus = read_corpus(tmp_path)
    splits = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    assert [line for split in ["train", *missing] for line in splits[split]] == PROSE
    assert len(corpus.train) == pytest.approx(left, abs=1)
    assert all(splits[split] == [split] for split in given)
    assert [note.split(":")[0] for note in corpus.notes if "cut from the end of train" in note] == missing


def test_several_files_of_one_split_are_joined_by_name(tmp_path: Path) -> None:
    for name in ("train_pos.tsv.gz", "train_neg.tsv.gz", "valid.tsv", "test.tsv"):
        write(tmp_path / name, [f"a b {name}"])
    assert read_corpus(tmp_path).train == ["a b train_neg.tsv.gz", "a b train_pos.tsv.gz"]


def test_code_named_train_and_test_is_not_a_layout(tmp_path: Path) -> None:
    for name in ("train.py", "test.py", "other.py"):
        write(tmp_path / name, PROSE)
    corpus = read_corpus(tmp_path)
    assert len(corpus.train) == pytest.approx(540, abs=2)


def test_one_file_about_trains_is_not_a_layout(tmp_path: Path) -> None:
    for name in ("bus.txt", "ship.txt", "train.txt"):
        write(tmp_path / name, [f"{name} {line}" for line in PROSE])
    corpus = read_corpus(tmp_path)
    assert len(corpus.train + corpus.valid + corpus.test) == 600


def test_any_other_folder_is_split_by_whole_files(tmp_path: Path) -> None:
    names = [f"{folder}/{i}{suffix}" for i in range(20) for folder, suffix in [("a", ".txt"), ("a/b", ".md.gz")]]
    for name in names:
        write(tmp_path / name, [f"{name} {i}" for i in range(10)])
    for name in (".hidden.txt", ".git/config.txt", "picture.png", "empty.txt"):
        write(tmp_path / name, [] if name == "empty.txt" else ["hidden"])
    corpus = read_corpus(tmp_path)
    files = [{line.split()[0] for line in lines} for lines in (corpus.train, corpus.valid, corpus.test)]
    assert sorted(name for split in files for name in split) == sorted(names)  # each in one split
    assert [len(split) for split in files] == pytest.approx([36, 2, 2], abs=1)
    assert corpus == read_corpus(tmp_path)
    assert "left out: 1 empty files" in corpus.notes


def test_files_too_few_to_split_whole_are_cut_by_lines(tmp_path: Path) -> None:
    write(tmp_path / "1.txt", PROSE[:100])
    write(tmp_path / "2.txt", PROSE[100:])
    corpus = read_corpus(tmp_path)
    assert corpus.train + corpus.valid + corpus.test == PROSE
    assert len(corpus.train) == pytest.approx(180, abs=1)


def test_a_stray_file_that_is_not_utf8_is_left_out_and_noted(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / f"{i}.txt", [f"a b c {i}"] * 10)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    corpus = read_corpus(tmp_path)
    assert "left out as not UTF-8: latin.txt" in corpus.notes
    assert not any("caf" in line for line in corpus.train + corpus.valid + corpus.test)


def missing(path: Path) -> None:
    path.rmdir()


def nothing(path: Path) -> None:
    pass


def pictures(path: Path) -> None:
    for name in ("a.png", "b.png", "c"):
        (path / name).write_bytes(b"\0")


def mostly_latin(path: Path) -> None:
    write(path / "readme.txt", ["a b c"])
    (path / "text.txt").write_bytes(b"caf\xe9 " * 100)


def twice(path: Path) -> None:
    write(path / "wiki.train.raw", PROSE)
    write(path / "wiki.train.tokens", PROSE)
    write(path / "wiki.test.tokens", PROSE)


def blank_test(path: Path) -> None:
    write(path / "train.txt", PROSE)
    write(path / "test.txt", ["", " "])


def empty_files(path: Path) -> None:
    write(path / "a.txt", [])
    write(path / "b.txt", ["  "])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (missing, FileNotFoundError, "corpus: no such file or folder"),
        (nothing, ValueError, "corpus: expected text files such as .txt, .md or .py, .* below it, got no files"),
        (pictures, ValueError, r"got .png \(2\), no suffix \(1\)"),
        (mostly_latin, ValueError, "text.txt: expected UTF-8 text, got byte 0xe9 at offset 3"),
        (twice, ValueError, "expected one file for wiki.train, got wiki.train.raw, wiki.train.tokens"),
        (blank_test, ValueError, "test.txt: expected text, got only whitespace"),
        (empty_files, ValueError, "corpus: expected text, got 2 empty files"),
    ],
)
def test_folders_refused(
    tmp_path: Path, make: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    make(folder)
    with pytest.raises(error, match=message):
        read_corpus(folder)


ZIPPED = gzip.compress(
    "\n".join(PROSE).encode(), mtime=0
)  # the hour is no part of a test's name, on which workers must agree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b" \n\t\n", "got only whitespace"),
        (b"one", "at least 3 tokens to split, got 1: 'one'; --split says where words end, and --tokens bpe"),
        (b"one two\n", "at least 3 tokens to split, got 2: 'one two'; --split"),
        (b"one one\none\n", "at least 2 distinct tokens, got only 'one'"),
        (b"a b c\0d", "got byte 0x00 at offset 5: a binary file"),
        (b"a b c\n\x89PNG", "expected UTF-8 text, got byte 0x89 at offset 6"),
        (b"\xef\xbb\xbfa b\xff", "got byte 0xff at offset 6"),
        ("a b c".encode("utf-16"), "got byte 0xff at offset 0"),
        (ZIPPED[:100], "expected a whole gzip file, got a damaged one"),
        (ZIPPED[:-8] + b"\0" * 8, "expected a whole gzip file, got a damaged one"),
        (ZIPPED[:99] + b"\xff" * 50 + ZIPPED[149:], "expected a whole gzip file, got a damaged one"),
        (b"\x1f\x8b", "expected a whole gzip file, got a damaged one"),
        (gzip.compress(b"", mtime=0), "got an empty file"),
    ],
)
def test_files_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(shown(path))}: .*{message}") as caught:
        read_corpus(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: a special file .* expected a regular file or a folder"):
        read_corpus(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (TOKENISED, True),
        (["mr. <unk> is chairman of <unk> n.v. the dutch publishing group"], True),
        (PROSE, False),
        (["def f(x, y):", "    return g(x)(y)"], False),
        (["plain words without any punctuation"], False),
        ([], False),
        (TOKENISED * 20 + PROSE, True),
        ([" ".join(TOKENISED)], True),
    ],
)
def test_looks_tokenised(lines: list[str], expected: bool) -> None:
    assert looks_tokenised(lines) is expected


def test_looks_tokenised_judges_a_bounded_prefix() -> None:
    def endless() -> object:
        while True:
            yield "no , it was n't ."

    assert looks_tokenised(endless(), max_chars=1000)
    assert looks_tokenised([*TOKENISED[:5], *PROSE], max_chars=len("".join(TOKENISED[:5])) + 3)
