"""YAML from unknown sources: read in bounded time and memory, with one kind of error.

PyYAML's constructors raise a dozen kinds (for a date of the 99th, or `!!int foo`), and a file of 400 bytes whose
aliases name each other grows to gigabytes when its values are visited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MOST_VALUES = 1_000_000
"""Most values of a file, where each alias counts like the values it names; a data set of 80 classes has about 100."""


def parse_yaml(text: str, loader: type[yaml.SafeLoader | yaml.BaseLoader] | None = None) -> Any:
    """The content of one YAML document. Raises `yaml.YAMLError` for every error in it.

    loader: PyYAML's loader, which makes the values; None for `yaml.SafeLoader`.
    """
    import yaml  # a deployment reads none

    try:
        reader = (loader or yaml.SafeLoader)(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _count(node, {}, set())
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("its values are nested too deeply") from None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise yaml.YAMLError(f"a value that is not of its type: {reason}") from None


def _count(node: yaml.Node, counted: dict[int, int], above: set[int]) -> int:
    """The number of values of `node`, itself included. Raises `yaml.YAMLError` past `MOST_VALUES`, and for a cycle."""
    import yaml

    key = id(node)
    if key in counted:
        return counted[key]
    if key in above:
        raise yaml.YAMLError("an alias names what it stands in, which has no end")
    total = 1
    if isinstance(node, yaml.CollectionNode):
        above.add(key)
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                total += _count(part, counted, above)
        above.remove(key)
    if total > MOST_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES} values; write it out, or make it smaller")
    counted[key] = total
    return total
