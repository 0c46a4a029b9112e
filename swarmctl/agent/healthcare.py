"""What answers of health checks mean for instances: an input of the supervisor.

An instance with a check is *starting* until the first good answer, and only then *running*: so
whoever waits for it to run waits for it to be well, and a roll-out goes on when it is.
One that is unhealthy is stopped and then treated like one that failed: its restart policy says
what follows.  Under the policy ``no`` one that was well before is left alone and shown: nobody
would start it again.
"""

from swarmctl.agent.actions import Stop
from swarmctl.agent.health import Answer, Health, Watch
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import Goal, Phase
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import RestartCondition


def is_current(supervisor: Supervisor, watch: Watch) -> bool:
    """Whether what ``watch`` watches still runs."""
    instance = supervisor.instances.get(watch.incarnation)
    return instance is not None and instance.health is watch and instance.phase == Phase.RUNNING


def answered(supervisor: Supervisor, watch: Watch, answer: Answer | None, now: float) -> None:
    """A check has ended; ``answer`` is None when it could not be made."""
    supervisor.now = now
    instance = supervisor.instances.get(watch.incarnation)
    if instance is None or instance.health is not watch:
        supervisor.health.end(watch)
        return
    if instance.phase not in (Phase.RUNNING, Phase.STOPPING):
        supervisor.health.end(watch)
        return
    if answer is None or instance.phase == Phase.STOPPING:
        watch.put_off(now)
    else:
        changed = watch.take(answer, now)
        _show(supervisor, instance, watch, changed=changed)
    supervisor.health.schedule(watch)


def _show(supervisor: Supervisor, instance: Instance, watch: Watch, *, changed: bool) -> None:
    """Say what is known now, and do what follows from it."""
    if watch.health is Health.HEALTHY:
        if changed or instance.state != InstanceState.RUNNING:
            supervisor.show(instance, InstanceState.RUNNING, "")
            # The next agent on this node need not call it starting.
            supervisor.put(instance)
    elif watch.health is Health.STARTING:
        text = f"not healthy yet: {watch.said}"
        if instance.reason != text:
            supervisor.show(instance, instance.state, text, urgent=False)
    else:
        why = f"unhealthy: {watch.said}"
        if instance.goal == Goal.RUN and not _is_left_alone(supervisor, instance, watch):
            _condemn(supervisor, instance, watch, why)
        elif changed:
            supervisor.show(instance, instance.state, why)


def _is_left_alone(supervisor: Supervisor, instance: Instance, watch: Watch) -> bool:
    template = supervisor.templates.get(instance.template)
    never = template is None or template.restart.condition is RestartCondition.NEVER
    return never and watch.healthy_since > 0


def _condemn(supervisor: Supervisor, instance: Instance, watch: Watch, why: str) -> None:
    """Stop it; when it has stopped, its restart policy judges that as a failure."""
    template = supervisor.templates[instance.template]
    assert template is not None, "checked without a template"
    watch.condemned = why
    instance.phase = Phase.STOPPING
    instance.exit_code = None
    supervisor.show(instance, InstanceState.STOPPING, why)
    supervisor.actions.stops.append(
        Stop(instance.driver, instance.incarnation, template.stop_grace_period_s)
    )
