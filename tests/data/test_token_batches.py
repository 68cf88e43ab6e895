from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vastmax.data import TokenBatches

SIZES = {"batch_size": st.integers(1, 7), "seq_len": st.integers(1, 9)}


def as_lists(pairs: Any) -> list[list[Any]]:
    return [[input.tolist(), target.tolist()] for input, target in pairs]


def test_strands_side_by_side() -> None:
    batches = TokenBatches(torch.arange(15), batch_size=2, seq_len=3)
    assert as_lists(batches) == [
        [[[0, 1, 2], [7, 8, 9]], [[1, 2, 3], [8, 9, 10]]],
        [[[3, 4, 5], [10, 11, 12]], [[4, 5, 6], [11, 12, 13]]],
    ]
    assert len(batches) == 2


@given(num_tokens=st.integers(2, 200), **SIZES)
def test_evaluation_makes_every_token_but_the_first_a_target_once(
    num_tokens: int, batch_size: int, seq_len: int
) -> None:
    batches = TokenBatches(torch.arange(num_tokens), batch_size, seq_len, drop_last=False)
    pairs = list(batches)
    assert len(batches) == len(pairs)
    assert all(input.shape == target.shape for input, target in pairs)
    assert all(input.shape == (batch_size, seq_len) for input, _ in pairs[:-1])
    inputs, targets = (torch.cat([pair[i] for pair in pairs], dim=1) for i in (0, 1))
    counted = targets != -100
    assert targets[counted].sort().values.tolist() == list(range(1, num_tokens))
    assert torch.equal(inputs[counted], targets[counted] - 1)
    assert (inputs[~counted] == 0).all()
    assert (counted.int().diff(dim=1) <= 0).all()  # padding only after a strand's last token
    assert all((target != -100).any() for _, target in pairs)
    _continues(inputs, counted)


@given(num_tokens=st.integers(2, 200), **SIZES)
def test_training_batches_are_full_and_leave_out_less_than_a_batch(
    num_tokens: int, batch_size: int, seq_len: int
) -> None:
    tokens = torch.arange(num_tokens)
    if num_tokens < batch_size * seq_len + 1:
        with pytest.raises(ValueError, match=f"tokens: expected at least {batch_size * seq_len + 1}"):
            TokenBatches(tokens, batch_size, seq_len)
        return
    batches = TokenBatches(tokens, batch_size, seq_len)
    pairs = list(batches)
    assert len(batches) == len(pairs)
    assert all(input.shape == target.shape == (batch_size, seq_len) for input, target in pairs)
    assert all(torch.equal(target, input + 1) for input, target in pairs)
    inputs = torch.cat([input for input, _ in pairs], dim=1)
    assert len(inputs.unique()) == inputs.numel() > num_tokens - 1 - batch_size * seq_len
    _continues(inputs, torch.ones_like(inputs, dtype=torch.bool))


def _continues(inputs: Tensor, counted: Tensor) -> None:
    """Check that each row is one run of the stream across batches."""
    assert (inputs.diff(dim=1)[counted[:, 1:]] == 1).all()


def test_batches_are_the_callers_own() -> None:
    tokens = torch.arange(9)
    for batch_size in (1, 2):
        batches = TokenBatches(tokens, batch_size, 2)
        whole = as_lists(batches)
        for input, target in batches:
            assert input.is_contiguous()
            input.zero_()
            target.zero_()
        assert as_lists(batches) == whole
    assert torch.equal(tokens, torch.arange(9))


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("done", range(7))
def test_resumes_at_the_next_batch(done: int, drop_last: bool) -> None:
    def fresh() -> TokenBatches:
        return TokenBatches(torch.arange(50), batch_size=2, seq_len=4, drop_last=drop_last)

    whole = as_lists(fresh())
    first = fresh()
    pass_under_way = iter(first)
    for _ in range(min(done, len(first))):
        next(pass_under_way)
    state = first.state_dict()

    resumed = fresh()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    iter(resumed)  # asked for and not used: takes nothing
    rest = as_lists(resumed)
    assert rest == (whole[done:] if done < len(whole) else whole)  # a finished pass: the next one is whole
    assert as_lists(resumed) == whole


def test_a_pass_left_early_is_not_resumed_unasked() -> None:
    batches = TokenBatches(torch.arange(50), batch_size=2, seq_len=4)
    whole = as_lists(batches)
    next(iter(batches))
    assert as_lists(batches) == whole


@pytest.mark.parametrize(
    ("tokens", "sizes"), [(51, (2, 4)), (50, (4, 2)), (50, (2, 3)), (50, (2, 4, False)), (None, ())]
)
def test_a_place_in_another_stream_is_refused(tokens: int | None, sizes: tuple[int, ...]) -> None:
    state = {}
    if tokens is not None:
        batch_size, seq_len, *drop_last = sizes
        state = TokenBatches(torch.arange(tokens), batch_size, seq_len, drop_last=not drop_last).state_dict()
    with pytest.raises(ValueError, match=r"state_dict: expected the place in a stream of .*'num_tokens': 50"):
        TokenBatches(torch.arange(50), 2, 4).load_state_dict(state)


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        ([1, 2, 3], {}, TypeError, r"tokens: expected an int64 tensor \(T,\), got list"),
        (torch.rand(9), {}, TypeError, r"tokens: expected an int64 tensor \(T,\), got torch.float32"),
        (torch.zeros(9, 2, dtype=torch.int64), {}, ValueError, r"tokens: expected shape \(T,\), got \(9, 2\)"),
        (torch.arange(9), {"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        (torch.arange(9), {"seq_len": 2.0}, TypeError, "seq_len: expected an integer"),
        (
            torch.arange(6),
            {},
            ValueError,
            "at least 7 for one batch of batch_size=2 strands of seq_len=3, got 6; lower batch_size or seq_len",
        ),
        (torch.arange(1), {"drop_last": False}, ValueError, "tokens: expected at least 2 .* got 1$"),
    ],
)
def test_refused(tokens: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TokenBatches(tokens, **{"batch_size": 2, "seq_len": 3, **options})


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.13
@pytest.mark.parametrize("stop_after", [1, 3, 5, 6, 8, 12])
def test_lightning_resumes_within_an_epoch(tmp_path: Path, stop_after: int) -> None:
    lightning = pytest.importorskip("lightning")
    num_batches, epochs = 6, 3

    class Recorder(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []
            self.scale = torch.nn.Parameter(torch.ones(()))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.seen.append(int(batch[0][0, 0]))
            return self.scale * batch[1].float().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

        def on_train_batch_end(self, *_: object) -> None:
            if self.global_step == stop_after:
                self.trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def fit(checkpoint: Path | None) -> list[int]:
        recorder = Recorder()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(recorder, TokenBatches(torch.arange(50), batch_size=2, seq_len=4), ckpt_path=checkpoint)
        return recorder.seen

    whole = fit(None)
    assert whole == [4 * batch for batch in range(num_batches)] * epochs
    assert fit(tmp_path / "middle.ckpt") == whole[stop_after:]
