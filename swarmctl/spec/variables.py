"""``${VARIABLE}`` in stack files and environment files, as the Compose Specification has it.

===================  ==============================================================
``$VAR``, ``${VAR}``  the value; empty when unset, and ``unset`` is told
``${VAR:-text}``     ``text`` when unset or empty; ``${VAR-text}`` only when unset
``${VAR:+text}``     ``text`` when set and not empty; ``${VAR+text}`` also when empty
``${VAR:?text}``     an error saying ``text`` when unset or empty; ``${VAR?text}`` only when unset
``$$``               a dollar
===================  ==============================================================

``text`` may hold variables itself. The environment is an argument: nothing is read here.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from swarmctl.proto.errors import InvalidSpec

# Variables within the defaults of variables; two are usual. Bounds the recursion.
NESTING_MAX: Final = 16
# A value after expansion: cloud-init's own limit for user data on most clouds is smaller.
EXPANDED_MAX_CHARS: Final = 256 * 1024

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR: Final = re.compile(r":?[-+?]")
_DOLLAR_HINT: Final = 'write "$$" for a dollar, "${NAME}" for a variable'


def interpolate(text: str, environment: Mapping[str, str], unset: Callable[[str], None]) -> str:
    """``text`` with its variables replaced.

    Args:
        text: what may hold variables.
        environment: the variables.
        unset: called with the name of each variable that has neither a value nor a default.

    Raises:
        InvalidSpec: a variable is badly written, required and unset, or the result is too long.
    """
    if "$" not in text:
        return text
    return _Expansion(environment, unset).expand(text, 0)


class _Expansion:
    """One run of :func:`interpolate`; bounds what all its parts expand to together."""

    def __init__(self, environment: Mapping[str, str], unset: Callable[[str], None]) -> None:
        self._environment = environment
        self._unset = unset
        self._left = EXPANDED_MAX_CHARS

    def expand(self, text: str, depth: int) -> str:
        if depth > NESTING_MAX:
            raise InvalidSpec(f"variables are nested more than {NESTING_MAX} deep")
        parts: list[str] = []
        position = 0
        while (dollar := text.find("$", position)) >= 0:
            parts.append(text[position:dollar])
            value, position = self._variable(text, dollar, depth)
            parts.append(value)
            self._left -= len(value)
            if self._left < 0:
                raise InvalidSpec(
                    f"with its variables this is over {EXPANDED_MAX_CHARS} characters"
                )
        parts.append(text[position:])
        return "".join(parts)

    def _variable(self, text: str, dollar: int, depth: int) -> tuple[str, int]:
        """The value of the variable at ``dollar``, and where the text goes on."""
        after = dollar + 1
        if text.startswith("$", after):
            return "$", after + 1
        if text.startswith("{", after):
            end = _closing(text, after + 1)
            return self._braced(text[after + 1 : end], depth), end + 1
        match = _NAME.match(text, after)
        if match is None:
            raise InvalidSpec(f'a lone "$" in "{_excerpt(text, dollar)}"', hint=_DOLLAR_HINT)
        return self._plain(match.group()), match.end()

    def _plain(self, name: str) -> str:
        if name not in self._environment:
            self._unset(name)
        return self._environment.get(name, "")

    def _braced(self, inner: str, depth: int) -> str:
        match = _NAME.match(inner)
        if match is None:
            raise InvalidSpec(f'"${{{inner[:40]}}}" names no variable', hint=_DOLLAR_HINT)
        name, rest = match.group(), inner[match.end() :]
        if not rest:
            return self._plain(name)
        operator = _OPERATOR.match(rest)
        if operator is None:
            raise InvalidSpec(
                f'"${{{inner[:40]}}}" is not a variable',
                hint="after the name may come :-  -  :?  ?  :+  or  +",
            )
        operand = rest[operator.end() :]
        value = self._environment.get(name)
        given = value is not None and (value != "" or ":" not in operator.group())
        kind = operator.group()[-1]
        if kind == "+":
            return self.expand(operand, depth + 1) if given else ""
        if given:
            return value or ""
        if kind == "-":
            return self.expand(operand, depth + 1)
        reason = self.expand(operand, depth + 1) or "it is required"
        raise InvalidSpec(
            f"the variable {name} is not set: {reason}", hint=f"set {name} in the environment"
        )


def _closing(text: str, start: int) -> int:
    """Where the brace closes that was opened just before ``start``."""
    depth, position = 1, start
    while position < len(text):
        if text.startswith("$$", position):
            position += 2
            continue
        if text.startswith("${", position):
            depth += 1
            position += 2
            continue
        if text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise InvalidSpec(f'"{_excerpt(text, start - 2)}" has no closing "}}"', hint=_DOLLAR_HINT)


def _excerpt(text: str, position: int) -> str:
    return text[position : position + 20].splitlines()[0]
