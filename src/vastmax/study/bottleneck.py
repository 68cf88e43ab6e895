"""How near a head of width d comes to probabilities of full rank, and the rank of what trained models predict.

The log-probabilities of a softmax over many contexts are a matrix of rank at most d + 2 (Yang et al., 2018). Where
the truth has a higher rank, no such model reaches it, whatever its contexts are represented by: here by a free
vector each, fitted beside the head, so that what keeps a model from the truth is the head.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from vastmax.data.batches import IGNORE_INDEX
from vastmax.functional import kl_divergence
from vastmax.heads import FlatHead, Head, MixtureOfSoftmaxes, SigSoftmax, Softmax
from vastmax.metrics.log_prob_rank import log_prob_spectrum
from vastmax.study.density import check_rising, check_seed
from vastmax.study.surroundings import surroundings
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.train import eval_batches, load_run
from vastmax.validation import check_finite_number, check_names, check_positive_int, cut, make_plain, shown

HEADS = ("softmax", "sigsoftmax", "mixture")
LEARNING_RATE = 0.1
"""Adam's at the start; it falls to 0 by a cosine."""
BETAS = (0.9, 0.99)
ROWS = 2048
"""Contexts of a trained model whose log-probabilities are looked at, unless told otherwise."""


@dataclass(frozen=True)
class BottleneckOptions:
    """What is fitted to a made-up truth.

    Attributes:
        heads: names out of `HEADS`.
        mixtures: rising numbers of components of the mixtures, at least 2.
        widths: rising sizes d of a context's vector.
        contexts: contexts C.
        num_classes: classes V.
        scale: standard deviation of the true logits.
        steps: steps of Adam on all contexts at once.
        seed: of the truth and of where each fit starts.

    Raises:
        TypeError, ValueError: an option out of its bounds.
    """

    heads: tuple[str, ...] = HEADS
    mixtures: tuple[int, ...] = (2, 4)
    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    contexts: int = 64
    num_classes: int = 96
    scale: float = 2.0
    steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        check_names("heads", self.heads, HEADS)
        check_rising("mixtures", self.mixtures)
        if self.mixtures[0] < 2:
            raise ValueError("mixtures: expected at least 2 components, for one is the softmax, got 1")
        check_rising("widths", self.widths)
        for name in ("contexts", "num_classes"):
            if check_positive_int(name, getattr(self, name)) < 2:
                raise ValueError(f"{name}: expected at least 2, got 1")
        check_finite_number("scale", self.scale, above=0.0)
        check_positive_int("steps", self.steps)
        check_seed(self.seed)


class Fit(NamedTuple):
    """A head, and the context vectors (C, d) that were fitted beside it."""

    head: Head
    hidden: Tensor


class Ranked(NamedTuple):
    """The singular values of log-probabilities, falling, the largest 1; and how many of them are not 0."""

    spectrum: Tensor
    rank: int


def rank_of(log_prob: Tensor) -> Ranked:
    r"""Return the spectrum and numerical rank of float64 log-probabilities (N, V), by one decomposition.

    $$\text{rank} = \#\{ i : \sigma_i > \max(N, V)\, 2^{-52} \sigma_1 \}$$

    which is what rounding can lift a singular value of 0 to; it is `log_prob_rank`.
    """
    spectrum = log_prob_spectrum(log_prob)
    spectrum = spectrum / spectrum[0]
    return Ranked(spectrum, int((spectrum > max(log_prob.shape) * torch.finfo(torch.float64).eps).sum()))


def parameter_count(head: Head) -> int:
    """Number of trained numbers of a head."""
    return sum(parameter.numel() for parameter in head.parameters())


def rank_bound(head: Head) -> int | None:
    """Return the highest rank that a head's log-probabilities can have for any hidden rows, None if unbounded.

    Logits that are linear in hidden have rank d, a bias adds one, and so does log Z.
    """
    plain = isinstance(head, FlatHead) and head.link is None
    if plain or (isinstance(head, MixtureOfSoftmaxes) and head.num_mixtures == 1):
        bias = head.exact_bias() if isinstance(head, FlatHead) else head.bias
        return head.in_features + 1 + (bias is not None)
    return None


def draw_truth(options: BottleneckOptions) -> Tensor:
    r"""Draw true log-probabilities $\log \text{softmax}(\text{scale} \cdot N(0, 1))$, (C, V) in float64.

    Their rank is min(C, V). A softmax can have them where their rank without the means of rows and of columns is
    at most d, which is where $d \ge \min(C, V) - 1$: log Z and the bias are what the means are left to.
    """
    generator = torch.Generator().manual_seed(options.seed)
    logit = torch.randn(options.contexts, options.num_classes, dtype=torch.float64, generator=generator)
    return (options.scale * logit).log_softmax(-1)


def build_heads(options: BottleneckOptions) -> dict[str, Callable[[int], Head]]:
    """Return what builds each head of a width, by its name in the results."""

    def mixture(components: int) -> Callable[[int], Head]:
        return lambda width: MixtureOfSoftmaxes(width, options.num_classes, components, dtype=torch.float64)

    builders: dict[str, dict[str, Callable[[int], Head]]] = {
        "softmax": {"softmax": lambda width: Softmax(width, options.num_classes, dtype=torch.float64)},
        "sigsoftmax": {"sigsoftmax": lambda width: SigSoftmax(width, options.num_classes, dtype=torch.float64)},
        "mixture": {f"mixture of {m}": mixture(m) for m in options.mixtures},
    }
    return {name: build for chosen in options.heads for name, build in builders[chosen].items()}


def fit(head: Head, target: Tensor, *, steps: int) -> Fit:
    r"""Minimise $\frac 1 C \sum_r \text{KL}(t_r \,\|\, p(h_r))$ over a head and its hidden rows, with Adam."""
    hidden = nn.Parameter(torch.randn(len(target), head.in_features, dtype=target.dtype))
    optimizer = torch.optim.Adam([hidden, *head.parameters()], lr=LEARNING_RATE, betas=BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        # Log-probabilities are logits; these are few, and need not be made again for the gradient.
        kl_divergence(head.log_prob(hidden), target).backward()
        optimizer.step()
        schedule.step()
    return Fit(head, hidden.detach())


def measure(fitted: Fit, target: Tensor) -> dict[str, Any]:
    """Return the KL divergence that a fit has reached, in nats, its rank, and what it took."""
    with torch.no_grad():
        log_prob = fitted.head.log_prob(fitted.hidden)
    return {
        "width": fitted.head.in_features,
        "kl": kl_divergence(log_prob, target).item(),
        "rank": rank_of(log_prob).rank,
        "rank_bound": rank_bound(fitted.head),
        "parameters": parameter_count(fitted.head) + fitted.hidden.numel(),
    }


def study_bottleneck(
    options: BottleneckOptions, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Fit every head at every width to a made-up truth of full rank.

    Args:
        options: what to fit.
        say: receives a line as each head is done.

    Returns:
        What `results.json` holds: the options, the rank of the truth, and for each head the KL divergence, the
        rank and the number of parameters, the contexts' vectors among them, at each width.
    """
    truth = draw_truth(options)
    target = truth.exp()
    builders = build_heads(options)
    jobs = [(name, width) for name in builders for width in options.widths]
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in builders}
    with torch.random.fork_rng(devices=[]):
        for name, width in track(jobs, "bottleneck", transient=True, disable=not sys.stderr.isatty()):
            torch.manual_seed(options.seed)
            begun = time.perf_counter()
            fitted = fit(builders[name](width), target, steps=options.steps)
            seconds = time.perf_counter() - begun
            points[name].append({**measure(fitted, target), "seconds": seconds})
            if width == options.widths[-1]:
                said = ", ".join(f"{point['kl']:.2g}" for point in points[name])
                widths = ", ".join(str(width) for width in options.widths)
                say(f"{name}: KL {said} nats at d = {widths}")
    return {
        **surroundings(),
        "options": asdict(options),
        "true_rank": rank_of(truth).rank,
        "curves": [{"head": name, "points": points[name]} for name in points],
    }


@torch.no_grad()
def run_hidden(folder: Path, num_rows: int) -> Fit:
    """Load the head of a language-model run and its first hidden rows of test text, both in float64.

    The body has made them in its own precision. What the head makes of them in float64 is its log-probabilities
    with rounding of 1e-16 and not 1e-7, below which a singular value of 0 would not be told from a small one.

    Raises:
        FileNotFoundError: a folder without a run.
        ValueError: a run that is damaged; too few classes or rows for a rank above d + 2; too little test text.
    """
    config, vocabulary, model = load_run(folder)
    model.eval()
    head = model.head.double()
    least = head.in_features + 3
    if head.num_classes < least:
        raise ValueError(
            f"run: expected more than d + 2 = {least - 1} classes in {shown(folder)}, got {head.num_classes}"
        )
    if num_rows < least:
        raise ValueError(f"rows: expected more than d + 2 = {least - 1} for {shown(folder)}, got {num_rows}")
    hidden, state, missing = [], None, num_rows
    for tokens, following in eval_batches(read_streams(config, vocabulary).test, config):
        rows, state = model.body(tokens, state)
        hidden.append(rows[following != IGNORE_INDEX][:missing])
        missing -= len(hidden[-1])
        if missing == 0:
            return Fit(head, torch.cat(hidden).double())
    raise ValueError(f"rows: expected at most {num_rows - missing}, the tokens of test text, got {num_rows}")


def study_runs(
    folders: Sequence[Path], *, rows: int = ROWS, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure the rank of the log-probabilities that trained language models give the first contexts of a test.

    Args:
        folders: of runs, each once.
        rows: contexts N, more than any model's d + 2.
        say: receives a line as each run is done.

    Returns:
        What `results.json` holds: for each run its head, width, rank, the bound of its rank, and its singular
        values over the largest.

    Raises:
        FileNotFoundError, ValueError: see `run_hidden`; no folder, or one twice.
    """
    rows = check_positive_int("rows", rows)
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"run: expected distinct folders, got {cut(', '.join(map(str, folders))) or 'none'}")
    loaded = {folder: run_hidden(folder, rows) for folder in folders}  # what cannot be read is said before the work
    runs = []
    for folder, (head, hidden) in loaded.items():
        begun = time.perf_counter()
        with torch.no_grad():
            spectrum, rank = rank_of(head.log_prob(hidden))
        seconds = time.perf_counter() - begun
        bound = rank_bound(head)
        runs.append(
            {
                "run": str(folder),
                "head": type(head).__name__,
                "width": head.in_features,
                "num_classes": head.num_classes,
                "parameters": parameter_count(head),
                "rank": rank,
                "rank_bound": bound,
                "seconds": seconds,
                "spectrum": spectrum.tolist(),
            }
        )
        limit = "no bound" if bound is None else f"at most {bound:,}"
        say(f"{folder}: {type(head).__name__} of d = {head.in_features}, rank {rank:,}, {limit}")
    return {**surroundings(), "options": {"rows": rows}, "runs": runs}
