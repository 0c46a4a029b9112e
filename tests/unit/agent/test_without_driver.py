"""What the journal has of drivers that the agent was not given this time."""

from swarmctl.agent import adoption, assignment
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import Phase
from swarmctl.proto import incarnation
from swarmctl.proto.states import InstanceState

ONE = incarnation.make(1, 7)


def restored(state, phase, driver="docker"):
    """A supervisor with libvirt alone, and what it says of the node."""
    one = Instance(ONE, "web", 1, template=b"t" * 8, driver=driver, state=state, phase=phase)
    supervisor = Supervisor(["libvirt"])
    adoption.restore(supervisor, {ONE: one.to_journal()}, 3, "c", 0.0)
    return supervisor, adoption.show_without_driver(supervisor, "n1")


def test_it_may_run_and_is_not_gone_though_it_is_to_be_removed():
    """However long it takes; the reason stays."""
    supervisor, reasons = restored(InstanceState.RUNNING, Phase.RUNNING)
    adoption.listed(supervisor, "libvirt", 0, [], 1.0)
    assignment.remove(supervisor, ONE)
    for second in range(2, 2000, 10):
        supervisor.tick(float(second))
    one = supervisor.instances[ONE]

    assert one.state == InstanceState.RUNNING
    assert "--drivers docker,libvirt" in one.reason
    assert "swarmctl node rm n1" in one.reason
    assert not supervisor.take().removes
    (reason,) = reasons
    assert reason == (
        "driver docker is missing, which the agent's journal has 1 of: "
        "start the agent with --drivers docker,libvirt"
    )


def test_what_was_rejected_for_want_of_the_driver_is_nothing_to_worry_about():
    """It was never made, and can be removed."""
    supervisor, reasons = restored(InstanceState.REJECTED, Phase.FINISHED)
    assert reasons == ()
    assignment.remove(supervisor, ONE)

    assert ONE not in supervisor.instances
    assert ONE in supervisor.gone


def test_of_drivers_that_are_there_nothing_is_said():
    """Their lists will tell."""
    supervisor, reasons = restored(InstanceState.RUNNING, Phase.RUNNING, "libvirt")

    assert reasons == ()
    assert supervisor.instances[ONE].reason == ""
