"""Training, resuming and scoring language models: what is promised to the number."""

import math
import os
import signal
import time

import pytest
import torch
from interruptions import begin, wait_until
from lm_runs import SMALL, losses, small

from vastmax import optim
from vastmax.data import TokenBatches
from vastmax.heads import FlatHead
from vastmax.interruption import Interrupted
from vastmax.tasks.lm.config import SAMPLERS
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.heads import COMMON, HEADS
from vastmax.tasks.lm.model import ExactScores, LanguageModel, learning_rate
from vastmax.tasks.lm.record import Record
from vastmax.tasks.lm.train import EVAL_LENGTH, EVAL_STRANDS, evaluate, load_run, train

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("body", ["lstm", "transformer"])
def test_every_head_starts_the_same(text, body):
    """Same body, same class rows in flat heads, and a softmax that begins at the classes' frequencies."""
    config = small(text, body=body)
    streams = read_streams(config)
    counts = streams.vocabulary.counts
    frequency = ((counts + 1).double() / (counts + 1).sum()).log()
    exact = LanguageModel(config, "exact", counts)
    for head in HEADS:
        model = LanguageModel(config, head, counts)
        same = [f"body.{name}" for name, _ in exact.body.named_parameters()]
        if isinstance(model.head, FlatHead):
            same.append("head.weight")
        for name in same:
            assert torch.equal(exact.get_parameter(name), model.get_parameter(name)), (head, name)
        start = model.head.log_prob(torch.zeros(8)).double()[model.class_of_token]
        if head == "adaptive":  # which has a bias per cluster, none per class of its tails
            assert abs(start.exp().sum() - 1) < 1e-5
            shortlist = model.class_of_token < (*model.head.cutoffs, len(counts))[0]
            start, frequency = start[shortlist], frequency[shortlist]
        torch.testing.assert_close(start, frequency, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("head", "body"), [*((head, "lstm") for head in HEADS), *((head, "transformer") for head in COMMON)]
)
def test_training_learns_the_text(text, head, body, tmp_path):
    """Each word has at most four followers: the exact perplexity must fall well below the unigram's."""
    config = small(text, body=body, epochs=5.0, lr=0.03, width=16, dropout=0.0)
    streams = read_streams(config)
    result = train(config, head, tmp_path / "run", streams)
    unigram = ((streams.vocabulary.counts + 1).double() / (streams.vocabulary.counts + 1).sum()).log()
    baseline = (-unigram[streams.test[1:]].mean()).exp().item()
    # The optimum of these two is near the data's distribution, not on it: less near, the fewer the candidates.
    biased = head in ("importance", "one-vs-each")
    assert result["test"]["perplexity"] < (0.7 if biased else 0.45) * baseline
    assert result["test"]["tokens"] == len(streams.test) - 1
    assert [point["step"] for point in result["curve"]] == sorted({p["step"] for p in result["curve"]})


@pytest.mark.parametrize(
    ("sampler", "shared"), [*((s, True) for s in SAMPLERS), ("tree-guided", False), ("top-and-tail", False)]
)
def test_training_with_every_sampler(text, sampler, shared, tmp_path):
    config = small(text, epochs=2.0, lr=0.03, width=16, dropout=0.0, sampler=sampler, shared=shared)
    streams = read_streams(config)
    result = train(config, "sampled", tmp_path / "run", streams)
    unigram = ((streams.vocabulary.counts + 1).double() / (streams.vocabulary.counts + 1).sum()).log()
    assert result["test"]["perplexity"] < 0.8 * (-unigram[streams.test[1:]].mean()).exp()


def test_scores_are_those_of_the_full_softmax(text):
    """The stream's perplexity, batch by batch with carried state, against all log-probabilities at once."""
    config = small(text)
    streams = read_streams(config)
    model = LanguageModel(config, "nce", streams.vocabulary.counts).eval()
    scores = ExactScores(model)
    for batch in TokenBatches(streams.test, 1, 7, drop_last=False):
        scores.update(batch)
    hidden, _ = model.body(streams.test[None, :-1], None)
    log_prob = torch.nn.functional.linear(hidden, model.head.weight, model.head.bias).log_softmax(-1)[0]
    expected = (-log_prob[range(len(log_prob)), streams.test[1:]].mean()).exp().item()
    assert scores.perplexity.compute() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("head", "stop"), [("exact", 100), ("sampled", 1), ("sampled", 250)])
def test_a_stopped_run_resumes_number_for_number(text, head, stop, tmp_path, monkeypatch):
    """Stopped anywhere, within an epoch or past it, with the last checkpoint some steps behind."""
    config = small(text, epochs=2.0, save_every=1e-6)
    streams = read_streams(config)
    whole = train(config, head, tmp_path / "whole", streams)
    assert whole["steps"] > 250

    def kill_at(self, batch, batch_idx):
        if self.global_step == stop:
            raise KilledError
        real(self, batch, batch_idx)

    real = LanguageModel.on_train_batch_start
    monkeypatch.setattr(LanguageModel, "on_train_batch_start", kill_at)
    with pytest.raises(KilledError):
        train(config, head, tmp_path / "stopped", streams)
    monkeypatch.setattr(LanguageModel, "on_train_batch_start", real)
    resumed = train(config, head, tmp_path / "stopped", streams, resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert resumed["test"] == whole["test"]
    assert [(p["step"], p["perplexity"]) for p in resumed["curve"]] == [
        (p["step"], p["perplexity"]) for p in whole["curve"]
    ]


def debts(optimizer):
    """How many rows have made fewer steps than their parameter."""
    states = [state for state in optimizer.state.values() if "last_step" in state]
    return sum(int((state["last_step"] < state["step"]).sum()) for state in states)


@pytest.mark.parametrize("head", ["sampled", "hierarchical"])
def test_whatever_is_scored_or_saved_at_the_end_owes_no_step(text, head, tmp_path, monkeypatch):
    optimizers, scored, trained = [], [], []
    configure, step, update = LanguageModel.configure_optimizers, LanguageModel.training_step, ExactScores.update

    def configured(self):
        optimizers.append(configure(self))
        return optimizers[-1]

    def stepped(self, *arguments):
        trained.append(debts(optimizers[0]))
        return step(self, *arguments)

    def updated(self, batch):
        scored.append(debts(optimizers[0]))
        update(self, batch)

    monkeypatch.setattr(LanguageModel, "configure_optimizers", configured)
    monkeypatch.setattr(LanguageModel, "training_step", stepped)
    monkeypatch.setattr(ExactScores, "update", updated)
    config = small(text)
    train(config, head, tmp_path / "run", read_streams(config))
    assert max(trained) > 0
    assert len(scored) > config.points
    assert not any(scored)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    owing = [state for state in saved.values() if "last_step" in state]
    assert owing
    assert all((state["last_step"] == state["step"]).all() for state in owing)


def test_a_run_that_was_stopped_is_loaded_with_its_debts_paid(text, tmp_path, monkeypatch):
    """Its checkpoint holds the rows as they are, for the run to go on as if it had not been stopped."""
    live = []
    real = LanguageModel.training_step

    def interrupted(self, batch, batch_idx=0):
        if self.global_step == 20:
            live.append((self, self.trainer.optimizers[0]))
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", interrupted)
    config = small(text)
    with pytest.raises(Interrupted):
        train(config, "sampled", tmp_path / "run", read_streams(config))
    ((model, optimizer),) = live
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in model.named_parameters():
        assert torch.equal(saved[name], weight), name
    assert debts(optimizer) > 0
    optimizer.catch_up()
    loaded = load_run(tmp_path / "run")[2]
    for name, weight in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight), name
    assert not torch.equal(loaded.head.weight, saved["head.weight"])


@pytest.mark.parametrize("stop", [3, 170])
def test_ctrl_c_ends_a_step_saves_it_and_resumes_number_for_number(text, stop, tmp_path, monkeypatch):
    config = small(text, epochs=1.2)
    streams = read_streams(config)
    whole = train(config, "sampled", tmp_path / "whole", streams)
    real = LanguageModel.training_step

    def interrupted_at(self, batch, batch_idx=0):
        if self.global_step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "training_step", interrupted_at)
        with pytest.raises(Interrupted, match=f"stopped at step {stop + 1}$"):
            train(config, "sampled", tmp_path / "stopped", streams)
    assert signal.getsignal(signal.SIGINT) == before
    assert train(config, "sampled", tmp_path / "stopped", streams, resume=True)["test"] == whole["test"]
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_ctrl_c_after_the_last_step_is_not_lost(text, tmp_path, monkeypatch):
    config = small(text, epochs=0.1)
    streams = read_streams(config)
    whole = train(config, "sampled", tmp_path / "whole", streams)

    def interrupted(self, trainer, module):
        os.kill(os.getpid(), signal.SIGINT)
        self.pause()

    with monkeypatch.context() as patched:
        patched.setattr(Record, "on_train_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, "sampled", tmp_path / "stopped", streams)
    assert not (tmp_path / "stopped" / "result.json").exists()
    assert train(config, "sampled", tmp_path / "stopped", streams, resume=True)["test"] == whole["test"]


def test_a_finished_run_is_not_trained_again(text, tmp_path):
    config = small(text, epochs=None, budget=0.5)
    streams = read_streams(config)
    result = train(config, "exact", tmp_path / "run", streams)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert train(config, "exact", tmp_path / "run", streams, resume=True) == result
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    (tmp_path / "run" / "result.json").unlink()  # as if killed while the final scores were made
    again = train(config, "exact", tmp_path / "run", streams, resume=True)
    assert {name: again[name] for name in ("steps", "curve", "valid", "test")} == {
        name: result[name] for name in ("steps", "curve", "valid", "test")
    }


def test_a_run_does_not_go_on_with_another_text(text, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    config = small(copy, epochs=0.1)
    train(config, "exact", tmp_path / "run", read_streams(config))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    copy.write_text(text.read_text().replace("w1 ", "w2 "))
    with pytest.raises(ValueError, match="was begun with another text"):
        train(config, "exact", tmp_path / "run", read_streams(config), resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_a_start_that_fails_leaves_nothing_behind(text, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU to run on")
    config = small(text, device="gpu")
    with pytest.raises(ValueError, match=r"device: expected cpu or auto .* got gpu"):
        train(config, "exact", tmp_path / "run", read_streams(config))
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder(text, tmp_path):
    (tmp_path / "file").write_text("")
    config = small(text)
    with pytest.raises(ValueError, match="out: expected the name of a folder"):
        train(config, "exact", tmp_path / "file" / "run", read_streams(config))


def test_evaluations_take_the_tokens_they_are_told(text, tmp_path):
    config = small(text, epochs=0.2, eval_tokens=50)
    streams = read_streams(config)
    seen = []
    result = train(config, "exact", tmp_path / "run", streams, announce=seen.append)
    assert result["valid"]["tokens"] == result["test"]["tokens"] == 50
    model = load_run(tmp_path / "run")[2].eval()
    scores = ExactScores(model)
    for batch in TokenBatches(streams.valid[:101], EVAL_STRANDS, EVAL_LENGTH, drop_last=False):
        scores.update(batch)
    assert seen[-1]["perplexity"] == pytest.approx(scores.perplexity.compute(), rel=1e-6)


def test_the_state_begins_anew_with_each_pass_and_gradients_are_clipped(text, tmp_path, monkeypatch):
    states, norms = [], []
    real = LanguageModel.training_step

    def watched(self, batch, batch_idx=0):
        states.append((batch_idx, self.state is None))
        return real(self, batch, batch_idx)

    def clipped(parameters, max_norm):
        parameters = list(parameters)
        norms.append((clip(parameters, max_norm).item(), clip(parameters, math.inf).item()))

    clip = optim.clip_grad_norm_
    monkeypatch.setattr(LanguageModel, "training_step", watched)
    monkeypatch.setattr(optim, "clip_grad_norm_", clipped)
    config = small(text, epochs=1.5, clip=0.05)
    train(config, "exact", tmp_path / "run", read_streams(config))
    assert all((batch == 0) == fresh for batch, fresh in states)
    assert sum(batch == 0 for batch, _ in states) == 2
    assert any(before > 0.05 for before, _ in norms)
    assert all(after <= 0.0501 for _, after in norms)


def test_a_killed_process_leaves_a_whole_checkpoint(text, tmp_path):
    """SIGKILL at some moment, checkpoints being written all the time."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    run = [f"--data={text}", f"--out={tmp_path / 'run'}", "--epochs=400", "--save-every=0.001"]
    with begin("train lm", *options, *run) as process:
        wait_until((tmp_path / "run" / "last.ckpt").exists, process)
        time.sleep(0.7)
        process.kill()
    _, _, model = load_run(tmp_path / "run")
    assert all(p.isfinite().all() for p in model.parameters())


def test_budget_is_kept_and_evaluation_not_counted(text, tmp_path):
    config = small(text, epochs=None, budget=1.5)
    result = train(config, "sampled", tmp_path / "run", read_streams(config))
    assert 1.5 <= result["seconds"] < 2.5
    assert result["tokens"] == result["steps"] * 32
    assert len(result["curve"]) >= 2


def test_evaluate_repeats_the_scores_of_training(text, tmp_path):
    config = small(text)
    result = train(config, "negative", tmp_path / "run", read_streams(config))
    again = evaluate(tmp_path / "run")
    assert again["valid"] == result["valid"]
    assert again["test"] == result["test"]
    other = tmp_path / "other.txt"
    other.write_text("w1 w2 w3\n" * 50, encoding="utf-8")
    assert evaluate(tmp_path / "run", str(other))["test"] != result["test"]


def test_early_stopping(text, tmp_path, monkeypatch):
    config = small(text, epochs=3.0, points=30, patience=2)
    monkeypatch.setattr("vastmax.tasks.lm.model.Perplexity.compute", lambda self: 100.0)
    result = train(config, "exact", tmp_path / "run", read_streams(config))
    assert len(result["curve"]) == 3
    assert result["curve"][-1]["step"] == result["steps"]


def test_a_run_is_not_written_over_nor_mixed_up(text, tmp_path):
    config = small(text, epochs=0.1)
    streams = read_streams(config)
    train(config, "exact", tmp_path / "run", streams)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=r"out: .* holds a run already; add --resume"):
        train(config, "exact", tmp_path / "run", streams)
    for other, name in ((small(text, epochs=0.1, lr=0.5), "exact"), (config, "nce")):
        with pytest.raises(ValueError, match=r"resume: .* was begun with another (lr|head)"):
            train(other, name, tmp_path / "run", streams, resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_learning_rate_rises_and_falls_to_zero():
    assert learning_rate(0.0) == 0.0
    assert learning_rate(0.05) == pytest.approx(1.0)
    assert learning_rate(1.0) == learning_rate(1.3) == 0.0
    assert learning_rate(0.525) == pytest.approx(0.5)
