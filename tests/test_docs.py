"""The documentation: its examples run, its links lead somewhere, and what it lists is what there is."""

import re
from pathlib import Path

import pytest
import torch

from vastmax import heads, samplers

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
GUIDE = {name: text for name, text in TEXT.items() if not name.startswith("api-")}
EXAMPLES = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in TEXT.items()}
FAMILIES = [
    "softmax.md",
    "sampled-softmax.md",
    "importance-sampled-softmax.md",
    "nce.md",
    "negative-sampling.md",
    "one-vs-each.md",
    "hierarchical-softmax.md",
    "class-factored-softmax.md",
    "adaptive-softmax.md",
    "mixture-of-softmaxes.md",
    "sigsoftmax.md",
    "entmax.md",
    "topk-softmax.md",
    "one-vs-all.md",
    "infonce.md",
    "imbalance.md",
    "large-batches.md",
    "density.md",
]


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def headings(text):
    return re.findall(r"^## (.*)$", prose(text), re.MULTILINE)


def anchors(text):
    """The anchors that the site gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", [name for name, blocks in EXAMPLES.items() if blocks])
def test_examples_run(page):
    """Block after block in one namespace, as a reader would paste them."""
    torch.manual_seed(0)
    names = {}
    for number, block in enumerate(EXAMPLES[page]):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", FAMILIES)
def test_a_family_has_an_example_and_the_same_headings_as_the_others(page):
    assert headings(TEXT[page]) == ["What it computes", "Its bias", "Its cost", "When to take it", "Example"]
    assert EXAMPLES[page]


@pytest.mark.parametrize("name", [*heads.__all__, *samplers.__all__])
def test_every_public_head_and_sampler_is_in_the_guide(name):
    assert any(re.search(rf"\b{name}\b", text) for text in GUIDE.values())


@pytest.mark.parametrize("page", TEXT)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(TEXT[page])):
        target, _, anchor = link.partition("#")
        if target.endswith(".png"):
            assert (ROOT / "docs" / target).is_file(), f"{page} shows {link}"
            continue
        assert target in TEXT, f"{page} links to {link}"
        assert not anchor or anchor in anchors(TEXT[target]), f"{page} links to {link}"


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(TEXT)


def test_tests_that_are_cited_exist():
    cited = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", "".join(TEXT.values()))
    assert len(cited) > 30
    for path, function in cited:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{path}::{function}"


def commands(command, *names):
    """All commands below one, with their names."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from commands(below, *names, name)
    else:
        yield " ".join(names), command


def test_the_page_of_the_command_has_every_command_option_and_choice():
    from typer.main import get_command

    from vastmax.commands import app
    from vastmax.study.bottleneck import HEADS as BOTTLENECK_HEADS
    from vastmax.study.density import NOISES
    from vastmax.study.estimator_options import ESTIMATORS, SAMPLERS
    from vastmax.tasks.classify.heads import KINDS
    from vastmax.tasks.contrast.losses import KINDS as LOSSES
    from vastmax.tasks.lm import config
    from vastmax.tasks.lm.heads import HEADS

    page = TEXT["command.md"]
    code = set(re.findall(r"`([^`\n]+)`", page))
    for name, command in commands(get_command(app)):
        assert f"vastmax {name}" in page
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")}
        assert options - {"--help"} <= code, name
    choices = {*config.SAMPLERS, *config.BODIES, *config.OPTIMIZERS, *config.TOKENS, *config.SPLITS}
    assert {*HEADS, *ESTIMATORS, *SAMPLERS, *choices} <= code
    assert {*KINDS, *LOSSES, *BOTTLENECK_HEADS, *NOISES} <= code
