"""Hypothesis strategies for what travels between users, controller and agents.

Shared, so that every property is tested on the same idea of "any service".
"""

from hypothesis import strategies as st

from swarmctl.spec.models import (
    AffinityTerm,
    CloudInit,
    ContainerSpec,
    DiskSpec,
    HealthCheck,
    HealthKind,
    Mount,
    NetworkUse,
    Placement,
    PortMapping,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceSpec,
    Template,
    VmSpec,
)

# Service, node, tenant and stack names, as swarmctl.spec.names allows them.
names = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)

# Text without half characters, which msgpack (UTF-8) cannot carry.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
text_maps = st.dictionaries(texts, texts, max_size=4)
amounts = st.integers(0, 1 << 50)
seconds = st.floats(0, 1e9, allow_nan=False)


def tuples_of(elements):
    """Tuples of up to three elements."""
    return st.lists(elements, max_size=3).map(tuple)


resources = st.builds(
    Resources,
    cpu_millis=amounts,
    memory_bytes=amounts,
    disk_bytes=amounts,
    named=st.dictionaries(names, amounts, max_size=3),
)
port_mappings = st.builds(
    PortMapping,
    container_port=st.integers(1, 65535),
    host_port=st.integers(0, 65535),
    protocol=st.sampled_from(["tcp", "udp", "sctp"]),
    host_ip=st.sampled_from(["", "127.0.0.1", "::1"]),
)
mounts = st.builds(
    Mount,
    kind=st.sampled_from(["bind", "volume", "tmpfs"]),
    source=texts,
    target=texts,
    read_only=st.booleans(),
    size_bytes=amounts,
)
restart_policies = st.builds(
    RestartPolicy,
    condition=st.sampled_from(RestartCondition),
    delay_s=seconds,
    max_attempts=st.integers(0, 1000),
    window_s=seconds,
)
health_checks = st.builds(
    HealthCheck,
    kind=st.sampled_from(HealthKind),
    command=tuples_of(texts),
    port=st.integers(0, 65535),
    path=texts,
    interval_s=seconds,
    timeout_s=seconds,
    retries=st.integers(1, 1000),
    start_period_s=seconds,
    start_interval_s=seconds,
)
containers = st.builds(
    ContainerSpec,
    image=texts,
    command=st.none() | tuples_of(texts),
    entrypoint=st.none() | tuples_of(texts),
    environment=text_maps,
    user=texts,
    working_dir=texts,
    hostname=texts,
    ports=tuples_of(port_mappings),
    mounts=tuples_of(mounts),
    network=texts,
    cap_add=tuples_of(texts),
    stop_signal=texts,
    tty=st.booleans(),
)
cloud_inits = st.builds(
    CloudInit, user_data=texts, hostname=texts, ssh_authorized_keys=tuples_of(texts)
)
vms = st.builds(
    VmSpec,
    disk=st.none() | st.builds(DiskSpec, image=texts, size_bytes=amounts, persistent=st.booleans()),
    kernel=texts,
    initrd=texts,
    cmdline=texts,
    firmware=st.sampled_from(["bios", "uefi"]),
    cloud_init=st.none() | cloud_inits,
    trunk=st.booleans(),
    network=texts,
)


network_uses = st.builds(
    NetworkUse, network=texts, addresses=tuples_of(texts), aliases=tuples_of(texts)
)


@st.composite
def _templates(draw):
    is_vm = draw(st.booleans())
    return Template(
        container=None if is_vm else draw(containers),
        vm=draw(vms) if is_vm else None,
        resources=draw(resources),
        restart=draw(restart_policies),
        stop_grace_period_s=draw(seconds),
        labels=draw(text_maps),
        job=draw(st.booleans()),
        limits=draw(resources),
        health=draw(st.none() | health_checks),
        fenced=draw(st.booleans()),
        networks=draw(tuples_of(network_uses)),
    )


templates = _templates()
affinity_terms = st.builds(
    AffinityTerm, service=names, weight=st.integers(0, 100), required=st.booleans()
)
placements = st.builds(
    Placement,
    constraints=tuples_of(texts),
    spread=tuples_of(texts),
    strategy=st.sampled_from(["spread", "binpack"]),
    max_replicas_per_node=st.integers(0, 100),
    affinity=tuples_of(affinity_terms),
    anti_affinity=tuples_of(affinity_terms),
)
service_specs = st.builds(
    ServiceSpec,
    name=names,
    template=templates,
    replicas=st.integers(0, 5_000_000),
    tenant=names,
    stack=names,
    placement=placements,
    priority=st.integers(-1000, 1000),
    fencing=st.sampled_from(["none", "lease"]),
    driver=st.sampled_from(["", "sim"]),
)
