"""YAML as recipes and matrices take it: nothing in it is lost or changed without a word."""

from typing import Any

import yaml

# Exceptions that PyYAML raises for malformed text.
YAML_ERRORS = (
    yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError,
)  # fmt: skip


class _RecipeLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice, of which PyYAML takes the last.

    It also refuses aliases, whose expansion could take more memory than there is, and reads names
    of classes as they are written: `NO` is no truth value among them, and `1.0` no number.

    Attributes:
        field: the field that the whole text is the value of, or "".
    """

    field = ""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias; compose any other node, whose key in a mapping is `index`."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        node = super().compose_node(parent, index)
        field = self.field if parent is None else getattr(index, "value", "")
        if isinstance(node, yaml.SequenceNode) and str(field).split(".")[-1] == "classes":
            for name in node.value:
                if isinstance(name, yaml.ScalarNode):
                    name.tag = "tag:yaml.org,2002:str"
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping whose keys differ."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # A key that is itself a list or mapping is refused when it is constructed.
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise yaml.YAMLError(
                        f"{key.value!r} is given twice, in line {lines[key.value]} and in line "
                        f"{line}; leave one out"
                    )
                lines[key.value] = line
        return node


def _construct_decimal(loader: _RecipeLoader, node: yaml.ScalarNode) -> int | str:
    """Read an integer as decimal: to YAML 1.1, 010 is 8, and 1:30 is 90."""
    text = str(loader.construct_scalar(node))
    try:
        return int(text)
    except ValueError:
        return text


_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_decimal)


def read_yaml(text: str, field: str = "") -> Any:
    """Read a text as YAML.

    Args:
        text: a whole file, or the value of a field.
        field: the name of that field.

    Raises:
        Exception: one of `YAML_ERRORS`.
    """
    loader = _RecipeLoader(text)
    loader.field = field
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def explain_yaml_error(error: Exception) -> str:
    """Say in a line why a text is not YAML."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8 (byte {error.start}); save it in that encoding"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())[:300]
    if isinstance(error, yaml.composer.ComposerError) and error.context:
        problem = f"{error.context} {problem}"
    advice = "; indent by spaces, not by tabs" if "\\t" in problem else ""
    return f"{problem[:300]} in line {mark.line + 1}, column {mark.column + 1}{advice}"
