"""The template that an instance was made of, kept with the instance itself. Pure.

The journal says from which template an instance was made. Where the journal was lost, the instance
says it: what it takes of its node, whether it is fenced, when it is started again. Without that
nobody could count with what is found running.

A driver keeps the encoded template where nobody reads it who could not read the instance's own
secrets: variables and user-data are part of it. Where only text can be kept, it is text in base64.
"""

import base64
from typing import Final

from swarmctl.spec import wire
from swarmctl.spec.models import Template

# Text that is longer is not kept: a daemon repeats it in each list and with each event.
TEXT_MAX_CHARS: Final = 64 * 1024


def text_of(template: Template) -> str:
    """``template`` as text for labels; empty when it would be longer than they should be."""
    text = base64.b64encode(wire.encode_template(template)).decode("ascii")
    return text if len(text) <= TEXT_MAX_CHARS else ""


def encoded_of(text: str) -> bytes:
    """What :func:`text_of` made text of, as encoded by the release that did; empty when damaged."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
