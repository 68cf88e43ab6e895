import sysconfig
from pathlib import Path

import pytest

from vastmax.data import looks_tokenised, standard_library
from vastmax.data.stdlib import LEFT_OUT


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})


def test_the_running_interpreter_has_a_corpus() -> None:
    corpus = standard_library()
    sizes = [sum(map(len, lines)) for lines in (corpus.train, corpus.valid, corpus.test)]
    assert sum(sizes) > 5_000_000
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    assert not looks_tokenised(corpus.train)
    assert corpus == standard_library()


def test_only_the_library_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        (tmp_path / f"module{i}.py").write_text(f"kept = {i}\n")
    for name in LEFT_OUT:
        (tmp_path / "package" / name).mkdir(parents=True)
        (tmp_path / "package" / name / "module.py").write_text("left_out = 1\n")
    (tmp_path / "data.txt").write_text("left_out = 1\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "latin.py").write_bytes(b"left_out = '\xe9'\n")
    use(monkeypatch, tmp_path)
    corpus = standard_library()
    assert sorted(corpus.train + corpus.valid + corpus.test) == sorted(f"kept = {i}" for i in range(40))
    assert "left out: 1 files that are not UTF-8" in corpus.notes


@pytest.mark.parametrize("folder", ["empty", "python311.zip"])
def test_an_interpreter_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    use(monkeypatch, tmp_path / folder)
    with pytest.raises(FileNotFoundError, match=f"{folder}: expected the standard library's .py files, got none"):
        standard_library()
