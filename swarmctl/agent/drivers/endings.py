"""Why containers end, in words: shared by the drivers that see exit codes."""

from typing import Final

# Signals that are worth a name in a reason.
_SIGNALS: Final = {2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def exit_reason(code: int, *, out_of_memory: bool) -> str:
    """Why a container ended, in words; empty when the code says all there is to say."""
    if out_of_memory:
        return "killed: it used more memory than its limit"
    signal = _SIGNALS.get(code - 128)
    return f"ended by {signal}" if signal else ""
