"""The tree of decisions against enumeration: probabilities, gradients, search, and what a step costs."""

import copy
import io
import math
import pickle
import random

import pytest
import torch
from torch.nn import functional

from vastmax import trees
from vastmax.heads.hierarchical import HierarchicalSoftmax

D = 4


def random_tree(num_classes, seed):
    """A random shape: merge two of the subtrees at hand until one is left."""
    draw = random.Random(seed)
    words = {c: "" for c in range(num_classes)}
    groups = [[c] for c in range(num_classes)]
    while len(groups) > 1:
        left, right = (groups.pop(draw.randrange(len(groups))) for _ in range(2))
        words |= {c: "0" + words[c] for c in left} | {c: "1" + words[c] for c in right}
        groups.append(left + right)
    return trees.from_paths([words[c] for c in range(num_classes)])


TREES = {
    "huffman": trees.huffman([1, 0, 7, 7, 2, 0, 30, 1, 1]),
    "balanced": trees.balanced(7),
    "clustered": trees.clustered(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))),
    "one class": trees.balanced(1),
    "two classes": trees.huffman([1, 2]),
    "chain": trees.from_paths(["0", "10", "110", "1110", "1111"]),
    "random": random_tree(11, 0),
}


@pytest.fixture(params=TREES.values(), ids=TREES)
def tree(request):
    return request.param


def make(tree, dim=D, scale=1.0, **options):
    """A head, its biases drawn too."""
    torch.manual_seed(5)
    head = HierarchicalSoftmax(dim, tree, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape))
    return head


def batch(tree, rows=(6,), seed=0, dim=D):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*rows, dim, generator=g, dtype=torch.float64).requires_grad_()
    return hidden, torch.randint(tree.num_classes, rows, generator=g), g


def probabilities(head, hidden):
    """Row by row and class by class, in the words of the definition."""
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    rows = []
    for z in logits.reshape(-1, logits.shape[-1]).sigmoid():
        p = {0: torch.ones((), dtype=z.dtype)} if head.tree.num_nodes else {~0: torch.ones((), dtype=z.dtype)}
        for node, (left, right) in enumerate(head.tree.children.tolist()):
            p[left], p[right] = p[node] * z[node], p[node] * (1 - z[node])
        rows.append(torch.stack([p[~c] for c in range(head.num_classes)]))
    return torch.stack(rows).view(*hidden.shape[:-1], -1)


@pytest.mark.parametrize("bias", [True, False])
def test_probabilities_by_the_definition(tree, bias):
    head = make(tree, bias=bias)
    hidden, target, _ = batch(tree, (2, 3))
    p = probabilities(head, hidden)
    log_prob = head.log_prob(hidden)
    torch.testing.assert_close(log_prob.exp(), p)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    nll = head.nll(hidden, target)
    torch.testing.assert_close(nll, -p.gather(-1, target.unsqueeze(-1)).squeeze(-1).log())
    torch.testing.assert_close(head(hidden, target), nll.mean())
    assert torch.equal(head.log_partition(hidden), torch.zeros(2, 3, dtype=torch.float64))


def test_gradients(tree):
    head = make(tree, dim=2, reduction="none")
    hidden, target, _ = batch(tree, (4,), dim=2)
    target[1] = -100
    names = list(dict(head.named_parameters()))

    def loss(hidden, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (hidden, target))

    assert torch.autograd.gradcheck(loss, (hidden, *head.parameters()))
    assert torch.autograd.gradcheck(head.log_prob, hidden)
    assert torch.autograd.gradcheck(head.log_partition, hidden)


def test_every_gradient_is_that_of_the_enumeration(tree):
    """Dense and sparse, under a random upstream gradient."""
    hidden, target, g = batch(tree)
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    exact = make(tree)
    inputs = [hidden, *exact.parameters()]
    picked = probabilities(exact, hidden).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    # Multiplied by 1, the probability of a single class, are parameters that it does not depend on.
    attached = -picked.log() + 0 * sum(parameter.sum() for parameter in inputs)
    expected = torch.autograd.grad(attached, inputs, upstream)
    for sparse in (False, True):
        head = make(tree, reduction="none", sparse=sparse)
        found = torch.autograd.grad(head(hidden, target), [hidden, *head.parameters()], upstream)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.to_dense(), other)
        assert all(
            gradient.is_sparse == sparse and (not sparse or gradient.is_coalesced()) for gradient in found[1:]
        )


def test_a_sparse_gradient_has_the_nodes_of_the_paths_and_no_other():
    tree = TREES["random"]
    head = make(tree, sparse=True)
    for c in range(tree.num_classes):
        hidden, _, _ = batch(tree, (2,))
        (gradient,) = torch.autograd.grad(head(hidden, torch.full((2,), c)), head.weight)
        assert gradient.indices()[0].tolist() == tree.paths(torch.tensor(c)).nodes.tolist()


def test_probabilities_as_targets(tree):
    head = make(tree, reduction="none")
    hidden, target, g = batch(tree)
    soft = torch.rand(6, tree.num_classes, generator=g, dtype=torch.float64)
    soft /= soft.sum(-1, keepdim=True)
    torch.testing.assert_close(head(hidden, soft), -(soft * head.log_prob(hidden)).sum(-1))
    one_hot = functional.one_hot(target, tree.num_classes).double()
    torch.testing.assert_close(head(hidden, one_hot), head(hidden, target))
    head(hidden, soft).sum().backward()


def test_start_at_gives_the_probabilities_back(tree):
    p = torch.rand(tree.num_classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_prob = (300 * p.log()).log_softmax(0)  # with masses far below what a float holds
    head = make(tree)
    head.start_at(log_prob)
    torch.testing.assert_close(head.log_prob(torch.zeros(D, dtype=torch.float64)), log_prob)
    head.start_at(log_prob + 7)
    torch.testing.assert_close(head.log_prob(torch.zeros(D, dtype=torch.float64)), log_prob)
    with pytest.raises(ValueError, match="start_at: expected a head with bias=True"):
        make(tree, bias=False).start_at(log_prob)
    with pytest.raises(ValueError, match="log_prob: expected shape"):
        head.start_at(torch.zeros(tree.num_classes + 1))
    with pytest.raises(ValueError, match="log_prob: expected finite values"):
        head.start_at(torch.full((tree.num_classes,), -torch.inf))


def test_a_new_head_has_the_frequencies_that_huffmans_tree_assumes():
    tree = trees.huffman([8, 4, 2, 1, 1])
    head = HierarchicalSoftmax(D, tree)
    expected = torch.tensor([8.0, 4, 2, 1, 1]) / 16
    torch.testing.assert_close(head.log_prob(torch.zeros(D)).exp(), expected)
    assert head.weight.abs().max() <= 2 * D**-0.5
    assert head.weight.std() > 0.4 * D**-0.5


def test_large_logits_stay_exact():
    """A turn against a logit of 2000 costs 2000 nats; a turn with one of 50 costs e^-50, and not 0."""
    head = HierarchicalSoftmax(1, trees.balanced(2), dtype=torch.float64)
    with torch.no_grad():
        head.weight.fill_(1.0)
    hidden = torch.tensor([[2000.0], [50.0]], dtype=torch.float64)
    nll = head.nll(hidden, torch.tensor([1, 0]))
    torch.testing.assert_close(nll, torch.tensor([2000.0, math.exp(-50)], dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(-head.log_prob(hidden)[[0, 1], [1, 0]], nll, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_search_is_sorting_and_scores_no_node_it_need_not(tree, scale):
    head = make(tree, scale=scale)
    hidden, _, _ = batch(tree, (2, 4))
    log_prob = head.log_prob(hidden)
    expected, _ = log_prob.sort(-1, descending=True)
    node_mass = torch.zeros(2, 4, tree.num_nodes, dtype=torch.float64)
    paths = tree.paths(torch.arange(tree.num_classes))
    for node in range(tree.num_nodes):
        below = ((paths.nodes == node) & ~paths.padding).any(-1)
        node_mass[..., node] = log_prob[..., below].logsumexp(-1)
    exact = 0
    for k in range(1, tree.num_classes + 1):
        found = head.search(hidden, k)
        torch.testing.assert_close(found.values, expected[..., :k])
        torch.testing.assert_close(log_prob.gather(-1, found.indices), found.values)
        assert all(len(set(row)) == k for row in found.indices.view(8, k).tolist())
        # The nodes more probable than the k-th answer; where two are equal to rounding, either may come first.
        excess = node_mass - expected[..., k - 1 : k]
        assert ((excess > 1e-9).sum(-1) <= found.visited).all()
        assert (found.visited <= (excess > -1e-9).sum(-1)).all()
        exact += (excess.abs() > 1e-9).all(-1).sum().item()
        values, indices = head.topk(hidden, k)
        assert torch.equal(values, found.values)
        assert torch.equal(indices, found.indices)
    assert exact > 4 * tree.num_classes  # in most searches the two bounds are one number


@pytest.mark.parametrize("seed", range(4))
def test_search_in_random_trees(seed):
    tree = random_tree(20 + 11 * seed, seed)
    head = make(tree, scale=2.0)
    hidden, _, _ = batch(tree, (5,), seed)
    log_prob = head.log_prob(hidden)
    for k in (1, 2, 7, tree.num_classes):
        found = head.search(hidden, k)
        expected = log_prob.topk(k)
        torch.testing.assert_close(found.values, expected.values)
        assert torch.equal(found.indices, expected.indices)
        assert (found.visited <= tree.num_nodes).all()


def test_search_of_a_peaked_distribution_visits_little_of_a_large_tree():
    tree = trees.balanced(4096)
    head = make(tree, scale=4.0)
    hidden, _, _ = batch(tree, (10,))
    found = head.search(hidden, 5)
    expected = head.log_prob(hidden).topk(5)
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(found.indices, expected.indices)
    assert (found.visited >= 12).all()
    assert found.visited.max() < 200


def test_search_of_a_flat_distribution_scores_everything_at_once():
    """Of 4096 equal classes the search would visit nearly every node: beyond 4 sqrt(V) it gives way."""
    tree = trees.balanced(4096)
    head = make(tree, scale=0.01)
    with torch.no_grad():
        head.bias[:12].fill_(30.0)
        head.bias[0] = 0.0
    hidden = torch.zeros(3, D, dtype=torch.float64)
    hidden[1] = 1e3  # a row that knows, among others that do not
    found = head.search(hidden, 5)
    expected = head.log_prob(hidden).topk(5)
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(head.log_prob(hidden).gather(-1, found.indices), found.values)
    assert found.visited[[0, 2]].tolist() == [4095, 4095]
    assert found.visited[1] < 4 * 64
    many = head.search(hidden, 4000)  # needs 3999 nodes at least: no use in trying
    torch.testing.assert_close(many.values, head.log_prob(hidden).topk(4000).values)
    assert many.visited.tolist() == [4095] * 3


def test_search_among_classes_of_no_probability():
    """An infinite bias closes a turn: what is behind it comes last, once each."""
    head = make(trees.balanced(6))
    with torch.no_grad():
        head.bias[1] = torch.inf
    hidden = torch.zeros(D, dtype=torch.float64)
    log_prob = head.log_prob(hidden)
    assert 0 < log_prob.isneginf().sum() < 6
    values, indices = head.topk(hidden, 6)
    assert sorted(indices.tolist()) == list(range(6))
    assert torch.equal(log_prob[indices], values)
    assert torch.equal(values, log_prob.sort(descending=True).values)


def test_search_of_equals_is_deterministic():
    head = make(trees.balanced(8), scale=0.0)
    found = [head.topk(torch.zeros(3, D), 5).indices for _ in range(3)]
    assert all(torch.equal(indices, found[0]) for indices in found)
    assert torch.equal(found[0][0], found[0][1])


def test_search_refuses_what_it_cannot_answer():
    head = make(trees.balanced(6))
    hidden = torch.zeros(2, D)
    assert head.search(torch.zeros(0, D), 3).values.shape == (0, 3)
    for k, error, message in [
        (7, ValueError, "k: expected at most num_classes = 6, got 7"),
        (0, ValueError, "k: expected an integer of at least 1, got 0"),
        (2.0, TypeError, "k: expected an integer"),
    ]:
        with pytest.raises(error, match=message):
            head.topk(hidden, k)
    with pytest.raises(ValueError, match="hidden: expected finite"):
        head.search(hidden.fill_(torch.nan), 1)


def test_round_trips(tree):
    head = make(tree)
    hidden, target, _ = batch(tree)
    loss = head(hidden, target)
    saved = io.BytesIO()
    torch.save(head.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    loaded = HierarchicalSoftmax(D, trees.Tree(state["_extra_state"]), dtype=torch.float64)
    loaded.load_state_dict(state)
    filled = HierarchicalSoftmax(D, tree, device="meta", dtype=torch.float64).to_empty(device="cpu")
    filled.load_state_dict(state)
    assigned = HierarchicalSoftmax(D, tree, device="meta", dtype=torch.float64)
    assigned.load_state_dict(state, assign=True)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), loaded, filled, assigned):
        assert torch.equal(other(hidden, target), loss)


def test_a_refused_load_changes_nothing():
    here = HierarchicalSoftmax(D, trees.from_paths(["00", "01", "1"]))
    other = HierarchicalSoftmax(D, trees.from_paths(["0", "10", "11"]))
    before = {name: value.clone() for name, value in here.named_parameters()}
    with pytest.raises(ValueError, match="tree: expected the parameters of a head with the same tree"):
        here.load_state_dict(other.state_dict())
    for name, value in here.named_parameters():
        assert torch.equal(value, before[name])
    with pytest.raises(TypeError, match="tree: expected a tensor of children"):
        here.load_state_dict({**here.state_dict(), "_extra_state": {}})


def test_parameters_of_another_tree_are_refused():
    words = ["00", "01", "10", "11"]
    head = make(trees.from_paths(words))
    for other in (trees.from_paths(words[::-1]), trees.from_paths(["0", "10", "110", "111"])):
        with pytest.raises(ValueError, match=r"tree: expected .* same tree, Tree\(num_classes=4"):
            make(other).load_state_dict(head.state_dict())
    with pytest.raises(ValueError, match="another of 5 classes"):
        head.load_state_dict(make(trees.balanced(5)).state_dict())
    parameters = {name: value for name, value in head.state_dict().items() if name != "_extra_state"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"_extra_state\""):
        head.load_state_dict(parameters)


def test_what_is_no_tree_is_refused():
    for bad in (4, [[-1, -2]], torch.tensor([[-1, -2]])):
        with pytest.raises(TypeError, match=r"tree: expected a vastmax\.trees\.Tree, got"):
            HierarchicalSoftmax(D, bad)


def test_repr_says_what_the_tree_is():
    assert repr(HierarchicalSoftmax(D, trees.balanced(4), sparse=True)) == (
        "HierarchicalSoftmax(in_features=4, num_classes=4, "
        "tree=Tree(num_classes=4, mean_depth=2.00, max_depth=2), bias=True, sparse=True)"
    )


def test_a_step_makes_nothing_of_the_size_of_the_classes():
    """Forward, backward and optimizer of a sparse head: no tensor of V rows beyond parameters and their state."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from vastmax import optim

    num_classes = 5003
    head = HierarchicalSoftmax(D, trees.huffman(range(1, num_classes + 1)), sparse=True)
    optimizer = optim.RowwiseAdagrad(head.parameters())
    made: set[int] = set()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and not tensor.is_sparse and tensor.numel() >= num_classes - 1:
                    made.add(tensor.data_ptr())
            return out

    def step():
        optimizer.zero_grad()
        head(torch.randn(6, D), torch.randint(num_classes, (6,))).backward()
        optimizer.step()

    step()
    known = {parameter.data_ptr() for parameter in head.parameters()}
    for state in optimizer.state.values():
        known |= {value.data_ptr() for value in state.values()}
    with Sizes():
        step()
    assert made <= known
    with Sizes():  # the check sees what it is for
        head.log_prob(torch.randn(1, D))
    assert not made <= known


def test_training_learns_a_conditional_distribution():
    """At the optimum of the expected loss the probabilities are the data's, as they are those of a softmax."""
    g = torch.Generator().manual_seed(0)
    p = torch.rand(3, 6, generator=g, dtype=torch.float64)
    p /= p.sum(-1, keepdim=True)
    hidden = torch.eye(3, dtype=torch.float64)
    head = HierarchicalSoftmax(3, random_tree(6, 2), bias=False, reduction="sum", dtype=torch.float64)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        every = torch.arange(6).repeat(3)
        loss = head(hidden.repeat_interleave(6, 0), every, sample_weight=p.flatten())
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(head.log_prob(hidden).exp(), p, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("closed", [-torch.inf, torch.inf])
def test_a_closed_turn_gives_all_to_the_other(closed):
    """A node's mass is never lost: no tree is without a possible class, and none has to be refused."""
    head = make(trees.balanced(2))
    with torch.no_grad():
        head.bias.fill_(closed)
    hidden = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([0.0, -torch.inf] if closed > 0 else [-torch.inf, 0.0]).double().expand(3, 2)
    assert torch.equal(head.log_prob(hidden), expected)
    for c in (0, 1):
        assert torch.equal(head.nll(hidden, torch.full((3,), c)), -expected[:, c])
        gradients = torch.autograd.grad(head(hidden, torch.full((3,), c)), [hidden, *head.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)
    values, indices = head.topk(hidden, 2)
    assert torch.equal(values, torch.tensor([0.0, -torch.inf]).double().expand(3, 2))
    assert torch.equal(indices, torch.tensor([0, 1] if closed > 0 else [1, 0]).expand(3, 2))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("k", range(1, 17))
def test_search_of_equals_answers_by_id(k, closed):
    """Of classes that are equal to the last answer those of the lowest ids are in, whatever k is."""
    tree = trees.huffman(torch.tensor([1, 9, 2, 8, 3, 3, 1, 20, 4, 7, 2, 5, 1, 6, 2, 30]))
    head = make(tree, scale=0.0)
    log_prob = -math.log(2) * tree.depth
    if closed:
        nodes, turns, padding = tree.paths(torch.arange(16))
        head.bias.data[2] = -torch.inf  # closed to the left, and so twice as probable to the right
        below = (nodes == 2) & ~padding
        log_prob[(below & ~turns).any(-1)] = -torch.inf
        log_prob[(below & turns).any(-1)] += math.log(2)
        assert 0 < log_prob.isneginf().sum() < 15
    found = head.search(torch.zeros(2, D, dtype=torch.float64), k)
    expected = sorted(range(16), key=lambda c: (-round(log_prob[c].item(), 6), c))[:k]
    assert found.indices.tolist() == [expected] * 2
    torch.testing.assert_close(found.values[0], log_prob[expected].double(), rtol=0, atol=1e-6)
