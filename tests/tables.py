"""What a module holds beside its parameters."""

from torch import Tensor, nn


def tables_of(module: nn.Module) -> dict[str, Tensor]:
    """Tables and buffers of a module and its parts, by name."""
    return {
        f"{name}.{own}".removeprefix("."): table
        for name, part in module.named_modules()
        for own, table in part.named_buffers(recurse=False)
    }
