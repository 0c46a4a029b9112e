"""`python -m docs.generate`: the parts of docs/ that are drawn from the code's own tables.

Each is kept between two comments in a page, so that the page reads well without being built; a
test compares them with the code.
"""

from pathlib import Path

from swarmctl.proto.states import FINAL, FORWARD, LIVE, NEXT_ATTEMPT, InstanceState

PAGE = Path(__file__).with_name("nomenclature.md")
BEGIN = "<!-- begin: drawn from swarmctl/proto/states.py by `make docs` -->"
END = "<!-- end -->"


def instance_states() -> str:
    """The instance states as a table and a diagram."""
    lines = ["| state | may be followed by | uses the node's resources | ends the attempt |"]
    lines.append("| --- | --- | --- | --- |")
    for state in InstanceState:
        after = ", ".join(one.label for one in sorted(FORWARD[state])) or "nothing"
        live, final = ("yes" if state in states else "" for states in (LIVE, FINAL))
        lines.append(f"| `{state.label}` | {after} | {live} | {final} |")
    attempts = " or ".join(f"`{state.label}`" for state in sorted(NEXT_ATTEMPT))
    lines += ["", f"The next attempt, on the spot, begins at {attempts}.", ""]
    lines += ["```mermaid", "stateDiagram-v2"]
    for before in InstanceState:
        for after in sorted(FORWARD[before] - {InstanceState.REMOVED}):
            lines.append(f"    {before.label} --> {after.label}")
    lines += ["```", "", "Left out of the picture: `removed`, which may follow every state.", ""]
    return "\n".join(lines)


def with_generated(page: str) -> str:
    """The page with its generated part made anew."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin, f"{PAGE.name} has lost its first marker"
    assert end, f"{PAGE.name} has lost its second marker"
    return f"{head}{BEGIN}\n\n{instance_states()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(with_generated(PAGE.read_text()))
