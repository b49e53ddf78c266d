"""YAML for settings: numbers are decimal, and every text is read back unchanged.

PyYAML follows YAML 1.1, which reads 010 as 8 and 1:30 as 90. Here they are text, which settings of numbers reject.
"""

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import yaml

from vinfinity.errors import CONTROL
from vinfinity.system.numbers import read_number

TAG = "tag:yaml.org,2002:"
# limit on the values in a file of settings with its aliases expanded: nested aliases could make billions of them
MOST_VALUES = 10_000


class _Loader(yaml.SafeLoader):
    """Reads mappings, lists, text, numbers, true, false and null, and nothing else."""

    # what unquoted text may be, apart from numbers, by its first character
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in resolvers if tag in (f"{TAG}bool", f"{TAG}null", f"{TAG}merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(TAG) in ("bool", "null", "str", "seq", "map")
    }

    def __init__(self, text: str, most: int) -> None:
        super().__init__(text)
        self._most = most

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        # implicit[0]: whether the text may have another type, that is, whether it is unquoted
        if kind is yaml.ScalarNode and implicit[0] and (number := read_number(value)) is not None:
            return f"{TAG}{type(number).__name__}"
        return super().resolve(kind, value, implicit)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        number = read_number(node.value)
        if number is None:
            raise _error(f"{node.value} is not a decimal number", node)
        return number

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in known and key.tag != f"{TAG}merge":
                raise _error(f"found duplicate key {key.value}", key)
            known.add(name)
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        if _count(node, {}) > self._most:
            raise _error(f"has more than {self._most:,} values", node)
        return super().construct_document(node)


for _name in ("int", "float"):
    _Loader.add_constructor(f"{TAG}{_name}", _Loader.construct_number)


class _Dumper(yaml.SafeDumper):
    """Writes each value on one line, except for lists and mappings."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # double quotes escape all that is not plain text
        style = '"' if CONTROL.search(text) or "\ufeff" in text else None
        if style is None and read_number(text) is not None:
            style = "'"
        return self.represent_scalar(f"{TAG}str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def read_yaml(text: str, *, most: int = MOST_VALUES) -> Any:
    """Read the value in a YAML document: mappings, lists and scalars. Raises yaml.YAMLError.

    most: the largest number of values that is accepted.
    """
    loader = _Loader(text, most)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write_yaml(value: Any) -> str:
    """Write a plain value as a YAML document, which `read_yaml` reads back as an equal one."""
    return yaml.dump(
        value,
        Dumper=_Dumper,
        allow_unicode=True,
        sort_keys=False,
        default_flow_style=False,
        width=math.inf,
    )


def _count(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """Count the values in a node with aliases expanded; infinite if it contains itself."""
    if node not in known:
        known[node] = math.inf
        known[node] = 1 + sum(_count(child, known) for child in _children(node))
    return known[node]


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
