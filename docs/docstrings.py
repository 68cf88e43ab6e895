"""What the reference needs to read the docstrings: griffe knows a section of `Examples:`, and not of one."""

from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Have the section `Example:` read as `Examples:`, as code and not as quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of each object that is collected."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
