"""Environments of containers: ``A=1`` texts and environment files."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.variables import interpolate

# An environment file is a page of settings; the kernel's own bound for one value is 128 KiB.
ENV_FILE_MAX_CHARS: Final = 512 * 1024

_KEY: Final = re.compile(r"[^\s=\0]+")
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


def check_variable_name(name: str) -> str:
    """``name`` when a variable may be called so.

    Raises:
        InvalidSpec: it is empty, or has a space or a "=".
    """
    if _KEY.fullmatch(name) is None:
        raise InvalidSpec(f'"{name}" cannot be the name of a variable', hint="write NAME=VALUE")
    return name


def parse_assignment(text: str) -> tuple[str, str | None]:
    """``("A", "1")`` of ``A=1``; ``("A", None)`` of ``A``, whose value comes from elsewhere.

    Raises:
        InvalidSpec: it names no variable.
    """
    name, equals, value = text.partition("=")
    return check_variable_name(name), value if equals else None


def parse_env_file(
    name: str, text: str, environment: Mapping[str, str], unset: Callable[[str, str], None]
) -> dict[str, str | None]:
    r"""The variables of an environment file; None stands for a name without ``=``.

    ``#`` begins a comment. Values in single quotes are literal; others may use variables of
    ``environment`` and of earlier lines; those in double quotes also know ``\n`` and the like.

    Args:
        name: the file, for messages.
        text: its content.
        environment: for variables in values.
        unset: called with (where, name) for each variable without a value.

    Raises:
        InvalidSpec: naming the file and the line.
    """
    if len(text) > ENV_FILE_MAX_CHARS:
        raise InvalidSpec(f"over {ENV_FILE_MAX_CHARS} characters", where=name)
    found: dict[str, str | None] = {}
    known = dict(environment)
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip().removeprefix("export ").lstrip()
        if not stripped or stripped.startswith("#"):
            continue
        where = f"{name}:{number}"
        try:
            key, value = parse_assignment(_strip_around_equals(stripped))
            if value is not None:
                value = known[key] = _unquote(value, known, partial(unset, where))
        except InvalidSpec as error:
            raise InvalidSpec(error.what, where=where, hint=error.hint) from error
        found[key] = value
    return found


def _strip_around_equals(line: str) -> str:
    name, equals, value = line.partition("=")
    return f"{name.rstrip()}{equals}{value.lstrip()}"


def _unquote(value: str, known: Mapping[str, str], unset: Callable[[str], None]) -> str:
    quote = value[:1]
    if quote not in ("'", '"'):
        plain = re.split(r"\s#", value, maxsplit=1)[0].rstrip()
        return interpolate(plain, known, unset)
    match = re.fullmatch(r"""(['"])((?:\\.|(?!\1).)*)\1\s*(?:#.*)?""", value)
    if match is None:
        raise InvalidSpec(f"the quote {quote} is not closed", hint="close it on the same line")
    inner = match.group(2)
    if quote == "'":
        return inner
    escaped = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(0)), inner)
    return interpolate(escaped, known, unset)
