"""What each kernel means, in torch's own operators: on every device and for every dtype."""

from vastmax.kernels.reference.gather import gather_dot, gather_sum

__all__ = ["gather_dot", "gather_sum"]
