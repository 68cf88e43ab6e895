"""Every way that torch has of asking for derivatives beyond a gradient, and central differences to tell them by."""

from functools import partial

import torch
from torch.autograd import forward_ad, functional
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp

TORCHS_WARNINGS = ("`torch.jit.script` is deprecated", "There is a performance drop")
"""What torch says of its own forward mode and of its own vmap."""


def of_vector(loss, inputs):
    """A loss of several tensors as a function of one vector, and the vector."""
    sizes = [x.numel() for x in inputs]

    def of(vector):
        return loss(*(part.view(x.shape) for part, x in zip(vector.split(sizes), inputs, strict=True)))

    return of, torch.cat([x.detach().reshape(-1) for x in inputs])


def gradient(f, x):
    """The first gradient, as a training step asks for it."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def differences(f, x, v, step=1e-5):
    """The Hessian times v, by central differences of the first gradient."""
    return (gradient(f, x + step * v) - gradient(f, x - step * v)) / (2 * step)


def grad_twice(f, x, v):
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    return torch.autograd.grad(first @ v, leaf)[0]


def backward_twice(f, x, v):
    """By way of e^f, through which a gradient flows in that has a derivative: its Hessian is e^f (H + g g^T)."""
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf).exp(), leaf, create_graph=True)
    (first @ v).backward()
    g = gradient(f, x)
    return leaf.grad / f(x).exp() - g * (g @ v)


def forward_over_reverse(f, x, v):
    with forward_ad.dual_level():
        leaf = forward_ad.make_dual(x.clone().requires_grad_(), v)
        (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        return forward_ad.unpack_dual(first).tangent.detach()


def forward_over_reverse_alone(f, x, v):
    with forward_ad.dual_level():
        leaf = forward_ad.make_dual(x.clone().requires_grad_(), v)
        return forward_ad.unpack_dual(torch.autograd.grad(f(leaf), leaf)[0]).tangent


HESSIAN_PRODUCTS = {
    "grad twice": grad_twice,
    "backward twice": backward_twice,
    "functional.hvp": lambda f, x, v: functional.hvp(f, x, v)[1],
    "functional.vhp": lambda f, x, v: functional.vhp(f, x, v)[1],
    "functional.hessian": lambda f, x, v: functional.hessian(f, x) @ v,
    "functional.hessian, vectorized": lambda f, x, v: functional.hessian(f, x, vectorize=True) @ v,
    "functional.jacobian of functional.jacobian": lambda f, x, v: (
        functional.jacobian(lambda y: functional.jacobian(f, y, create_graph=True), x) @ v
    ),
    "forward_ad of grad": forward_over_reverse,
    "forward_ad of grad, without a graph of it": forward_over_reverse_alone,
    "func.grad of func.grad": lambda f, x, v: grad(lambda y: grad(f)(y) @ v)(x),
    "func.vjp of func.grad": lambda f, x, v: vjp(grad(f), x)[1](v)[0],
    "func.jvp of func.grad": lambda f, x, v: jvp(grad(f), (x,), (v,))[1],
    "func.grad of func.jvp": lambda f, x, v: grad(lambda y: jvp(f, (y,), (v,))[1])(x),
    "func.hessian": lambda f, x, v: hessian(f)(x) @ v,
    "func.jacrev of func.jacrev": lambda f, x, v: jacrev(jacrev(f))(x) @ v,
    "func.jacfwd of func.jacfwd": lambda f, x, v: jacfwd(jacfwd(f))(x) @ v,
}


def forward_mode(f, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent


def forward_mode_without_grad(f, x, v):
    with torch.no_grad():
        return forward_mode(f, x, v)


def batched_backward(f, x, v):
    leaf = x.clone().requires_grad_()
    (rows,) = torch.autograd.grad(f(leaf), leaf, torch.tensor([1.0, -2.0]).double(), is_grads_batched=True)
    torch.testing.assert_close(rows[1], -2 * rows[0])
    return rows[0] @ v


def direction_from_above(f, x, v):
    """Of a factor of f, which has a direction where x has none: the gradient of f moves by itself."""
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level():
        factor = forward_ad.make_dual(torch.tensor(2.0).double(), torch.tensor(1.0).double())
        (found,) = torch.autograd.grad(f(leaf) * factor, leaf)
        return forward_ad.unpack_dual(found).tangent @ v


SLOPES = {
    "functional.jvp": lambda f, x, v: functional.jvp(f, x, v)[1],
    "functional.vjp": lambda f, x, v: functional.vjp(f, x)[1] @ v,
    "functional.jacobian": lambda f, x, v: functional.jacobian(f, x) @ v,
    "functional.jacobian, create_graph": lambda f, x, v: functional.jacobian(f, x, create_graph=True).detach() @ v,
    "functional.jacobian, vectorized": lambda f, x, v: functional.jacobian(f, x, vectorize=True) @ v,
    "batched backward": batched_backward,
    "forward_ad": forward_mode,
    "forward_ad, no_grad": forward_mode_without_grad,
    "forward_ad of a factor": direction_from_above,
    "func.grad": lambda f, x, v: grad(f)(x) @ v,
    "func.jvp": lambda f, x, v: jvp(f, (x,), (v,))[1],
    "func.jacrev": lambda f, x, v: jacrev(f)(x) @ v,
    "func.jacfwd": lambda f, x, v: jacfwd(f)(x) @ v,
}


REFUSED = r"expected one tensor, whose values can be checked, got a batch of them by torch\.func\.vmap"


def assert_products(f, x, v, wanted):
    """Every way of asking gives the Hessian times v, but for one, which may be refused."""
    for name, way in HESSIAN_PRODUCTS.items():
        torch.testing.assert_close(way(f, x, v), wanted, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    hessian_by_directions = partial(functional.hessian, vectorize=True, outer_jacobian_strategy="forward-mode")
    assert_refused_or_close(hessian_by_directions, f, x, v, wanted)


def assert_slopes(f, x, v):
    """Every way of asking gives the derivative along v, but for one, which may be refused."""
    wanted = gradient(f, x) @ v
    for name, way in SLOPES.items():
        torch.testing.assert_close(way(f, x, v), wanted, msg=lambda m, n=name: f"{n}: {m}")
    assert_refused_or_close(partial(functional.jacobian, vectorize=True, strategy="forward-mode"), f, x, v, wanted)


def assert_refused_or_close(way, f, x, v, wanted):
    """Several directions at a time, in the forward mode that `torch.func` came after."""
    try:
        found = way(f, x)
    except NotImplementedError as refused:
        if "forward mode: expected one direction at a time" not in str(refused):
            raise
    else:
        torch.testing.assert_close(found @ v, wanted, rtol=1e-6, atol=1e-7)
