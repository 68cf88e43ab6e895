"""Forwards run again by a checkpoint: published figures, the harder ways of running again, and what is refused."""

import copy
import gc
import pickle
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vastmax import heads, recomputation, samplers
from vastmax.contrastive import KeyQueue, cached_backward
from vastmax.recomputation import KEPT
from vastmax.samplers import Batch

either_kind = pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def contrast(num_keys=8):
    return heads.InfoNCE(1.0, queue=KeyQueue(num_keys, 2, dtype=torch.float64))


def stream(num_batches, seed=0):
    """Batches of queries, which want a gradient, and keys."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        query, key = torch.randn(2, 3, 2, dtype=torch.float64, generator=g)
        yield query.requires_grad_(), key


def reference(num_batches):
    """Losses and gradients of a stream, and the queue after it, without a checkpoint."""
    head, found = contrast(), []
    for query, key in stream(num_batches):
        loss = head(query, key)
        loss.backward()
        found.append((loss.detach(), query.grad))
    return found, head.queue.keys()


def same(found, expected):
    for (loss, gradient), (other, its_gradient) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, other)
        torch.testing.assert_close(gradient, its_gradient)


@either_kind
def test_a_queue_by_hand(use_reentrant):
    """The query beside its own key, of score .8, and the one before, of score .6: log(1 + e^-.2)."""
    head = contrast()
    head(rows([1, 0]), rows([1, 0]))
    query = rows([0.6, 0.8]).requires_grad_()
    loss = checkpoint(head, query, rows([0, 1]), use_reentrant=use_reentrant)
    loss.backward()
    torch.testing.assert_close(loss, torch.log1p(torch.tensor(-0.2, dtype=torch.float64).exp()))
    torch.testing.assert_close(query.grad, rows([0.5042, -0.3781]), atol=5e-5, rtol=0)
    assert torch.equal(head.queue.keys(), rows([1, 0], [0, 1]))


@either_kind
def test_learned_frequencies_by_hand(use_reentrant):
    """Targets 0 and 1, at draws 1 and 2: mean gaps, of which 1 / q is made, (4 + 1) / 2 and (4 + 2) / 2."""
    head = heads.SampledSoftmax(1, 4, sampler=samplers.InBatch(4), dtype=torch.float64)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    hidden = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    checkpoint(head, hidden, torch.tensor([0, 1]), use_reentrant=use_reentrant).backward()
    q = head.sampler.log_prob(torch.arange(4)).exp()
    torch.testing.assert_close(q, torch.tensor([2 / 5, 1 / 3, 1 / 4, 1 / 4], dtype=torch.float64))
    # Logits of 0 are corrected to log(1 / q): row 0 gives the other class 3 / 5.5, row 1 gives it 2.5 / 5.5.
    expected = torch.tensor([-3 + 2.5, -2.5 + 3, 0, 0], dtype=torch.float64) / 5.5 / 2
    torch.testing.assert_close(head.bias.grad, expected)


@either_kind
def test_frequencies_over_many_steps_are_those_learned_once(use_reentrant):
    q = torch.tensor([0.2, 0.2, 0.3, 0.3], dtype=torch.float64)
    plain, other = (heads.SampledSoftmax(2, 4, sampler=samplers.InBatch(4, rate=0.1)) for _ in range(2))
    for target in torch.multinomial(q, 40 * 5, replacement=True).view(40, 5):
        hidden = torch.randn(5, 2, requires_grad=True)
        plain(hidden, target).backward()
        checkpoint(other, hidden, target, use_reentrant=use_reentrant).backward()
    every_class = torch.arange(4)
    assert torch.equal(plain.sampler.log_prob(every_class), other.sampler.log_prob(every_class))


@either_kind
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_forwards_before_their_backwards_in_any_order(use_reentrant, order):
    expected, keys = reference(4)
    head = contrast()
    batches = list(stream(4))
    losses = [checkpoint(head, *batch, use_reentrant=use_reentrant) for batch in batches]
    for place in order:
        losses[place].backward()
    same([(loss, query.grad) for loss, (query, _) in zip(losses, batches, strict=True)], expected)
    assert torch.equal(head.queue.keys(), keys)


@either_kind
def test_several_forwards_in_one_checkpoint(use_reentrant):
    expected, keys = reference(4)
    head = contrast()
    batches = list(stream(4))

    def all_of_them(*queries):
        return torch.stack([head(query, key) for query, (_, key) in zip(queries, batches, strict=True)])

    losses = checkpoint(all_of_them, *(query for query, _ in batches), use_reentrant=use_reentrant)
    losses.sum().backward()
    same([(loss, query.grad) for loss, (query, _) in zip(losses, batches, strict=True)], expected)
    assert torch.equal(head.queue.keys(), keys)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, of one reentrant in another
@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_a_checkpoint_in_a_checkpoint(outer, inner):
    expected, keys = reference(3)
    head, found = contrast(), []
    for query, key in stream(3):

        def nested(query, key=key):
            return checkpoint(head, query * 1.0, key, use_reentrant=inner)

        loss = checkpoint(nested, query, use_reentrant=outer)
        loss.backward()
        found.append((loss, query.grad))
    same(found, expected)
    assert torch.equal(head.queue.keys(), keys)


@either_kind
def test_backpropagated_twice(use_reentrant):
    expected, keys = reference(3)
    head, found = contrast(), []
    batches = list(stream(3))
    losses = [checkpoint(head, *batch, use_reentrant=use_reentrant) for batch in batches]
    for loss, (query, _) in zip(losses, batches, strict=True):
        loss.backward(retain_graph=True)
        loss.backward()
        found.append((loss, query.grad / 2))
    same(found, expected)
    assert torch.equal(head.queue.keys(), keys)


@either_kind
def test_an_evaluation_in_between(use_reentrant):
    """Forwards that are never backpropagated change nothing for the others, without gradient or with."""
    expected, keys = reference(3)
    head, found = contrast(), []
    for query, key in stream(3):
        loss = checkpoint(head, query, key, use_reentrant=use_reentrant)
        head.eval()
        with torch.no_grad():
            head(query, key)
        checkpoint(head, query, key, use_reentrant=use_reentrant)
        head.train()
        loss.backward()
        found.append((loss, query.grad))
    same(found, expected)
    assert torch.equal(head.queue.keys(), keys)


@either_kind
def test_a_forward_that_fails_is_none(use_reentrant):
    expected, keys = reference(2)
    head, found = contrast(), []
    for query, key in stream(2):
        with pytest.raises(ValueError, match="expected finite"):
            checkpoint(head, query, key * torch.nan, use_reentrant=use_reentrant)
        loss = checkpoint(head, query, key, use_reentrant=use_reentrant)
        loss.backward()
        found.append((loss, query.grad))
    same(found, expected)
    assert torch.equal(head.queue.keys(), keys)


@either_kind
def test_a_queue_and_a_sampler_without_a_head(use_reentrant):
    """What has state has it right by itself, in a loss of the caller's own."""
    queue, sampler = KeyQueue(4, 2, dtype=torch.float64), samplers.InBatch(3)
    weight = torch.zeros(3, 2, dtype=torch.float64)

    def loss(hidden, target, generator):
        noise = sampler.given(Batch(hidden, target, weight, None), shared=True)
        drawn = samplers.Uniform(3).sample(2, generator=generator).ids
        keys = queue.keys().sum(0)
        queue.push(hidden.detach())
        return (hidden * (noise.log_expected_count(target, 1).unsqueeze(1) + drawn + keys)).sum()

    def run(forward):
        generator, found = torch.Generator().manual_seed(2), []
        losses = []
        for query, _ in stream(3):
            losses.append((forward(loss, query, torch.tensor([0, 2, 2]), generator), query))
        for value, query in losses:
            value.backward()
            found.append((value, query.grad))
        return found, queue.keys(), sampler.log_prob(torch.arange(3)), generator.get_state()

    start = copy.deepcopy((queue, sampler))
    expected = run(lambda function, *arguments: function(*arguments))
    queue, sampler = start
    found = run(partial(checkpoint, use_reentrant=use_reentrant))
    same(found[0], expected[0])
    assert all(torch.equal(one, other) for one, other in zip(found[1:], expected[1:], strict=True))


@either_kind
def test_a_generator_of_torchs_own_or_one_made_within(use_reentrant):
    """Torch's global generator, given by name, is restored by torch; one made within is as it was by itself."""
    head = heads.SampledSoftmax(2, 50, num_samples=3, dtype=torch.float64)

    def forward(make, query):
        loss = head(query, torch.tensor([1, 2, 3]), generator=make())
        return loss * torch.rand((), dtype=torch.float64)

    for make in (lambda: torch.default_generator, lambda: torch.Generator().manual_seed(1)):
        for _, (query, _) in zip(range(2), stream(2), strict=True):
            torch.manual_seed(7)
            forward(make, query).backward()
            expected, query.grad = query.grad, None
            torch.manual_seed(7)
            checkpoint(forward, make, query, use_reentrant=use_reentrant).backward()
            torch.testing.assert_close(query.grad, expected)


def test_a_generator_leaves_the_global_one_to_others_outside_of_heads():
    before = torch.get_rng_state()
    samplers.Uniform(5).sample(3, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look at it
@either_kind
def test_compiled_beside_a_checkpoint(use_reentrant):
    expected, keys = reference(3)
    head, found = contrast(), []
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="aot_eager")
    for query, key in stream(3):
        loss = checkpoint(compiled, query, key, use_reentrant=use_reentrant)
        loss.backward()
        found.append((loss, query.grad))
    same(found, expected)
    assert torch.equal(head.queue.keys(), keys)


class Pushing(torch.nn.Module):
    """An encoder whose rows depend on a queue and a sampler's draws."""

    def __init__(self):
        super().__init__()
        self.linear, self.queue = torch.nn.Linear(2, 2, dtype=torch.float64), KeyQueue(5, 2, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        drawn = samplers.Uniform(9).sample((len(x), 1), generator=self.generator).ids
        y = self.linear(x) * drawn + self.queue.keys().sum(0)
        self.queue.push(x)
        return y


def test_the_gradient_cache_runs_encoders_twice_and_state_once():
    x = torch.randn(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, cached = Pushing(), Pushing()
    cached.load_state_dict(plain.state_dict())
    its_loss, other_loss = contrast(), contrast()
    torch.manual_seed(4)
    for _ in range(3):
        rows = torch.cat([plain(chunk) for chunk in x.split(3)])
        loss = its_loss(rows, x)
        loss.backward()
    torch.manual_seed(4)
    for _ in range(3):
        value = cached_backward(other_loss, [cached, lambda key: key], [x, x], chunk_size=3)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(cached.linear.weight.grad, plain.linear.weight.grad)
    assert torch.equal(cached.queue.keys(), plain.queue.keys())
    assert torch.equal(other_loss.queue.keys(), its_loss.queue.keys())
    assert torch.equal(cached.generator.get_state(), plain.generator.get_state())


def test_nothing_is_remembered_where_nothing_is_run_again():
    head = contrast()
    kept = []
    for query, key in stream(5):
        kept.append(head(query, key))
    with torch.inference_mode():
        head(query, key)
    assert not head.queue._versions._held
    assert not head.queue._versions._overwritten


def test_what_a_forward_read_goes_with_its_graph():
    head = contrast()

    def num_remembered():
        gc.collect()
        return sum(forward.is_of(head) for forward in recomputation._alive)

    losses = [checkpoint(head, *batch, use_reentrant=False) for batch in stream(5)]
    assert num_remembered() == 5
    assert len(head.queue._versions._overwritten) == 5
    losses[0].backward()
    del losses[:3]
    assert num_remembered() == 2
    head(*next(stream(1)))
    assert len(head.queue._versions._overwritten) == 3


def test_what_forwards_without_a_graph_read_is_bounded():
    head = contrast()
    for _ in range(3):
        with torch.no_grad():
            for query, key in stream(KEPT):
                head(query, key)
        assert len(head.queue._versions._overwritten) <= KEPT
        assert len(recomputation._without_graph) <= KEPT + 1
    for query, key in stream(2 * KEPT + 2):  # one of these forgets, the change after it drops
        checkpoint(head, query, key, use_reentrant=False).backward()
    assert len(head.queue._versions._overwritten) <= 2


def test_losses_that_are_kept_keep_no_more_than_some_changes():
    head = contrast()
    kept = [checkpoint(head, *batch, use_reentrant=False) for batch in stream(2 * KEPT)]
    assert len(head.queue._versions._overwritten) == KEPT
    kept[-1].backward()
    with pytest.raises(RuntimeError, match=rf"at most {KEPT} changes of the state ago, got one {2 * KEPT} changes"):
        kept[0].backward()


def test_copies_have_a_history_of_their_own():
    head = contrast()
    batches = list(stream(2))
    loss = checkpoint(head, *batches[0], use_reentrant=False)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert torch.equal(other.queue.keys(), head.queue.keys())
        checkpoint(other, *batches[1], use_reentrant=False).backward()
        assert len(other.queue) == 6
    loss.backward()
    expected, keys = reference(1)
    same([(loss, batches[0][0].grad)], expected)
    assert torch.equal(head.queue.keys(), keys)


@either_kind
def test_a_checkpoint_that_does_not_restore_the_random_state_is_refused(use_reentrant):
    query, key = next(stream(1))
    with pytest.raises(RuntimeError, match="restores it with preserve_rng_state=True, its default"):
        checkpoint(contrast(), query, key, use_reentrant=use_reentrant, preserve_rng_state=False).backward()


def test_a_forward_too_long_ago_is_refused_without_a_graph():
    head = contrast()
    losses = [checkpoint(head, *batch, use_reentrant=True) for batch in stream(KEPT + 2)]
    losses[-1].backward()
    losses[2].backward()
    with pytest.raises(RuntimeError, match=f"under use_reentrant=True, after {KEPT} others"):
        losses[0].backward()


@either_kind
def test_forwards_that_cannot_be_told_apart_are_refused(use_reentrant):
    head = contrast()
    batches, losses = list(stream(2)), []
    for batch in batches:
        torch.manual_seed(0)
        losses.append(checkpoint(head, *batch, use_reentrant=use_reentrant))
    with pytest.raises(RuntimeError, match="expected the recomputation of one earlier forward, got 2"):
        losses[0].backward()


@either_kind
def test_a_seed_before_each_step_is_no_matter(use_reentrant):
    expected, keys = reference(4)
    head, found = contrast(), []
    for query, key in stream(4):
        torch.manual_seed(0)
        loss = checkpoint(head, query, key, use_reentrant=use_reentrant)
        loss.backward()
        found.append((loss.detach(), query.grad))
    same(found, expected)
    assert torch.equal(head.queue.keys(), keys)


def test_a_forward_within_a_backward_pass_that_is_none_again_is_refused():
    head = contrast()
    query, key = next(stream(1))
    query.register_hook(lambda _: head(query, key))
    with pytest.raises(RuntimeError, match="a forward within a backward pass: expected the recomputation"):
        query.sum().backward()


class Growing:
    """What reads state once more at every call."""

    def __init__(self):
        self.times = 0

    @recomputation.remembered
    def loss(self, x):
        self.times += 1
        for _ in range(self.times):
            recomputation.once(lambda: None, self)
        return x.exp()


@either_kind
def test_a_recomputation_that_reads_more_is_refused(use_reentrant):
    x = torch.ones((), requires_grad=True)
    with pytest.raises(RuntimeError, match="expected to read state 1 times, as its forward did"):
        checkpoint(Growing().loss, x, use_reentrant=use_reentrant).backward()
