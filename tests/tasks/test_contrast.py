"""Comparing contrastive losses: views, what a name builds, what is scored, and what is kept."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from vastmax.commands import run
from vastmax.contrastive import momentum_encoder
from vastmax.functional.contrastive import clip_loss, info_nce, siglip_loss
from vastmax.study import contrast
from vastmax.study.contrast import PIXELS, compare_contrastive
from vastmax.study.contrast_report import COLUMNS, rows, terminal_table, verdict, write_report
from vastmax.study.repeats import spread
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import digits, pose
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.tasks.contrast.losses import KINDS, build_loss
from vastmax.tasks.contrast.scores import alignment, neighbour_accuracy, recall_at_1, score_pairs, uniformity
from vastmax.tasks.contrast.train import build_encoder, train
from vastmax.tasks.contrast.views import view

FAST = {"seeds": 1, "epochs": 1, "hidden": 8, "width": 4, "batch_size": 256, "queue": 300}
CONFIG = ContrastConfig(temperature=0.2, hardness=0.5, queue=6, width=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Views


def test_a_view_moves_by_at_most_a_pixel():
    images = torch.rand(200, 25, generator=generator())
    still = ContrastConfig(noise=0.0, brightness=0.0)
    padded = functional.pad(images.view(-1, 5, 5), (1, 1, 1, 1))
    moved = {(i, j): padded[:, i : i + 5, j : j + 5].reshape(-1, 25) for i in range(3) for j in range(3)}
    seen = set()
    for row, found in enumerate(view(images, still, generator())):
        matches = [shift for shift, all_rows in moved.items() if torch.equal(all_rows[row], found)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(moved)


def test_brightness_and_noise():
    ones = torch.zeros(4000, 9)
    ones[:, 4] = 1.0
    bright = view(ones, ContrastConfig(noise=0.0, brightness=0.3), generator()).sum(-1)
    assert 0.7 <= bright.min() < 0.71
    assert 1.29 < bright.max() <= 1.3
    noisy = view(torch.zeros(4000, 9), ContrastConfig(noise=0.5, brightness=0.0), generator())
    assert noisy.std().item() == pytest.approx(0.5, rel=0.02)
    again = view(torch.zeros(4000, 9), ContrastConfig(noise=0.5, brightness=0.0), generator())
    assert torch.equal(noisy, again)


# What a name builds


def pairs():
    torch.manual_seed(0)
    query, key = (functional.normalize(torch.randn(8, 4), dim=-1) for _ in range(2))
    return query, key, torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])


@pytest.mark.parametrize("name", KINDS)
def test_losses_are_what_their_names_say(name):
    query, key, labels = pairs()
    loss = build_loss(name, CONFIG)
    found = loss(2 * query, 3 * key, **({"labels": labels} if KINDS[name].labels else {}))
    expected = {
        "infonce": lambda: info_nce(query, key, temperature=0.2),
        "symmetric": lambda: clip_loss(query, key, temperature=0.2),
        "clip": lambda: clip_loss(query, key, temperature=0.2),
        "siglip": lambda: siglip_loss(query, key, temperature=0.2, bias=-10.0),
        "hard": lambda: info_nce(query, key, temperature=0.2, hard_negative_weight=0.5),
        "queue": lambda: info_nce(query, key, temperature=0.2),
        "supervised": lambda: info_nce(query, key, temperature=0.2, labels=labels),
    }[name]()
    torch.testing.assert_close(found, expected)
    learned = {"clip": {"log_temperature"}, "siglip": {"log_temperature", "bias"}}.get(name, set())
    assert {parameter for parameter, _ in loss.named_parameters()} == learned
    if name == "queue":
        torch.testing.assert_close(
            loss(query, key), info_nce(query, key, key[-6:], temperature=0.2), msg="the batch before is negatives"
        )


def test_only_supervised_sees_labels():
    assert [name for name, kind in KINDS.items() if kind.labels] == ["supervised"]
    assert [name for name, kind in KINDS.items() if kind.momentum] == ["queue"]
    with pytest.raises(ValueError, match="loss: expected one of infonce"):
        build_loss("triplet", CONFIG)


# Scores


def test_scores_of_what_is_known():
    query = torch.eye(4)
    turned = torch.eye(4)[[0, 1, 3, 2]]
    assert (recall_at_1(query, query), recall_at_1(query, turned)) == (1.0, 0.5)
    assert alignment(query, turned) == pytest.approx((0 + 0 + 2 + 2) / 4)
    assert uniformity(query) == pytest.approx(-4.0)  # every pair is at squared distance 2
    assert uniformity(torch.ones(3, 2)) == 0.0
    found = score_pairs(query, query, 0.5)
    assert found["information"] == pytest.approx(math.log(4) - math.log1p(3 * math.exp(-2)))


def test_labels_of_the_nearest():
    train = torch.tensor([[1.0, 0.1 * i] for i in range(10)] + [[0.1 * i, 1.0] for i in range(10)])
    label = torch.tensor([0] * 10 + [1] * 10)
    test = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert neighbour_accuracy(train, label, test, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)


# Training and reporting


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrasted") / "out"
    said = []
    config = ContrastConfig(**{**FAST, "seeds": 2})
    results = compare_contrastive(config, list(KINDS), folder, say=said.append)
    return folder, results, said, config


def without_time(results):
    return {loss["loss"]: [{**seed, "seconds": 0} for seed in loss["seeds"]] for loss in results["losses"]}


def test_the_same_seed_gives_the_same_numbers(compared, tmp_path):
    _, results, _, config = compared
    again = compare_contrastive(config, ["queue", "siglip"], tmp_path / "again")
    for name, seeds in without_time(again).items():
        assert seeds == without_time(results)[name]
    other = compare_contrastive(ContrastConfig(**{**vars(config), "seed": 9}), ["siglip"], tmp_path / "other")
    assert without_time(other)["siglip"] != without_time(results)["siglip"]


def test_pixels_are_scored_as_they_are(compared):
    folder, results, _, _ = compared
    problem = pose(digits(), ClassifyConfig(), 0)
    found = np.load(folder / PIXELS / "embeddings.npy")
    np.testing.assert_allclose(found, functional.normalize(problem.test.features, dim=-1).numpy())
    assert results["losses"][0]["loss"] == PIXELS
    assert results["label"] == problem.test.label.tolist()


def test_training_follows_the_loss():
    """One step from the same start: the encoder moves against the gradient of the loss that is named."""
    problem = pose(digits(), ClassifyConfig(), 0)
    config = ContrastConfig(**{**FAST, "batch_size": len(problem.train.label), "weight_decay": 0.0, "lr": 1e-3})
    draw = generator(0)
    order = torch.randperm(len(problem.train.label), generator=draw)
    first, second = (view(problem.train.features[order], config, draw) for _ in range(2))
    for name in KINDS:
        encoder = build_encoder(64, config, 0)
        keys = momentum_encoder(encoder) if KINDS[name].momentum else encoder
        more = {"labels": problem.train.label[order]} if KINDS[name].labels else {}
        build_loss(name, config)(encoder(first), keys(second), **more).backward()
        before = [p.detach().clone() for p in encoder.parameters()]
        trained = {}

        def keep(*arguments, trained=trained):
            trained["encoder"] = build_encoder(*arguments)
            return trained["encoder"]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vastmax.tasks.contrast.train.build_encoder", keep)
            train(name, config, problem)
        for was, p, now in zip(before, encoder.parameters(), trained["encoder"].parameters(), strict=True):
            moved = p.grad.abs() > 1e-6  # Adam's first step is the sign of the gradient
            torch.testing.assert_close((now - was)[moved], -1e-3 * p.grad[moved].sign(), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_key_encoder_follows(momentum, monkeypatch):
    config = ContrastConfig(**{**FAST, "batch_size": 1079, "epochs": 2, "momentum": momentum})
    followed, states = [], []
    torch_step = torch.optim.AdamW.step

    def start(encoder, momentum):
        followed.extend([encoder, momentum_encoder(encoder, momentum)])
        states.append([p.detach().clone() for p in encoder.parameters()])
        return followed[1]

    def noted(optimizer, *arguments):
        found = torch_step(optimizer, *arguments)
        states.append([p.detach().clone() for p in followed[0].parameters()])
        return found

    monkeypatch.setattr("vastmax.tasks.contrast.train.momentum_encoder", start)
    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train("queue", config, pose(digits(), ClassifyConfig(), 0))
    assert len(states) == 3
    for first, second, third, key in zip(*states, followed[1].parameters(), strict=True):
        expected = momentum * (momentum * first + (1 - momentum) * second) + (1 - momentum) * third
        torch.testing.assert_close(key, expected)


def test_a_comparison_goes_on_where_it_stopped(compared, tmp_path, monkeypatch):
    config, folder = compared[3], tmp_path / "out"

    def stop_at_siglip(name, *rest):
        if name == "siglip":
            raise KeyboardInterrupt
        return train(name, *rest)

    monkeypatch.setattr(contrast, "train", stop_at_siglip)
    with pytest.raises(KeyboardInterrupt):
        compare_contrastive(config, ["infonce", "siglip"], folder)
    with pytest.raises(ValueError, match="holds a comparison already; add --resume"):
        compare_contrastive(config, ["infonce"], folder)
    with pytest.raises(ValueError, match=r"was begun with another temperature$"):
        compare_contrastive(
            ContrastConfig(**{**vars(config), "temperature": 0.5}), ["infonce"], folder, resume=True
        )
    trained = []
    monkeypatch.setattr(contrast, "train", lambda name, *rest: (trained.append(name), train(name, *rest))[1])
    results = compare_contrastive(config, ["infonce", "siglip"], folder, resume=True)
    assert set(trained) == {"siglip"}
    for name, seeds in without_time(results).items():
        assert seeds == without_time(compared[1])[name]


def test_going_on_with_fewer_losses_keeps_the_others(compared, tmp_path):
    config, folder, said = compared[3], tmp_path / "out", []
    compare_contrastive(config, ["siglip"], folder)
    results = compare_contrastive(config, ["infonce"], folder, resume=True, say=said.append)
    assert [loss["loss"] for loss in results["losses"]] == [PIXELS, "infonce", "siglip"]
    assert [np.shape(embedded)[1] for embedded in results["embeddings"]] == [64, 4, 4]
    for name, seeds in without_time(results).items():
        assert seeds == without_time(compared[1])[name]
    assert said[1] == f"{folder} has results of siglip too: they stay in the comparison"
    assert "<td>siglip</td>" in write_report(results, folder).read_text(encoding="utf-8")


def test_the_callers_draws_are_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    compare_contrastive(ContrastConfig(**FAST), ["infonce"], tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_comparison_stopped_in_its_first_loss_goes_on(compared, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"

    def stop(*_):
        raise KeyboardInterrupt

    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**FAST, "seeds": 2}.items()]
    with monkeypatch.context() as patch:
        patch.setattr(contrast, "score", stop)
        assert run(["compare", "contrast", "--losses=infonce", *options, f"--out={folder}"]) == 130
    assert f"--resume --out {folder} goes on" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"out was begun with another noise$"):
        compare_contrastive(replace(compared[3], noise=0.5), ["infonce"], folder, resume=True)
    results = compare_contrastive(compared[3], ["infonce"], folder, resume=True)
    assert without_time(results)["infonce"] == without_time(compared[1])["infonce"]


def test_an_encoder_too_large_for_memory(tmp_path):
    config = ContrastConfig(**{**FAST, "hidden": 1_000_000})  # hidden x hidden weights: 4 TB
    with pytest.raises(RuntimeError, match="allocate 4000000000000 bytes"):
        compare_contrastive(config, ["infonce"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = [
    ({"hidden": 10**11}, "hidden: expected an integer of at most 1,000,000, got 100000000000"),
    ({"batch_size": 10**23}, "batch_size: expected an integer of at most 1,000,000"),
    ({"batch_size": 1}, "batch_size: expected at least 2"),
    ({"temperature": 0.0}, "temperature: expected a finite number greater than 0"),
    ({"momentum": 1.0}, "momentum"),
    ({"noise": -0.1}, "noise"),
    ({"queue": 0}, "queue: expected an integer of at least 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD_OPTIONS)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**change)


def test_bad_comparisons(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match="batch_size: expected at most the 1,079 training rows, got 2,000"):
        compare_contrastive(ContrastConfig(**{**FAST, "batch_size": 2000}), ["infonce"], folder)
    for names in ([], ["infonce", "infonce"], ["triplet"]):
        with pytest.raises(ValueError, match="losses: expected"):
            compare_contrastive(ContrastConfig(**FAST), names, folder)
    with pytest.raises(ValueError, match="resume: expected a comparison to go on with"):
        compare_contrastive(ContrastConfig(**FAST), ["infonce"], folder, resume=True)
    assert not folder.exists()


def test_the_report_needs_nothing_beside_itself(compared):
    folder, results, said, _ = compared
    report = write_report(results, folder)
    page = report.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name in (PIXELS, *KINDS):
        assert f"<td>{name}</td>" in page
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*.draft"))
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert terminal_table(results).row_count == 1 + len(KINDS)
    cells = dict(zip(COLUMNS, rows(results)[2], strict=True))
    seeds = results["losses"][2]["seeds"]
    assert cells["kNN accuracy"] == spread([seed["neighbours"] for seed in seeds], 100)
    best = max(results["losses"][1:], key=lambda loss: sum(seed["recall_at_1"] for seed in loss["seeds"]))
    assert f"Highest recall@1: {best['loss']}" in verdict(results)
    assert [line.split()[0] for line in said[1:]] == [PIXELS, *KINDS]
