"""Variables in the values of a whole tree (keys are left alone)."""

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.reading import Warnings
from swarmctl.spec.variables import interpolate
from swarmctl.spec.wording import one_line
from swarmctl.spec.yamltree import ListNode, MapNode, Mark, Node, ScalarNode

# Everything that variables expand to in one file: eight times the largest file.
EXPANDED_TOTAL_MAX_CHARS: Final = 8 * 1024 * 1024


def expand_tree(root: Node, environment: Mapping[str, str], warnings: Warnings) -> Node:
    """``root`` with the variables in its values replaced.

    A variable that is not set and has no default is empty, with a warning.

    Raises:
        InvalidSpec: a variable is badly written, or required and not set; with its place.
    """
    return _Expander(environment, warnings).node(root, root.mark, "")


class _Expander:
    def __init__(self, environment: Mapping[str, str], warnings: Warnings) -> None:
        self._environment = environment
        self._warnings = warnings
        # Nodes that aliases share stay shared. The tree keeps them alive, so ids are unique.
        self._done: dict[int, Node] = {}
        self._left = EXPANDED_TOTAL_MAX_CHARS

    def node(self, node: Node, mark: Mark, path: str) -> Node:
        done = self._done.get(id(node))
        if done is None:
            done = self._done[id(node)] = self._expanded(node, mark, path)
        return done

    def _expanded(self, node: Node, mark: Mark, path: str) -> Node:
        if isinstance(node, MapNode):
            prefix = f"{path}." if path else ""
            entries = {
                key: (at, self.node(value, at, prefix + key))
                for key, (at, value) in node.entries.items()
            }
            return evolve(node, entries=entries)
        if isinstance(node, ListNode):
            items = (
                self.node(item, item.mark, f"{path}[{index}]")
                for index, item in enumerate(node.items)
            )
            return evolve(node, items=tuple(items))
        return self._scalar(node, mark, path) if "$" in node.text else node

    def _scalar(self, node: ScalarNode, mark: Mark, path: str) -> ScalarNode:
        where = one_line(f"{mark}: {path}")

        def unset(name: str) -> None:
            self._warnings.add(
                where,
                f"the variable {name} is not set and became an empty text",
                f'set it, write "${{{name}:-default}}", or "$$" for a dollar',
            )

        try:
            text = interpolate(node.text, self._environment, unset)
        except InvalidSpec as error:
            raise InvalidSpec(one_line(error.what), where=where, hint=error.hint) from error
        self._left -= len(text)
        if self._left < 0:
            raise InvalidSpec(
                f"variables expand to over {EXPANDED_TOTAL_MAX_CHARS} characters", where=where
            )
        return evolve(node, text=text)
