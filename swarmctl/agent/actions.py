"""What the supervisor wants done: the only thing that comes out of it besides reports.

The shell makes the journal's part durable first, and only then begins the operations: so an
intent to create is on the disk before anything is created (DESIGN 8.6).
"""

from attrs import define, field, frozen

from swarmctl.agent.drivers.api import Launch


@frozen
class Stop:
    """End ``incarnation`` politely, by force after ``grace_s``."""

    driver: str
    incarnation: int
    grace_s: float


@define
class Actions:
    """A batch.

    Attributes:
        term: the highest term, when it has changed.
        puts: journal records to write, by key.
        deletes: journal records to remove.
        launches: by driver: prepare, create and start, as one pipeline.
        stops: instances to end.
        removes: by driver, incarnations to take away.
        cancels: incarnations whose launch is not wanted any more.
        relists: drivers to be asked for all that they have.
    """

    term: int | None = None
    puts: dict[int, bytes] = field(factory=dict)
    deletes: set[int] = field(factory=set)
    launches: dict[str, list[Launch]] = field(factory=dict)
    stops: list[Stop] = field(factory=list)
    removes: dict[str, list[int]] = field(factory=dict)
    cancels: list[int] = field(factory=list)
    relists: set[str] = field(factory=set)

    @property
    def journals(self) -> bool:
        """Whether something has to be made durable."""
        return bool(self.puts or self.deletes or self.term is not None)
