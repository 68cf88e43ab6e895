"""Scripts without spaces: what is found of them, and what a text in one becomes."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vastmax.data import build_vocabulary, looks_tokenised
from vastmax.data.scripts import UNSPACED, byte_pairs_for, describe_split, split_for, unspaced_share

CHINESE = "我们去年夏天去过北京，今年冬天想去南方看海。"
JAPANESE = "今日は東京タワーへ行った。 とても楽しかった ｶﾞﾗｽもあった"
THAI = "ภาษาไทยไม่มีช่องว่างระหว่างคำ น้ำใจ"


def tokens(line, **options):
    built = build_vocabulary([line], **options)
    names = {index: token for token, index in built.tokenizer.get_vocab().items()}
    return [names[index] for index in built.encode([line]).tolist()][:-1]


@pytest.mark.parametrize(
    ("name", "unspaced"),
    [
        *((name, True) for name in ("CJK UNIFIED IDEOGRAPH-5317", "HIRAGANA LETTER A", "KATAKANA LETTER A")),
        *((name, True) for name in ("HALFWIDTH KATAKANA LETTER A", "KATAKANA-HIRAGANA PROLONGED SOUND MARK")),
        *((name, True) for name in ("IDEOGRAPHIC ITERATION MARK", "CJK UNIFIED IDEOGRAPH-20000")),
        *((f"{script} LETTER {of}", True) for script, of in (("KHMER", "KA"), ("MYANMAR", "KA"), ("LAO", "KO"))),
        *((name, True) for name in ("THAI CHARACTER KO KAI", "BOPOMOFO LETTER B", "YI SYLLABLE IT")),
        *((f"{script} LETTER {of}", False) for script, of in (("HEBREW", "ALEF"), ("ARABIC", "ALEF"))),
        *((name, False) for name in ("HANGUL SYLLABLE GA", "TIBETAN LETTER KA", "DEVANAGARI LETTER KA")),
        *((name, False) for name in ("LATIN SMALL LETTER A", "CYRILLIC SMALL LETTER A", "IDEOGRAPHIC COMMA")),
        *((name, False) for name in ("LEFT CORNER BRACKET", "FULLWIDTH LATIN CAPITAL LETTER A")),
    ],
)
def test_which_letters_are_of_a_script_without_spaces(name, unspaced):
    """Korean and Ethiopic write spaces, and Tibetan a mark, between words or syllables."""
    assert bool(re.match(f"[{UNSPACED}]", unicodedata.lookup(name))) is unspaced


def test_every_character_is_a_token_with_the_marks_on_it():
    assert tokens("今日は、ガラスtower 3月。") == [*"今日は", "、", *"ガラス", "tower", "3", "月", "。"]
    assert tokens("か\u3099ｶﾞ") == ["か\u3099", "ｶﾞ"]  # a mark of its own, and its narrow form
    assert tokens("น้ำใจ ดี") == ["น้ำ", "ใ", "จ", "ดี"]
    assert tokens("葛\U000e0100城") == ["葛\U000e0100", "城"]  # a variant, chosen by a mark


@given(st.text(st.sampled_from("ab北京かﾞนก้ำ，。 \n'<>,é\u0301")))
def test_no_character_is_lost_and_no_letter_but_of_other_scripts_is_joined(line):
    line = f"{line.replace(chr(10), ' ')} z"
    found = tokens(line, split="words")
    assert "".join(found) == "".join(line.split())
    assert all(len(re.findall(r"[北京かนก]", token)) <= 1 for token in found)


@pytest.mark.parametrize("line", ["it's a <unk>, (b) c_d 3.5!?", "naïve café — ок", "한국어 문장 입니다"])
def test_other_scripts_are_split_as_ever(line):
    assert tokens(line, split="words") == re.findall(r"<unk>|\w+|[^\w\s]+", line)


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI, "今日は晴れ 明日は雨になるそうだ 傘を持って行こう"])
def test_spaces_between_clauses_are_not_taken_for_those_between_words(text):
    lines = [text] * 5
    assert unspaced_share(lines) > 0.9
    assert split_for(lines) == "words"
    assert len(build_vocabulary(lines).encode(lines)) > 5 * 15
    assert "characters of scripts without spaces, " in describe_split(lines, "words")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("我们 去年 夏天 去 过 北京 ， 今年 想 去 南方 。", True),
        ("今日 は 東京 タワー へ 行っ た 。", True),
        ("ฉัน กิน ข้าว , เขา ดื่ม น้ำ .", True),
        ("我们去年夏天去过北京 ， 今年冬天想去南方看海 。", False),
        ("我们 去 过 北京。 他们 没有 去，", False),
        ("he went to 北京大学人民医院 , she said ; <unk> did not", True),  # names in another text
    ],
)
def test_a_tokenised_text_has_tokens_as_short_as_words(line, expected):
    assert looks_tokenised([line]) is expected


def test_the_share_is_of_letters_and_of_the_beginning():
    assert unspaced_share([]) == unspaced_share(["1, 2 !"]) == 0
    assert unspaced_share(["北a1", "。b!"]) == pytest.approx(1 / 3)
    assert unspaced_share(["a" * 200_000, "北" * 200_000]) == 0


def test_how_many_byte_pairs():
    assert byte_pairs_for(["plain words"] * 10) == 16_384
    assert byte_pairs_for(["北京" * 16 * 500]) == 500
    assert byte_pairs_for(["".join(map(chr, range(0x4E00, 0x4E00 + 900)))]) == 900  # each character may be one
    assert byte_pairs_for(["北京" * 800_000]) == 32_768


def test_byte_pairs_do_not_merge_a_small_text_to_clauses():
    """A clause that is met once is no token: nothing else would be learned of it."""
    letters = [chr(0x4E00 + 7 * i % 400) for i in range(6_000)]
    lines = ["".join(letters[i : i + 20]) + "。" for i in range(0, 6_000, 20)]
    built = build_vocabulary(lines, tokens="bpe")
    assert built.size <= 257 + 401
    assert len(built.encode(lines)) > 6_000 / 5
