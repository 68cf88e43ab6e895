"""Comparing classifiers: what is read, what a name builds, what is scored, and what is kept."""

import json
import math
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from vastmax import heads
from vastmax.calibration import calibration_error
from vastmax.commands import run
from vastmax.functional.entmax import entmax15, sparsemax, topk_softmax
from vastmax.optim import LazyAdamW
from vastmax.study import classify
from vastmax.study.classify import compare_classifiers
from vastmax.study.classify_report import columns, rows, terminal_table, verdict, write_report
from vastmax.study.repeats import spread
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.data import digits, labelled_text, long_tail, pose, read_data, split
from vastmax.tasks.classify.heads import KINDS, build_head, predict
from vastmax.tasks.classify.model import Classifier, PixelBody
from vastmax.tasks.classify.scores import score
from vastmax.tasks.classify.train import train

CLASSES = ("cat", "dog", "owl")
FAST = {"seeds": 1, "epochs": 1, "hidden": 8}


def lines(times=10):
    words = {"cat": "meow purr", "dog": "bark wag", "owl": "hoot fly"}
    return [(f"{words[label]} {i}", label) for i in range(times) for label in CLASSES]


def write_tsv(path, rows):
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return path


@pytest.fixture
def clinc(tmp_path):
    content = {
        "oos_train": [["what is this", "oos"]],
        "train": lines(6),
        "val": [*lines(1), ["buzz", "bee"]],
        "test": [*lines(2), ["buzz", "bee"], ["sting", "bee"], ["hiss", "snake"]],
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# Reading


def test_the_parts_of_a_json_file(clinc):
    data = labelled_text(clinc)
    assert data.classes == CLASSES
    assert np.bincount(data.part).tolist() == [18, 3, 6]
    assert data.notes == (
        "left out: oos_train of data.json",
        "texts from column 1, labels from column 2",
        "left out: 1 rows of valid with 1 labels that train lacks",
        "left out: 3 rows of test with 2 labels that train lacks",
    )
    assert [(text, data.classes[label]) for text, label in zip(data.inputs, data.label, strict=True)][:3] == lines(
        1
    )


@pytest.mark.parametrize("valid", ["valid", "val", "dev"])
def test_a_folder_of_parts(tmp_path, valid):
    for name, times in (("train", 4), (valid, 1), ("test", 2)):
        write_tsv(tmp_path / f"{name}.tsv", lines(times))
    (tmp_path / "README.md").write_text("not a part")
    assert np.bincount(labelled_text(tmp_path).part).tolist() == [12, 3, 6]


def test_one_file_is_split_class_by_class(tmp_path):
    rare = [("tweet", "finch"), ("chirp", "finch")]
    data = labelled_text(write_tsv(tmp_path / "all.tsv", [*lines(20), *rare]))
    assert data.classes == CLASSES
    assert "left out: 2 rows of 1 classes with fewer than 3 rows, too few to split" in data.notes
    config = ClassifyConfig()
    problems = [pose(data, config, seed) for seed in (0, 0, 1)]
    for problem in problems:
        sizes = [torch.bincount(part.label).tolist() for part in (problem.train, problem.valid, problem.test)]
        assert sizes == [[16] * 3, [2] * 3, [2] * 3]
        together = np.concatenate([problem.train.rows, problem.valid.rows, problem.test.rows])
        assert sorted(together) == list(range(60))
    assert problems[0].test.rows.tolist() == problems[1].test.rows.tolist() != problems[2].test.rows.tolist()


def test_every_part_of_a_split_has_every_class():
    label = np.repeat(np.arange(4), (3, 5, 30, 101))
    part = split(label, 0.2, np.random.default_rng(0))
    assert [np.bincount(part[label == c], minlength=3).tolist() for c in range(4)] == [
        [1, 1, 1],
        [3, 1, 1],
        [18, 6, 6],
        [61, 20, 20],
    ]


BAD_FILES = [
    ("all.tsv", b"", "expected a table, got an empty file"),
    ("all.tsv", b"\n\n", "got only whitespace"),
    ("all.tsv", b"meow\tcat\nno label\n", r"row 2: expected a label in column 2, .* in \['no label', None\]"),
    ("all.tsv", b"meow\tcat\n\n\tdog\n", "row 3: expected a text in column 1, got an empty cell"),
    ("all.tsv", b"a\tb\tc\n", r"expected --text-column and --label-column to say which .* \['a', 'b', 'c'\]"),
    ("all.tsv", b"a\n", r"expected a column each for text and label, got 1 in all; .* begins with \['a'\]"),
    ("all.tsv", b"a\tb\nc\td\te\n", "row 2: expected 2 cells with a tab between, as in the first row, got 3"),
    ("all.csv", b'a,b\n"c,d\n', "row 2: expected whole double quotes around a cell"),
    ("all.tsv", b"caf\xe9\tcat\n", "expected UTF-8 text, got byte 0xe9 at offset 3"),
    ("all.tsv", b"a\tcat\n" * 9, "expected rows of at least 2 classes to train on, got 1"),
    ("all.tsv", b"a\tcat\nb\tdog\n", "expected rows of at least 2 classes to train on, got 0"),
    ("x.json", b"", "got an empty file"),
    ("x.json", b'{"train": [\n}', "line 2: expected JSON"),
    ("x.json", b"[]", "expected rows, got none"),
    ("x.json", b"3", "expected a list of rows or an object with train, val and test, got 3"),
    ("x.json", b'{"train": [["a", "b"]]}', "found none for valid and test"),
    ("x.json", b'{"train": [["a", "b"], ["a"]]}', r"train\[1\]: expected a list of 2 cells, got \['a'\]"),
    ("x.json", b'{"train": [["a", " "]], "test": [["a", "b"]]}', r"train\[0\]: expected a label in column 2"),
    ("x.json", b'{"train": [["a", ["b"]]], "test": [["a", "b"]]}', "with one label in a cell, got 2 of lists"),
    ("x.json", b'{"train": {}}', "train: expected a list"),
    ("x.json", b'{"train": []}', "expected rows, got none in train"),
    ("x.json", b'{"val": [["a", "b"]], "valid": [["a", "b"]]}', "expected one list for valid"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        labelled_text(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_data(ClassifyConfig(data=str(tmp_path / "nowhere")))
    write_tsv(tmp_path / "train.tsv", lines())
    with pytest.raises(ValueError, match="found none for valid and test"):
        labelled_text(tmp_path)
    for name in ("valid.tsv", "val.txt", "test.tsv"):
        write_tsv(tmp_path / name, lines())
    with pytest.raises(ValueError, match=r"expected one file for val, got val\.txt, valid\.tsv; keep one of them"):
        labelled_text(tmp_path)


def test_a_long_text_and_a_long_name_take_their_own_room_only(tmp_path):
    """Arrays of text are as wide as their longest: 150 rows of these would be 600 MB."""
    rows = [*lines(50), *(("word " * 200_000, "x" * 200_000) for _ in range(3))]
    path = write_tsv(tmp_path / "all.tsv", rows)
    tracemalloc.start()
    data = labelled_text(path)
    data.fingerprint()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.label) == 153
    assert peak < 60e6  # the file, its text and its rows, a few times over


def test_the_fingerprint_tells_texts_and_names_apart(tmp_path):
    data = labelled_text(write_tsv(tmp_path / "all.tsv", lines()))
    texts = list(data.inputs)
    others = [
        {"inputs": [texts[0] + texts[1], "", *texts[2:]]},  # the same letters, cut elsewhere
        {"inputs": [texts[0], texts[1] + "\0", *texts[2:]]},
        {"label": data.label[::-1].copy()},
        {"classes": ("ca", "tdog", "owl")},
        {"part": np.zeros(30, dtype=np.int64)},
        {"share": 0.2},
    ]
    prints = {data.fingerprint(), *(replace(data, **other).fingerprint() for other in others)}
    assert len(prints) == 1 + len(others)
    assert replace(data, source="elsewhere", name="x").fingerprint() == data.fingerprint()
    assert len(replace(data, inputs=["\ud800", *texts[1:]]).fingerprint()) == 64  # half a pair, as JSON may hold


def test_a_test_part_of_other_labels(tmp_path):
    for name in ("train", "valid"):
        write_tsv(tmp_path / f"{name}.tsv", lines())
    write_tsv(tmp_path / "test.tsv", [("buzz", "bee")])
    with pytest.raises(ValueError, match="expected labels of train in test, got none of them"):
        labelled_text(tmp_path)


def test_texts_without_words(tmp_path):
    path = write_tsv(tmp_path / "marks.tsv", [("!?", label) for label in CLASSES] * 9)
    with pytest.raises(ValueError, match="expected texts with words"):
        pose(labelled_text(path), ClassifyConfig(), 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden", 10**11),
        ("num_samples", 10**11),
        ("seeds", 0),
        ("lr", 0.0),
        ("long_tail", 0.5),
        ("dropout", 1.0),
        ("beta", 1.0),
        ("tau", -1.0),
        ("seed", -1),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"^{option}: expected"):
        ClassifyConfig(**{option: value})


# The long tail


@pytest.mark.parametrize(
    ("num_classes", "rows", "ratio", "sizes"),
    [
        (3, 100, 100, [100, 10, 1]),
        (4, 10, 10, [10, 4, 2, 1]),  # 10^(2/3) = 4.64, 10^(1/3) = 2.15
        (5, 16, 16, [16, 8, 4, 2, 1]),
        (2, 7, 1, [7, 7]),
        (2, 49, 49, [49, 1]),  # 49 * 49**-1 is 0.9999999999999999
        (3, 1000, 10, [1000, 316, 100]),
    ],
)
def test_the_profile_of_a_long_tail(num_classes, rows, ratio, sizes):
    label = np.tile(np.arange(num_classes), rows)
    kept = [long_tail(label, ratio, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert sorted(np.bincount(label[kept[0]]).tolist(), reverse=True) == sizes
    assert kept[0].tolist() == kept[1].tolist()
    assert len(set(kept[0])) == len(kept[0])
    if ratio > 1:
        assert kept[0].tolist() != kept[2].tolist()


def test_the_order_of_the_classes_is_drawn():
    label = np.tile(np.arange(3), 9)
    largest = {np.bincount(label[long_tail(label, 9, np.random.default_rng(s))]).argmax() for s in range(20)}
    assert largest == {0, 1, 2}


def test_small_classes_keep_all_they_have():
    label = np.repeat([0, 1], [100, 3])
    for seed in range(4):
        kept = np.bincount(label[long_tail(label, 2, np.random.default_rng(seed))])
        assert kept.tolist() in ([100, 3], [50, 3])


def test_a_tail_that_is_too_long():
    with pytest.raises(ValueError, match="long_tail: expected at most 5, the rows of the largest class, got 6"):
        long_tail(np.tile([0, 1], 5), 6, np.random.default_rng(0))


def test_only_training_is_cut():
    whole, cut = (pose(digits(), ClassifyConfig(long_tail=ratio), 0) for ratio in (1, 50))
    assert sorted(cut.counts.tolist())[0] == 2
    assert len(cut.train.label) < len(whole.train.label)
    assert cut.test.rows.tolist() == whole.test.rows.tolist()
    assert cut.valid.rows.tolist() == whole.valid.rows.tolist()
    assert set(cut.train.rows) < set(whole.train.rows)


# What a name builds

COUNTS = torch.tensor([50, 20, 7, 3, 1, 1])
CONFIG = ClassifyConfig(hidden=5, smoothing=0.2, beta=0.9, gamma=1.5, tau=0.7)


def problem_of(name):
    torch.manual_seed(0)
    head = build_head(name, CONFIG, COUNTS)
    torch.manual_seed(1)
    return head, torch.randn(40, 5), torch.randint(6, (40,))


@pytest.mark.parametrize("name", KINDS)
def test_every_head_gives_probabilities(name):
    head, hidden, target = problem_of(name)
    assert head(hidden, target).isfinite()
    predicted = predict(name, head, hidden, CONFIG, COUNTS)
    torch.testing.assert_close(predicted.exp().sum(-1), torch.ones(40))


def weighted_mean(loss, weight, target):
    return (weight[target] * loss).sum() / weight[target].sum()


def reference(name, logits, target):
    """The losses as their papers write them."""
    log_prob = logits.log_softmax(-1)
    nll = -log_prob[range(len(target)), target]
    counts = COUNTS.double()
    match name:
        case "smoothing":
            return (0.8 * nll - 0.2 * log_prob.mean(-1)).mean()
        case "focal":
            return weighted_mean((1 - (-nll).exp()) ** 1.5 * nll, (1 / counts).float(), target)
        case "weighted":
            return weighted_mean(nll, (1 / counts).float(), target)
        case "effective":
            return weighted_mean(nll, (0.1 / (1 - 0.9**counts)).float(), target)
        case "logit-adjusted":
            adjusted = logits + 0.7 * (counts / counts.sum()).log().float()
            return -adjusted.log_softmax(-1)[range(len(target)), target].mean()
    return nll.mean()


@pytest.mark.parametrize(
    "name", ["exact", "smoothing", "focal", "weighted", "effective", "logit-adjusted", "adjusted-after"]
)
def test_losses_over_every_class(name):
    head, hidden, target = problem_of(name)
    logits = hidden @ head.weight.t() + head.bias
    expected = reference(name, logits, target)
    torch.testing.assert_close(head(hidden, target), expected)
    prior = (COUNTS / COUNTS.sum()).log()
    shift = 0.7 * prior if name == "adjusted-after" else torch.zeros(6)
    predicted = predict(name, head, hidden, CONFIG, COUNTS)
    torch.testing.assert_close(predicted, (logits - shift).log_softmax(-1), atol=1e-5, rtol=1e-5)


SPARSE = {
    "topk": lambda logits: topk_softmax(logits, 5),
    "sparsemax": sparsemax,
    "entmax15": entmax15,
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_heads(name):
    head, hidden, _ = problem_of(name)
    logits = 3 * hidden @ head.weight.t() + head.bias
    torch.testing.assert_close(head.log_prob(3 * hidden).exp(), SPARSE[name](logits), atol=1e-5, rtol=1e-5)
    assert (head.log_prob(3 * hidden) == -math.inf).any()


def test_other_kinds():
    kinds = {
        "mixture": heads.MixtureOfSoftmaxes,
        "sigsoftmax": heads.SigSoftmax,
        "one-vs-all": heads.OneVsAll,
        "sampled": heads.SampledSoftmax,
        "nce": heads.NCE,
        "negative": heads.NegativeSampling,
        "hierarchical": heads.HierarchicalSoftmax,
        "factored": heads.ClassFactoredSoftmax,
    }
    for name, kind in kinds.items():
        assert type(build_head(name, CONFIG, COUNTS)) is kind
    noise = build_head("sampled", CONFIG, COUNTS).sampler
    torch.testing.assert_close(noise.log_prob(torch.arange(6)).exp().double(), COUNTS / COUNTS.sum().double())
    with pytest.raises(ValueError, match="head: expected one of exact"):
        build_head("softmax", CONFIG, COUNTS)


# Scores


def test_scores_by_hand():
    probability = torch.tensor([[0.82, 0.18, 0.0], [0.63, 0.3, 0.07], [0.09, 0.91, 0.0], [0.45, 0.55, 0.0]])
    label, counts = torch.tensor([0, 1, 1, 1]), torch.tensor([1, 9, 4])
    found = score(probability.log(), label, counts)
    assert found["accuracy"] == 0.75
    f1 = {0: 2 / 3, 1: 0.8}  # one of two found right, all found; two of two right, two of three found
    assert found["macro_f1"] == pytest.approx((f1[0] + f1[1]) / 2)
    assert found["head"] == pytest.approx(f1[1])  # the largest class
    assert found["medium"] is None  # class 2 has no row to be found
    assert found["tail"] == pytest.approx(f1[0])
    assert found["nll"] == pytest.approx(-math.log(0.82 * 0.3 * 0.91 * 0.55) / 4)
    assert found["zero_share"] == 0.0
    assert found["ece"] == pytest.approx((0.18 + 0.63 + 0.09 + 0.45) / 4)  # each confidence in a bin of its own
    bins = {place: tuple(bin.values()) for place, bin in enumerate(found["bins"]) if bin["rows"]}
    expected = {5: (1, 0.55, 1), 6: (1, 0.63, 0), 8: (1, 0.82, 1), 9: (1, 0.91, 1)}
    assert bins == {place: pytest.approx(sums) for place, sums in expected.items()}


def test_the_bins_give_the_calibration_error():
    torch.manual_seed(0)
    log_prob = torch.randn(500, 4).mul(2).log_softmax(-1)
    found = score(log_prob, torch.randint(4, (500,)), torch.ones(4))
    assert sum(bin["rows"] for bin in found["bins"]) == 500
    by_bins = sum(abs(bin["confidence"] - bin["correct"]) for bin in found["bins"]) / 500
    assert found["ece"] == pytest.approx(by_bins, rel=1e-5)


def test_full_confidence_shares_the_last_bin():
    probability = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]])
    label = torch.tensor([0, 1, 0, 0])
    found = score(probability.log(), label, torch.ones(2))
    confidence, predicted = probability.max(-1)
    assert found["ece"] == pytest.approx(calibration_error(confidence, predicted == label, num_bins=10))
    assert found["ece"] == pytest.approx(0.225)  # 3.9 rows' worth of confidence, 3 rows right
    assert [bin["rows"] for bin in found["bins"]] == [0] * 9 + [4]


def test_probabilities_rounded_past_one():
    sure = torch.tensor([[0.0, -30.0], [-30.0, 0.0]])
    label, counts = torch.tensor([0, 1]), torch.ones(2)
    found = [score(log_prob, label, counts)["ece"] for log_prob in (sure + 1e-6, sure)]
    assert found == pytest.approx([0.0, 0.0], abs=2**-52)  # the last bin is closed by one rounding below 1


def test_a_label_of_probability_zero():
    probability = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = score(probability.log(), torch.tensor([1, 0]), torch.tensor([3, 3]))
    assert (found["nll"], found["zero_share"]) == (None, 0.5)
    assert spread([None, 1.0]) == "inf"


def test_means_and_spreads():
    assert spread([0.5, 0.7], 100) == "60.0±14.1"
    assert spread([0.512], 100) == "51.2"


# Training and reporting


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "out"
    said = []
    config = ClassifyConfig(**{**FAST, "seeds": 2, "long_tail": 20.0})
    results = compare_classifiers(config, ["exact", "adjusted-after", "sampled"], folder, say=said.append)
    return folder, results, said, config


def without_time(results):
    return [[{**seed, "seconds": 0} for seed in head["seeds"]] for head in results["heads"]]


def test_the_same_seed_gives_the_same_numbers(compared, tmp_path):
    _, results, _, config = compared
    again = compare_classifiers(config, ["exact", "adjusted-after", "sampled"], tmp_path / "again")
    assert without_time(again) == without_time(results)
    assert again["example"] == results["example"]
    other = compare_classifiers(ClassifyConfig(**{**vars(config), "seed": 7}), ["exact"], tmp_path / "other")
    assert without_time(other)[0] != without_time(results)[0]


def test_adjustment_after_training_is_of_the_exact_head(compared):
    folder, _, _, config = compared
    exact, after = (np.load(folder / name / "probabilities.npy") for name in ("exact", "adjusted-after"))
    counts = pose(digits(), config, 0).counts.double().numpy()
    shifted = exact / counts
    np.testing.assert_allclose(after, shifted / shifted.sum(-1, keepdims=True), rtol=1e-4)


def test_heads_of_one_seed_start_alike(compared):
    problem = pose(digits(), compared[3], 0)
    one, other = (Classifier(name, compared[3], problem) for name in ("exact", "sampled"))
    for name, value in one.body.state_dict().items():
        assert torch.equal(value, other.body.state_dict()[name])
    assert torch.equal(one.head.weight, other.head.weight)


def test_heads_of_one_seed_see_the_same_batches_and_dropout(monkeypatch):
    config = ClassifyConfig(**{**FAST, "epochs": 2, "lr": 1e-30, "weight_decay": 0.0})  # nothing is learned
    problem, seen = pose(digits(), config, 0), {}
    forward = PixelBody.forward
    for name in ("exact", "sampled"):
        rows = seen[name] = []

        def noted(body, pixels, rows=rows):
            rows.append(forward(body, pixels).detach())
            return forward(body, pixels) if not body.training else rows[-1]

        monkeypatch.setattr(PixelBody, "forward", noted)
        train(name, config, problem)
    assert len(seen["exact"]) > 2 * 17
    for one, other in zip(seen["exact"], seen["sampled"], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(seen["exact"][0], seen["exact"][17])  # a new order in each epoch


def test_the_learning_rate_falls_to_zero(monkeypatch):
    rates, step = [], LazyAdamW.step

    def noted(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(LazyAdamW, "step", noted)
    config = ClassifyConfig(**{**FAST, "epochs": 2, "batch_size": 500})
    train("exact", config, pose(digits(), config, 0))
    assert rates == pytest.approx([config.lr * (1 - i / 6) for i in range(6)])


def test_rows_pay_before_the_rate_falls_and_none_owes_at_the_end(tmp_path, monkeypatch):
    """The words that an epoch's last batch has not, at a rate that is not yet 0."""
    paid, catch_up = [], LazyAdamW.catch_up

    def noted(optimizer):
        (state,) = [state for state in optimizer.state.values() if "last_step" in state]
        paid.append((optimizer.param_groups[0]["lr"], int((state["last_step"] < state["step"]).sum())))
        catch_up(optimizer)
        assert (state["last_step"] == state["step"]).all()

    monkeypatch.setattr(LazyAdamW, "catch_up", noted)
    config = ClassifyConfig(**{**FAST, "epochs": 2, "batch_size": 20})
    data = labelled_text(write_tsv(tmp_path / "data.tsv", lines(20)))
    train("exact", config, pose(data, config, 0))
    assert len(paid) == 2
    assert all(rate > 0 and owing > 0 for rate, owing in paid)


def test_the_example_is_the_row_torn_between_two_classes(compared):
    folder, results, _, config = compared
    example = results["example"]
    average = np.mean([np.load(folder / head["head"] / "probabilities.npy") for head in results["heads"]], axis=0)
    second = np.sort(average, axis=-1)[:, -2]
    assert sum(example["probabilities"][h][1] for h in range(3)) / 3 == pytest.approx(second.max())
    row = pose(digits(), config, 0).test.rows[second.argmax()]
    assert example["input"] == digits().inputs[row].tolist()


def test_a_comparison_goes_on_where_it_stopped(compared, tmp_path, monkeypatch):
    config, names = compared[3], ["exact", "adjusted-after", "sampled"]
    folder = tmp_path / "out"

    def stop_at_sampled(name, *rest):
        if name == "sampled":
            raise KeyboardInterrupt
        return train(name, *rest)

    monkeypatch.setattr(classify, "train", stop_at_sampled)
    with pytest.raises(KeyboardInterrupt):
        compare_classifiers(config, names, folder)
    assert not (folder / "results.json").exists()
    with pytest.raises(ValueError, match="holds a comparison already; add --resume"):
        compare_classifiers(config, names, folder)
    trained = []
    monkeypatch.setattr(classify, "train", lambda name, *rest: (trained.append(name), train(name, *rest))[1])
    results = compare_classifiers(config, names, folder, resume=True)
    assert set(trained) == {"sampled"}
    assert without_time(results) == without_time(compared[1])


def test_a_comparison_stopped_in_its_first_head_goes_on(compared, tmp_path, monkeypatch):
    config, folder = compared[3], tmp_path / "out"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classify, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            compare_classifiers(config, ["exact"], folder)
    with pytest.raises(ValueError, match="holds a comparison already; add --resume"):
        compare_classifiers(config, ["exact"], folder)
    with pytest.raises(ValueError, match=r"out was begun with another epochs$"):
        compare_classifiers(replace(config, epochs=2), ["exact"], folder, resume=True)
    results = compare_classifiers(config, ["exact"], folder, resume=True)
    assert without_time(results) == without_time(compared[1])[:1]
    (folder / "setting.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"setting\.json: expected the setting of a comparison"):
        compare_classifiers(config, ["exact"], folder, resume=True)


def test_going_on_with_fewer_heads_keeps_the_others(compared, tmp_path):
    config, said = compared[3], []
    folder = tmp_path / "out"
    compare_classifiers(config, ["adjusted-after", "exact"], folder)
    results = compare_classifiers(config, ["sampled"], folder, resume=True, say=said.append)
    assert [head["head"] for head in results["heads"]] == ["exact", "adjusted-after", "sampled"]
    assert without_time(results) == without_time(compared[1])
    assert results["example"] == compared[1]["example"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert said[1] == f"{folder} has results of exact, adjusted-after too: they stay in the comparison"


def test_figures_keep_the_version_and_machine_that_made_them(tmp_path):
    config, folder = ClassifyConfig(**FAST), tmp_path / "out"
    first = compare_classifiers(config, ["exact"], folder)
    assert first["vastmax"] == first["heads"][0]["vastmax"]
    assert first["machine"] == first["heads"][0]["machine"]
    path = folder / "exact" / "result.json"
    content = json.loads(path.read_text())
    content["result"]["vastmax"] = "0.0.1"
    content["result"]["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    results = compare_classifiers(config, ["smoothing"], folder, resume=True)
    assert results["heads"][0]["vastmax"] == "0.0.1"
    assert results["vastmax"] == f"0.0.1 and {first['vastmax']}"
    assert results["machine"] == {**first["machine"], "torch": f"1.0 and {first['machine']['torch']}"}
    assert f"<dd>0.0.1 and {first['vastmax']}</dd>" in write_report(results, folder).read_text(encoding="utf-8")


def test_the_callers_draws_are_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    compare_classifiers(ClassifyConfig(**FAST), ["exact"], tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_data_may_be_named_from_elsewhere(clinc, tmp_path, monkeypatch):
    config, folder = ClassifyConfig(**FAST, data=str(clinc)), tmp_path / "out"
    first = compare_classifiers(config, ["exact"], folder)
    monkeypatch.chdir(tmp_path)
    again = compare_classifiers(replace(config, data=clinc.name), ["exact"], folder, resume=True)
    assert again["heads"] == first["heads"]
    clinc.write_text(clinc.read_text().replace("hoot", "boot"))
    with pytest.raises(ValueError, match=r"out was begun with another data$"):
        compare_classifiers(config, ["exact"], folder, resume=True)


def test_an_interruption_before_the_work_leaves_nothing(tmp_path, monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(classify, "read_data", stop)
    assert run(["compare", "classify", f"--out={tmp_path / 'out'}"]) == 130
    assert capsys.readouterr().err == "vastmax: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_a_model_too_large_for_memory(tmp_path, monkeypatch, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert run(["compare", "classify", "--heads=exact", "--hidden=100000000000", out]) == 2
    assert capsys.readouterr().err == (
        "vastmax: hidden: expected an integer of at most 1,000,000, got 100000000000\n"
    )

    def too_large(*_):
        torch.empty(2**56)  # what no machine has

    monkeypatch.setattr("vastmax.tasks.classify.model.PixelBody", too_large)
    assert run(["compare", "classify", "--heads=exact", "--hidden=900000", out]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("vastmax: out of memory: expected to be given 268,435,456.00 GiB more, got ")
    assert "; lower --hidden 900000, " in error
    assert not (tmp_path / "out").exists()


def test_results_of_other_options_are_not_taken(compared):
    folder, _, _, config = compared
    with pytest.raises(ValueError, match=r"out was begun with another lr$"):
        compare_classifiers(ClassifyConfig(**{**vars(config), "lr": 0.5}), ["exact"], folder, resume=True)
    path = folder / "exact" / "result.json"
    whole = path.read_text()
    setting = json.dumps(json.loads(whole)["setting"])
    for damaged in (
        whole[:-20],
        "[]",
        '{"setting": {}}',
        f'{{"setting": {setting}, "result": 3}}',
        f'{{"setting": {setting}, "result": {{}}}}',
    ):
        path.write_text(damaged)
        with pytest.raises(
            ValueError, match=r"result\.json: expected the result of a comparison .* delete the file"
        ):
            compare_classifiers(config, ["exact"], folder, resume=True)
    path.write_text(whole)


@pytest.mark.parametrize("names", [[], ["exact", "exact"], ["exact", "softmax"]])
def test_unknown_heads(names, tmp_path):
    with pytest.raises(ValueError, match="heads: expected"):
        compare_classifiers(ClassifyConfig(**FAST), names, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_to_go_on_with(tmp_path):
    with pytest.raises(ValueError, match="resume: expected a comparison to go on with"):
        compare_classifiers(ClassifyConfig(**FAST), ["exact"], tmp_path / "new", resume=True)


def test_training_that_diverges_is_an_error():
    config = ClassifyConfig(**{**FAST, "lr": 1e7, "epochs": 5})
    with pytest.raises(ValueError, match="lr: exact, seed 0: expected a finite loss"):
        train("exact", config, pose(digits(), config, 0))


def test_the_table_says_what_was_measured(compared):
    _, results, said, _ = compared
    cells = dict(zip(columns(results), rows(results)[2], strict=True))
    seeds = [seed["test"] for seed in results["heads"][2]["seeds"]]
    assert cells["accuracy"] == spread([seed["accuracy"] for seed in seeds], 100)
    assert cells["tail F1"] == spread([seed["tail"] for seed in seeds], 100)
    assert cells["nll"] == spread([seed["nll"] for seed in seeds], digits=2)
    best = max(results["heads"], key=lambda head: sum(seed["test"]["macro_f1"] for seed in head["seeds"]))
    assert f"Highest macro-F1: {best['head']}" in verdict(results)
    assert "10 classes with" in said[0]
    assert [line.split()[0] for line in said[1:]] == ["exact", "adjusted-after", "sampled"]


def test_thirds_only_where_classes_differ(tmp_path):
    results = compare_classifiers(ClassifyConfig(**FAST), ["exact"], tmp_path / "out")
    assert not [name for name in columns(results) if name.endswith(" F1")]


def test_the_report_needs_nothing_beside_itself(compared):
    folder, results, _, _ = compared
    report = write_report(results, folder)
    page = report.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for head in results["heads"]:
        assert f"<td>{head['head']}</td>" in page
        assert KINDS[head["head"]].meaning in page
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("*.draft"))
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert terminal_table(results).row_count == 3


def test_text_from_end_to_end(clinc, tmp_path):
    config = ClassifyConfig(**{**FAST, "data": str(clinc), "epochs": 20, "lr": 0.1, "dropout": 0.0})
    results = compare_classifiers(config, ["exact", "hierarchical"], tmp_path / "out")
    write_report(results, tmp_path / "out")
    # Each class has words of its own, so that whoever reads them makes no mistake.
    assert [head["seeds"][0]["test"]["accuracy"] for head in results["heads"]] == [1.0, 1.0]
    assert results["example"]["label"] in CLASSES
    assert results["data"]["notes"]
