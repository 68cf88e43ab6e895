from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vastmax.data.splits import cut_text, split_files

WORDS = st.text("ab", min_size=1, max_size=6)
SPACES = st.text(" \n\t", min_size=1, max_size=3)
TEXTS = st.lists(st.tuples(SPACES, WORDS), min_size=3, max_size=60).map(
    lambda pairs: "".join(space + word for space, word in pairs)
)


@given(TEXTS, SPACES, st.sampled_from([(0.95,), (0.9, 0.95), (0.5, 0.6), (0.01, 0.02)]))
def test_cutting_keeps_every_token_in_order_and_no_part_blank(text: str, end: str, ends: tuple[float, ...]) -> None:
    parts = cut_text(text + end, ends)
    assert len(parts) == len(ends) + 1
    assert all(part.split() for part in parts)
    assert " ".join(parts).split() == text.split()


@given(st.integers(3, 300))
def test_lines_of_one_length_are_cut_at_their_ends(num_lines: int) -> None:
    lines = [f"{i:02d} {i:02d}"[:5] for i in range(num_lines)]
    parts = cut_text("\n".join(lines), (0.5, 0.75))
    if num_lines >= 80:  # the window of 2.5% holds two lines
        assert [line for part in parts for line in part.split("\n")] == lines
        assert len(parts[0].split("\n")) == pytest.approx(num_lines / 2, abs=1)
    else:
        assert " ".join(parts).split() == " ".join(lines).split()


def test_blank_lines_at_the_end_are_kept_but_make_no_part() -> None:
    text = "\n".join(f"line {i}" for i in range(100, 300)) + "\n" * 10_000
    parts = cut_text(text, (0.9, 0.95))
    assert "\n".join(parts) == text
    assert [part.count("line") for part in parts] == [180, 10, 10]


@given(st.dictionaries(st.text("abc/", min_size=1), st.integers(1, 9), min_size=3, max_size=60))
def test_files_go_whole_to_one_split_or_all_are_cut_in_order(sizes: dict[str, int]) -> None:
    texts = {name: "\n".join(f"{name!r} {i}" for i in range(size)) for name, size in sizes.items()}
    parts, note = split_files(texts)
    assert all(part.split() for part in parts)
    if note.startswith("whole files"):
        names = [{line.split()[0] for line in part.split("\n")} for part in parts]
        assert sorted(name for split in names for name in split) == sorted(map(repr, texts))
        total = sum(map(len, texts.values()))
        assert len(parts[0]) >= Fraction(4, 5) * total
        assert all(len(part) >= Fraction(1, 20) * total for part in parts[1:])
    else:
        assert " ".join(parts).split() == " ".join(texts[name] for name in sorted(texts)).split()
    assert split_files(dict(reversed(texts.items()))) == (parts, note)  # names decide, not the order of reading


def test_many_small_files_give_90_5_5() -> None:
    parts, note = split_files({str(i): "four" for i in range(1000)})
    assert [part.count("four") for part in parts] == [900, 50, 50]
    assert note == "whole files, 90.0% / 5.0% / 5.0%"


LETTERS = ["北", "京", "か", "ไ", "ท", "น้ำ", "，", "。", " ", "\n"]
HAN = st.lists(st.sampled_from(LETTERS), max_size=200).map(lambda letters: f"北京南{''.join(letters)}方")


@given(HAN, st.sampled_from([(0.95,), (0.9, 0.95), (0.5, 0.6), (0.01, 0.02)]))
def test_scripts_without_spaces_are_cut_between_letters(text: str, ends: tuple[float, ...]) -> None:
    parts = cut_text(text, ends)
    assert len(parts) == len(ends) + 1
    assert all(part.split() for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert not any(part[0] in "้ำ" for part in parts[1:])


def test_one_line_without_spaces_is_cut_where_asked() -> None:
    text = "北京南方看海，" * 100
    parts = cut_text(text, (0.9, 0.95))
    assert "".join(parts) == text
    assert [len(part) for part in parts] == pytest.approx([630, 35, 35], abs=2)


@given(st.text("ACGT", min_size=3, max_size=300), st.sampled_from([(0.95,), (0.9, 0.95), (0.01, 0.02)]))
def test_within_words_a_cut_may_fall_anywhere(text: str, ends: tuple[float, ...]) -> None:
    parts = cut_text(text, ends, within_words=True)
    assert len(parts) == len(ends) + 1
    assert all(parts)
    assert "".join(parts) == text
