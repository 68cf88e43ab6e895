import random

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A small text with structure: each word is followed by one of a few."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(120)]
    followers = {w: rng.choices(words, k=4) for w in words}
    lines, word = [], words[0]
    for _ in range(600):
        line = []
        for _ in range(rng.randint(3, 12)):
            word = rng.choice(followers[word])
            line.append(word)
        lines.append(" ".join(line))
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
