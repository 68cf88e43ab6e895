"""From a text to tokens: what is said of it, and what of a text that is no use as it is read."""

import json
import random

import polars as pl
import pytest
from lm_runs import small

from vastmax.commands import run
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import describe, read_streams
from vastmax.tasks.lm.train import evaluate, train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")

CLAUSES = [
    "我们去年夏天去过北京",
    "他们没有去过那里",
    "今年冬天想去南方看海",
    "所以很想知道那里的样子",
    "北京的夏天很热",
]


def clauses(between, times=300, end="。"):
    draw = random.Random(0)
    return "".join(draw.choice(CLAUSES) + draw.choice(["，", end]) + between for _ in range(times))


@pytest.fixture
def chinese(tmp_path):
    path = tmp_path / "chinese.txt"
    path.write_text(clauses(""), encoding="utf-8")
    return path


def test_a_text_without_spaces_becomes_characters_and_says_so(chinese):
    streams = read_streams(small(chinese))
    letters = set("".join(CLAUSES)) | {"，", "。"}
    assert streams.vocabulary.size == len(letters) + 2
    assert len(streams.train) > 2_000
    assert streams.unknown() == {"valid": 0.0, "test": 0.0}
    assert describe(streams).splitlines() == [
        f"{chinese}: {len(streams.train):,} / {len(streams.valid):,} / {len(streams.test):,} tokens to train, "
        f"validate and test, {len(letters) + 2} classes",
        "  cut in order, 90 / 5 / 5",
        "  split into words, marks, and characters of scripts without spaces, 100.0% of all letters",
        "  <unk>: 0.0% of the validation tokens, 0.0% of the test tokens",
    ]


@pytest.mark.parametrize(
    ("text", "options", "note"),
    [
        ("a b , c . d\n" * 40, {}, "split at spaces"),
        ("A b, c. D\n" * 40, {}, "split into words and marks"),
        ("A b, c. D\n" * 40, {"split": "whitespace"}, "split at spaces"),
        ("A b, c. D\n" * 40, {"tokens": "bpe"}, "split into {} byte pairs"),
    ],
)
def test_one_line_says_how_a_text_was_split(tmp_path, text, options, note):
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    streams = read_streams(small(path, **options))
    assert streams.notes == ["cut in order, 90 / 5 / 5", note.format(streams.vocabulary.size)]
    assert ("<unk>" in describe(streams)) is (options.get("tokens") != "bpe")


def test_many_unknown_tokens_are_a_warning(tmp_path):
    """Clauses between spaces, taken for words: most of them are met once."""
    draw = random.Random(0)
    words = ["".join(draw.choice("北京去过南方看海夏天") for _ in range(8)) for _ in range(400)]
    path = tmp_path / "a.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    unknown = read_streams(small(path, split="whitespace")).unknown()
    assert min(unknown.values()) > 0.9
    said = describe(read_streams(small(path, split="whitespace"))).splitlines()
    assert said[-1].startswith("warning: more than 10% are <unk>")
    assert "--tokens bpe" in said[-1]
    assert "--split" in said[-1]
    assert "warning" not in describe(read_streams(small(path)))
    assert "unknown" in read_streams(small(path)).summary()


@pytest.mark.parametrize(("share", "warned"), [(0.09, False), (0.11, True)])
def test_the_share_that_is_a_warning(tmp_path, share, warned):
    for name, lines in (("train", ["a b"] * 50), ("valid", ["a b"] * 50), ("test", ["a " * 98 + "z"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    z = round(100 * share)
    (tmp_path / "test.txt").write_text("a " * (99 - z) + "z " * z, encoding="utf-8")
    streams = read_streams(small(tmp_path))
    assert streams.unknown() == {"valid": 0.0, "test": pytest.approx(share)}
    assert ("warning" in describe(streams)) is warned


def test_a_text_that_ends_as_a_token_is_refused_in_a_line(chinese):
    with pytest.raises(
        ValueError, match=r"got 1: '.*--split whitespace found no more, --tokens bpe takes any"
    ) as caught:
        read_streams(small(chinese, split="whitespace"))
    assert len(str(caught.value)) < len(str(chinese)) + 250
    assert read_streams(small(chinese, tokens="bpe")).vocabulary.size > 257


def test_tables_are_read_by_the_commands_options(tmp_path):
    rows = [{"id": i, "what": f"so it is, {i % 7}"} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-16")
    streams = read_streams(small(tmp_path / "a.jsonl", encoding="utf-16", text_column="what"))
    assert set(streams.vocabulary.tokenizer.get_vocab()) == {*["so", "it", "is", ","], *"0123456", "<unk>", "<eos>"}
    for options in ({"encoding": "utf-16"}, {"text_column": "text"}):
        with pytest.raises(
            ValueError, match=f"^{next(iter(options))}: expected beside --data, got '.*' without it"
        ):
            read_streams(LMConfig(**options))


def test_evaluation_reads_another_table(text, tmp_path):
    config = small(text, epochs=0.05)
    train(config, "exact", tmp_path / "run", read_streams(config))
    pl.DataFrame({"words": ["w1 w2 w3"] * 99}).write_parquet(tmp_path / "other.parquet")
    found = evaluate(tmp_path / "run", str(tmp_path / "other.parquet"), text_column="words")
    assert found["text"]["unknown"] == {"valid": 0.0, "test": 0.0}
    with pytest.raises(ValueError, match="text_column: expected beside --data, got 'words' without it"):
        evaluate(tmp_path / "run", text_column="words")
    options = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("encoding", "text_column"):  # as older runs were saved
        del options[name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(options))
    assert evaluate(tmp_path / "run")["text"]["unknown"]["test"] < 0.1


def test_the_command_says_what_it_read(chinese, tmp_path, capsys):
    options = ["--heads=exact", "--epochs=0.01", "--batch-size=4", "--seq-len=8", "--width=8", "--device=cpu"]
    assert run(["compare", "lm", f"--data={chinese}", *options, f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "  split into words, marks, and characters of scripts without spaces, 100.0% of all letters\n" in said
    assert "  <unk>: 0.0% of the validation tokens, 0.0% of the test tokens\n" in said
    assert (
        run(["compare", "lm", f"--data={chinese}", *options, "--split=whitespace", f"--out={tmp_path / 'no'}"]) == 2
    )
    [line] = capsys.readouterr().err.strip().splitlines()
    assert len(line) < len(str(chinese)) + 250
    assert not (tmp_path / "no").exists()
