import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vastmax.data import Vocabulary, build_vocabulary, read_corpus, vocabulary

SHARED = Path(__file__).parents[3] / "shared" / "data"
UNK, EOS = "<unk>", "<eos>"
POEM = ["a rose is a rose", "", "is (a) rose; or: a  rose's thorn"]

WORD_LINES = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "é", "d,e", UNK, EOS, "x<unk>y"]), max_size=8).map(" ".join),
    min_size=1,
).filter(lambda lines: set(" ".join(lines).split()) - {UNK, EOS})


def ranked(stream: list[str]) -> list[str]:
    counts = Counter(stream)
    return sorted(counts, key=lambda token: (-counts[token], token))


def entries(built: Vocabulary) -> list[str]:
    return [built.tokenizer.id_to_token(index) for index in range(built.size)]


@given(WORD_LINES)
def test_ids_and_counts_are_those_of_a_word_count(lines: list[str]) -> None:
    built = build_vocabulary(lines, split="whitespace")
    stream = [token for line in lines for token in [*line.split(), EOS]]
    assert entries(built)[: len(set(stream))] == ranked(stream)
    assert set(entries(built)) == {*stream, UNK, EOS}
    ids = built.encode(lines)
    assert [entries(built)[index] for index in ids.tolist()] == stream
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    "options", [{"split": "whitespace"}, {"split": "words"}, {"min_count": 2}, {"tokens": "bpe"}]
)
@given(lines=WORD_LINES)
def test_counts_are_those_of_the_encoded_training_text(lines: list[str], options: dict[str, Any]) -> None:
    lines = [*lines, "z z"]
    built = build_vocabulary(lines, **options)
    assert torch.equal(built.counts, torch.bincount(built.encode(lines), minlength=built.size))
    assert (built.counts.diff() <= 0).all()


def test_words_split_punctuation_and_keep_unk_whole() -> None:
    built = build_vocabulary(["it's a <unk>, b<unk>!? <eos>"], split="words")
    stream = ["it", "'", "s", "a", UNK, ",", "b", UNK, "!?", EOS, EOS]
    assert [entries(built)[index] for index in built.encode(["it's a <unk>, b<unk>!? <eos>"]).tolist()] == stream
    assert entries(built) == ranked(stream)


@pytest.mark.parametrize(("line", "tokens"), [("no , it is n't <unk> x-y .", 8), ("no, it is (s).", 7)])
def test_auto_splits_words_only_where_text_is_not_tokenised(line: str, tokens: int) -> None:
    assert len(build_vocabulary([line]).encode([line])) == tokens + 1


def test_min_count_cuts_before_vocab_size_and_unk_takes_the_rest() -> None:
    lines = ["e d d c c c b b b b a a a a a"]
    assert entries(build_vocabulary(lines)) == ["a", "b", "c", "d", EOS, "e", UNK]
    built = build_vocabulary(lines, min_count=3, vocab_size=4)
    assert dict(zip(entries(built), built.counts.tolist(), strict=True)) == {UNK: 6, "a": 5, "b": 4, EOS: 1}
    assert entries(built) == [UNK, "a", "b", EOS]
    with pytest.raises(ValueError, match=r"at most 5, the number of distinct tokens at min_count=3 with .* got 6"):
        build_vocabulary(lines, min_count=3, vocab_size=6)


def test_unk_is_there_for_words_never_seen() -> None:
    built = build_vocabulary(POEM)
    unk = entries(built).index(UNK)
    assert built.counts[unk] == 0
    assert built.encode(["thistle rose"])[0] == unk
    assert built.decode(built.encode(["thistle rose"])) == "<unk> rose\n"


def test_decoding() -> None:
    built = build_vocabulary(POEM, split="whitespace")
    ids = built.encode(POEM)
    assert built.decode(ids) == "a rose is a rose\n\nis (a) rose; or: a rose's thorn\n"
    assert built.decode(ids[2:4]) == "is a"
    assert built.decode(ids[:0]) == ""
    assert built.encode([]).shape == (0,)
    with pytest.raises(ValueError, match=r"ids: expected class ids in \[0, "):
        built.decode(torch.tensor([built.size]))


BYTE_PAIRS = build_vocabulary(POEM * 5, tokens="bpe")


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_byte_pairs_give_back_any_text(lines: list[str]) -> None:
    assert BYTE_PAIRS.decode(BYTE_PAIRS.encode(lines)) == "".join(line + "\n" for line in lines)


def test_byte_pairs_merge_what_is_most_frequent() -> None:
    lines = ["abab ab"] * 3  # pairs ab: 9, abab: 3, and with the space before it as byte Ġ
    built = build_vocabulary(lines, tokens="bpe", vocab_size=258)
    assert entries(built)[0] == "ab"
    assert built.counts[:3].tolist() == [9, 3, 3]
    built = build_vocabulary(lines, tokens="bpe")
    assert built.size == 257 + 3
    assert [entries(built)[index] for index in built.encode(lines[:1]).tolist()] == ["abab", "Ġab", EOS]
    with pytest.raises(
        ValueError, match=r"at most 260, the number of byte pairs at min_count=1 with .* and <eos>, got 261"
    ):
        build_vocabulary(lines, tokens="bpe", vocab_size=261)
    assert build_vocabulary(lines, tokens="bpe", min_count=4).size == 257 + 1


@pytest.mark.parametrize("options", [{"split": "whitespace"}, {"split": "words"}, {"tokens": "bpe"}])
@given(
    line=st.text(st.sampled_from("ab' ,\t\u3000é\x1c北京か。，\u3099น้"), min_size=1),
    piece=st.integers(1, 9),
    chunk=st.integers(1, 5),
)
def test_long_lines_encode_as_if_whole(options: dict[str, Any], line: str, piece: int, chunk: int) -> None:
    lines = ["a  b' a,b 北京。か", line, "", line]
    built = build_vocabulary(lines, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "PIECE_CHARS", piece)
        patch.setattr(vocabulary, "CHUNK_PIECES", chunk)
        in_pieces = build_vocabulary(lines, **options)
        assert torch.equal(built.encode(lines), in_pieces.encode(lines))
    assert (entries(built), built.counts.tolist()) == (entries(in_pieces), in_pieces.counts.tolist())


def test_a_long_line_without_spaces_is_encoded_in_pieces() -> None:
    line = "北京去过南方看海，" * 4_000
    built = build_vocabulary([line])
    pieces = [text for text, _ in vocabulary._pieces(vocabulary._gap(built.tokenizer), line)]
    assert "".join(pieces) == line
    assert max(map(len, pieces)) < vocabulary.PIECE_CHARS + 10
    assert len(built.encode([line])) == len(line) + 1


@pytest.mark.parametrize("options", [{"split": "words", "min_count": 2}, {"tokens": "bpe"}])
def test_saved_and_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    built = build_vocabulary(POEM * 2 + ["“quoted” <eos>"], **options)
    built.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert torch.equal(loaded.counts, built.counts)
    text = [*POEM, "a <unk> “quoted” <eos> thistle 北京"]
    assert torch.equal(loaded.encode(text), built.encode(text))
    assert loaded.decode(loaded.encode(text)) == built.decode(built.encode(text))
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.json"]


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vocabulary.json"
    build_vocabulary(["old words"]).save(path)
    before = path.read_bytes()
    write_text = Path.write_text

    def full_disk(self: Path, content: str, encoding: str) -> None:
        write_text(self, content[:100], encoding=encoding)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space left"):
        build_vocabulary(["new words"]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_again_replaces_the_file_and_never_writes_into_it(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    build_vocabulary(["old words"]).save(path)
    with path.open() as old:
        build_vocabulary(["new words"]).save(path)
        assert "old" in json.load(old)["tokenizer"]["model"]["vocab"]
    assert "new" in json.loads(path.read_text())["tokenizer"]["model"]["vocab"]


def changed(**values: object) -> bytes:
    """Return the file of a vocabulary with some of its values changed."""
    built = build_vocabulary(["a b"])
    content = {
        "format": vocabulary.FORMAT,
        "tokenizer": json.loads(built.tokenizer.to_str()),
        "counts": [1, 1, 1, 0],
    }
    return json.dumps(content | values).encode()


def tokenizer(ids: dict[str, int]) -> object:
    model = {"type": "WordLevel", "vocab": ids, "unk_token": UNK}
    return {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(
        ["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a vocabulary in JSON"),
        (changed()[:-20], "expected a vocabulary in JSON"),
        (b"\x80\x04pickle", "expected a vocabulary in JSON"),
        (b"[1, 2]", "expected a JSON file of format 'vastmax vocabulary 1', got another"),
        (b'{"model": {}}', "expected a JSON file of format 'vastmax vocabulary 1', got another"),
        (changed(tokenizer={"model": "none"}), "expected a tokenizer and its counts"),
        (changed(tokenizer=tokenizer({UNK: 0, "a": 1, "b": 2, "c": 3})), "expected an entry <eos>, got none"),
        (changed(tokenizer=tokenizer({UNK: 0, EOS: 1, "b": 2, "c": 9})), "expected ids 0 to 3, got ids with gaps"),
        (changed(counts=[1, 1, 1]), r"expected int64 of shape \(4,\), .* got torch.int64 of shape \(3,\)"),
        (changed(counts=[1, 1, 1, -1]), "0 or greater"),
        (changed(counts=[1, 1, 1, 0.5]), "got torch.float32"),
        (changed(counts="none"), "expected a tokenizer and its counts"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"vocabulary.json: .*{message}"):
        Vocabulary.load(path)


def test_the_changed_file_is_sound_where_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(changed())
    assert Vocabulary.load(path).size == 4
    path.write_bytes(changed(tokenizer=tokenizer({UNK: 0, EOS: 1, "b": 2, "c": 3})))
    assert Vocabulary.load(path).size == 4


@pytest.mark.parametrize(
    ("lines", "options", "error", "message"),
    [
        ("a b", {}, TypeError, "lines: expected lines of text, got one string of 3 characters"),
        ([], {}, ValueError, "lines: expected text to build a vocabulary from, got 0 blank lines"),
        (["<unk> <eos>"], {"split": "words"}, ValueError, "lines: expected words .* got only <unk> and <eos>"),
        (["<unk> <eos>"], {"split": "whitespace"}, ValueError, "lines: expected words .* got only <unk> and <eos>"),
        (["", " "], {"tokens": "bpe"}, ValueError, "got 2 blank lines"),
        (["a"], {"tokens": "char"}, ValueError, "tokens: expected one of word, bpe, got 'char'"),
        (["a"], {"split": "none"}, ValueError, "split: expected one of auto, whitespace, words, got 'none'"),
        (["a"], {"vocab_size": 2}, ValueError, "vocab_size: expected at least 3 for tokens='word', got 2"),
        (["a"], {"vocab_size": 0}, ValueError, "vocab_size: expected an integer of at least 1, got 0"),
        (["a"], {"vocab_size": 9.0}, TypeError, "vocab_size: expected an integer"),
        (["a"], {"vocab_size": 256, "tokens": "bpe"}, ValueError, "at least 257 for tokens='bpe', got 256"),
        (["a b"], {"vocab_size": 5}, ValueError, "vocab_size: expected at most 4, the number of distinct .* got 5"),
        (["a"], {"min_count": 0}, ValueError, "min_count: expected an integer of at least 1, got 0"),
        (["a b a"], {"min_count": 3}, ValueError, "min_count: expected at most 2, the highest count .* got 3"),
    ],
)
def test_refused(lines: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_vocabulary(lines, **options)


def test_one_string_is_not_lines() -> None:
    with pytest.raises(TypeError, match="lines: expected lines of text"):
        build_vocabulary(["a b"]).encode("a b")


@pytest.mark.parametrize(
    ("name", "vocab_size", "lengths"),
    [
        ("ptb", 10_000, [929_589, 73_760, 82_430]),
        ("wikitext-2", 33_278, [2_088_628, 217_646, 245_569]),
    ],
)
def test_published_sizes(name: str, vocab_size: int, lengths: list[int]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here")
    corpus = read_corpus(SHARED / name)
    built = build_vocabulary(corpus.train)
    assert built.size == vocab_size
    assert [len(built.encode(lines)) for lines in (corpus.train, corpus.valid, corpus.test)] == lengths
