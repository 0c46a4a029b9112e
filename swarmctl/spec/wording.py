"""Users' texts inside messages: one line, nothing that a terminal would obey."""


def one_line(text: str) -> str:
    """``text`` with line ends as spaces and other unprintable characters replaced."""
    joined = " ".join(text.split("\n"))
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in joined)
