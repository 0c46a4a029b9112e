"""Fields of the Compose Specification that are understood and have no effect, with the reason.

A file that uses one of them applies, and each use is a warning. Support for a field begins with
its removal here.
"""

from typing import Final

NOT_YET: Final = "not supported yet, ignored"

# Fields of a service.
SERVICE: Final = {
    "container_name": "ignored, instances are called SERVICE.1, SERVICE.2 and so on",
    "depends_on": "not supported yet, services start together and restart until they succeed",
    "expose": "has no effect, every port of a container is open to its network",
    "links": NOT_YET,
    "pull_policy": "ignored, an image is pulled when the node does not have it",
    "gpus": "not supported yet, ignored; use deploy.resources.reservations.devices",
} | dict.fromkeys(
    [
        "annotations",
        "attach",
        "blkio_config",
        "cap_drop",
        "cgroup",
        "cgroup_parent",
        "configs",
        "cpu_count",
        "cpu_percent",
        "cpu_period",
        "cpu_quota",
        "cpu_rt_period",
        "cpu_rt_runtime",
        "cpu_shares",
        "cpuset",
        "credential_spec",
        "develop",
        "device_cgroup_rules",
        "devices",
        "dns",
        "dns_opt",
        "dns_search",
        "domainname",
        "external_links",
        "extra_hosts",
        "group_add",
        "init",
        "ipc",
        "isolation",
        "label_file",
        "logging",
        "mac_address",
        "memswap_limit",
        "mem_swappiness",
        "models",
        "oom_kill_disable",
        "oom_score_adj",
        "pid",
        "pids_limit",
        "platform",
        "post_start",
        "pre_stop",
        "privileged",
        "provider",
        "read_only",
        "runtime",
        "secrets",
        "security_opt",
        "shm_size",
        "stdin_open",
        "storage_opt",
        "sysctls",
        "ulimits",
        "use_api_socket",
        "userns_mode",
        "uts",
        "volumes_from",
    ],
    NOT_YET,
)

# Fields of one network in a service's "networks:".
NETWORK_OF_SERVICE: Final = dict.fromkeys(
    [
        "aliases",
        "interface_name",
        "ipv4_address",
        "ipv6_address",
        "link_local_ips",
        "mac_address",
        "driver_opts",
        "gw_priority",
        "priority",
    ],
    NOT_YET,
)

# Fields of a network and of a volume at the top level.
NETWORK: Final = {
    "driver": "has no effect: tenant networks are OVN's",
    "attachable": "has no effect: the tenant's services may all use it",
    "enable_ipv4": "has no effect: its subnets say it",
    "enable_ipv6": "has no effect: its subnets say it",
    "labels": NOT_YET,
}
VOLUME: Final = dict.fromkeys(["driver", "driver_opts", "labels"], NOT_YET)
