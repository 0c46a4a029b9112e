"""The client's commands against a real controller that has no nodes: everything stays pending."""

import errno
import json
import threading
from pathlib import Path

import pytest
import yaml

from swarmctl.client import ClientStream

PS_FIELDS = {
    *("instance", "service", "kind", "node", "state", "desired", "runtime_id"),
    *("addresses", "restarts", "since", "reason"),
}
STACK = """\
services:
  web:
    image: lab/web
    env_file: web.env
    deploy: {replicas: 2}
  db:
    image: lab/db
"""


def parsed(swarmctl, *arguments: str):
    """What a command says as JSON."""
    ended = swarmctl(*arguments, "-o", "json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


# --- run -------------------------------------------------------------------------------------


def test_run_prints_the_name_and_commits_the_service(controller, swarmctl):
    """Without a terminal it does not wait; the copies are pending, with a reason."""
    ended = swarmctl("run", "--name", "web", "--replicas", "2", "lab/web", "serve", "--port=1")

    assert (ended.code, ended.out) == (0, "web\n")
    listed = parsed(swarmctl, "ps")
    assert [one["instance"] for one in listed] == ["web.1", "web.2"]
    assert set(listed[0]) >= PS_FIELDS
    assert listed[0]["state"] == "pending"
    assert listed[0]["since"].endswith("Z")
    spec = parsed(swarmctl, "service", "inspect", "web")["spec"]
    assert list(spec["template"]["container"]["command"]) == ["serve", "--port=1"]


def test_run_makes_a_name_that_is_free(controller, swarmctl):
    """From the image, with a number where it is taken."""
    assert swarmctl("run", "lab/testbox:1").out == "testbox\n"
    assert swarmctl("run", "lab/testbox:2").out == "testbox-2\n"


def test_run_refuses_a_name_in_use(controller, swarmctl):
    """It says so, and what to do; the first service is as it was."""
    swarmctl("run", "--name", "web", "lab/web")
    ended = swarmctl("run", "--name", "web", "lab/other")

    assert ended.code == 1
    assert "exists already" in ended.err
    assert "swarmctl rm web" in ended.err
    assert [one["image"] for one in parsed(swarmctl, "service", "ls")] == ["lab/web"]


@pytest.mark.parametrize(
    ("arguments", "where", "hint"),
    [
        (["--memory", "12 gigs", "lab/web"], "--memory", '"12g"'),
        (["--name", "a/b", "lab/web"], "--name", '"a-b"'),
        (["--cpus", "many", "lab/web"], "--cpus", "number of cores"),
        (["-p", "99999", "lab/web"], "--publish", "65535"),
        (["--kernel", "k", "lab/web"], "--kernel", "--vm"),
        (["--user-data", "/nonexistent", "--vm", "x.qcow2"], "--user-data", "No such file"),
        (["--rm", "--detach", "lab/web"], "--rm", "--job --detach"),
        (["--timeout", "soon", "lab/web"], "--timeout", "time"),
        ([], "IMAGE is missing", "Usage"),
        (["--vm", "disk.qcow2", "--memory", "1g"], "COMMAND", "before IMAGE"),
    ],
)
def test_run_refuses_bad_options(controller, swarmctl, arguments: list[str], where: str, hint: str):
    """Exit code 2, the option, and what to write; no service is made."""
    ended = swarmctl("run", *arguments)

    assert ended.code == 2
    assert where in ended.err
    assert hint in ended.err
    assert "Traceback" not in ended.err
    assert parsed(swarmctl, "service", "ls") == []


def test_run_wait_says_that_nothing_fits(controller, swarmctl):
    """Exit code 4 with the explanation; the service stays, pending."""
    ended = swarmctl("run", "--name", "big", "--cpus", "1000", "--wait", "lab/web")

    assert ended.code == 4
    assert ended.out == "big\n"
    assert "big.1 cannot be placed" in ended.err
    assert [one["state"] for one in parsed(swarmctl, "ps")] == ["pending"]


def test_run_reads_files_for_the_user(controller, swarmctl, tmp_path: Path):
    """Environment files and user data are read here; disk paths become absolute."""
    (tmp_path / "env").write_text("# comment\nA=1\n\nB=two words\n")
    swarmctl("run", "--name", "web", "--env-file", str(tmp_path / "env"), "-e", "A=2", "lab/web")
    spec = parsed(swarmctl, "service", "inspect", "web")["spec"]
    assert spec["template"]["container"]["environment"] == {"A": "2", "B": "two words"}

    (tmp_path / "seed").write_text("#cloud-config\n")
    arguments = ["--user-data", str(tmp_path / "seed"), "--ssh-key", "ssh-ed25519 AAAA me"]
    swarmctl("run", "--vm", "--name", "vm", *arguments, "./disk.qcow2")
    vm = parsed(swarmctl, "service", "inspect", "vm")["spec"]["template"]["vm"]
    assert vm["cloud_init"]["user_data"] == "#cloud-config\n"
    assert vm["disk"]["image"] == str(Path.cwd() / "disk.qcow2")


def test_ctrl_c_while_waiting_says_what_goes_on(controller, swarmctl, monkeypatch):
    """Exit code 130, the service stays, and how to undo it is said."""
    receive = ClientStream.receive

    def interrupted(self, timeout_s: float):
        if self._method == "service.wait":
            raise KeyboardInterrupt
        return receive(self, timeout_s)

    monkeypatch.setattr(ClientStream, "receive", interrupted)
    ended = swarmctl("run", "--name", "web", "--wait", "lab/web")

    assert ended.code == 130
    assert "the service web goes on starting" in ended.err
    assert "swarmctl ps web" in ended.err
    assert "undo: swarmctl rm web" in ended.err


# --- looking ---------------------------------------------------------------------------------


def test_ps_formats(controller, swarmctl):
    """The same rows as a table, wider, as names, YAML and JSON."""
    swarmctl("run", "--name", "web", "lab/web")

    assert swarmctl("ps", "-o", "name").out == "web.1\n"
    assert yaml.safe_load(swarmctl("ps", "-o", "yaml").out) == parsed(swarmctl, "ps")
    heading, row = swarmctl("ps").out.splitlines()
    assert heading.split()[:4] == ["INSTANCE", "KIND", "NODE", "STATE"]
    assert row.startswith("web.1")
    assert "INCARNATION" in swarmctl("ps", "-o", "wide").out
    assert "\x1b" not in swarmctl("ps").out


@pytest.mark.parametrize("command", ["ps", "logs", "explain", "stop", "rm", "inspect"])
def test_a_typo_gets_a_suggestion(controller, swarmctl, command: str):
    """Exit code 1, and the name that was probably meant."""
    swarmctl("run", "--name", "frontend", "lab/web")
    ended = swarmctl(command, "frontned")

    assert ended.code == 1
    assert 'did you mean "frontend"?' in ended.err


def test_inspect_and_explain(controller, swarmctl):
    """A service, an instance, and why it is nowhere."""
    swarmctl("run", "--name", "web", "lab/web")

    assert json.loads(swarmctl("inspect", "web").out)["service"] == "web"
    assert json.loads(swarmctl("inspect", "web.1").out)["instance"] == "web.1"
    assert "web.1 is nowhere" in swarmctl("explain", "web.1").out
    assert swarmctl("inspect", "web.7").code == 1


def test_version_tells_both(controller, swarmctl):
    """The command's and the controller's."""
    assert set(parsed(swarmctl, "version")) == {"client", "controller"}
    assert swarmctl("version").out.startswith("client      0.")


# --- changing --------------------------------------------------------------------------------


def test_scale_stop_start_and_rm(controller, swarmctl):
    """Each is committed, and shows in what is listed afterwards."""
    swarmctl("run", "--name", "web", "lab/web")

    assert swarmctl("scale", "web=3").out == "web\n"
    assert len(parsed(swarmctl, "ps")) == 3
    assert swarmctl("rm", "web.2", "--wait").code == 0
    assert [one["instance"] for one in parsed(swarmctl, "ps")] == ["web.1", "web.3"]
    assert swarmctl("stop", "web", "--wait").code == 0
    assert parsed(swarmctl, "ps") == []
    assert swarmctl("start", "web").code == 0
    assert len(parsed(swarmctl, "ps")) == 3
    assert swarmctl("restart", "web.1", "web").code == 0
    ended = swarmctl("rm", "web", "--wait")
    assert (ended.code, ended.out) == (0, "web\n")
    assert "web: gone" in ended.err
    assert parsed(swarmctl, "service", "ls") == []


@pytest.mark.parametrize("text", ["web", "web=", "web=x", "web=-1", "=3"])
def test_scale_wants_a_name_and_a_count(controller, swarmctl, text: str):
    """Exit code 2, and an example."""
    ended = swarmctl("scale", text)

    assert ended.code == 2
    assert "web=3" in ended.err


def test_wait_runs_out_of_time(controller, swarmctl):
    """Exit code 4, and how far it got."""
    swarmctl("run", "--name", "web", "lab/web")
    ended = swarmctl("wait", "web", "--for", "gone", "--timeout", "200ms")

    assert ended.code == 4
    assert "not gone after 0.2 s" in ended.err


def test_rollback_exchanges_the_last_two_specifications(controller, swarmctl, tmp_path: Path):
    """There and back again; a service that was never changed has nothing to go back to."""
    file = tmp_path / "stack.yaml"
    for image in ("lab/one", "lab/two"):
        file.write_text(f"services: {{web: {{image: {image}}}}}\n")
        assert swarmctl("apply", "-f", str(file)).code == 0

    ended = swarmctl("service", "rollback", "web")
    assert (ended.code, ended.out) == (0, "~ image: lab/two -> lab/one\n")
    assert parsed(swarmctl, "service", "ls")[0]["image"] == "lab/one"
    assert swarmctl("service", "rollback", "web").out == "~ image: lab/one -> lab/two\n"
    swarmctl("run", "--name", "new", "lab/web")
    ended = swarmctl("service", "rollback", "new")
    assert ended.code == 1
    assert "nothing to go back to" in ended.err


# --- stack files -----------------------------------------------------------------------------


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A stack's folder; a file of it lies beside."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "compose.yaml").write_text(STACK)
    (folder / "web.env").write_text("A=1\n")
    return folder / "compose.yaml"


def test_apply_makes_changes_leaves_alone_and_prunes(controller, swarmctl, stack: Path):
    """Paths in the file begin at the file's folder, wherever the command runs."""
    first = parsed(swarmctl, "apply", "-f", str(stack))
    assert [(one["service"], one["action"]) for one in first] == [
        ("web", "created"),
        ("db", "created"),
    ]
    spec = parsed(swarmctl, "service", "inspect", "web")["spec"]
    assert (spec["stack"], spec["template"]["container"]["environment"]) == ("shop", {"A": "1"})

    assert {one["action"] for one in parsed(swarmctl, "apply", "-f", str(stack))} == {"unchanged"}
    stack.write_text(STACK.replace("replicas: 2", "replicas: 3").partition("  db:")[0])
    last = parsed(swarmctl, "apply", "-f", str(stack), "--prune")
    assert [(one["service"], one["action"]) for one in last] == [
        ("web", "updated"),
        ("db", "removed"),
    ]
    assert [one["service"] for one in parsed(swarmctl, "service", "ls")] == ["web"]


def test_dry_run_and_diff_change_nothing(controller, swarmctl, stack: Path):
    """They say what would be done, field by field."""
    assert swarmctl("apply", "--dry-run", "-f", str(stack)).code == 0
    ended = swarmctl("diff", "-f", str(stack))

    assert "web: created" in ended.out
    assert "+ replicas: 2" in ended.out
    assert "+ environment.A: 1" in ended.out
    assert parsed(swarmctl, "service", "ls") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("services:\n\tweb: x\n", ":2: a tab is used for indentation"),
        ("services: {web: {image: x, deploy: {replicas: lots}}}\n", "deploy.replicas"),
        ("services: {a/b: {image: x}}\n", "cannot be a service name"),
        ("", "empty"),
    ],
)
def test_a_bad_stack_file_is_refused_by_line(
    controller, swarmctl, tmp_path: Path, text: str, said: str
):
    """Exit code 2, file and line; nothing is applied."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    ended = swarmctl("apply", "-f", str(file))

    assert ended.code == 2
    assert f"error: {file}" in ended.err
    assert said in ended.err
    assert parsed(swarmctl, "service", "ls") == []


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read: No such file"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_stack_file_that_cannot_be_read(
    controller, swarmctl, tmp_path: Path, content: bytes | None, said: str
):
    """Exit code 2, and why."""
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_bytes(content)
    ended = swarmctl("apply", "-f", str(file))

    assert ended.code == 2
    assert said in ended.err


# --- nodes, tokens, contexts -----------------------------------------------------------------


def test_tokens_are_made_listed_and_revoked(controller, swarmctl):
    """One-time unless told otherwise; the controller's own is reusable."""
    made = parsed(swarmctl, "token", "create")
    assert made["token"].startswith("swarmctl-join-")
    assert made["one_time"]
    assert swarmctl("token", "create").out.startswith("swarmctl-join-")
    listed = parsed(swarmctl, "token", "ls")
    assert sorted(one["one_time"] for one in listed) == [False, True, True]
    assert all("token" not in one for one in listed)
    assert swarmctl("token", "revoke", made["id"]).code == 0
    assert len(parsed(swarmctl, "token", "ls")) == 2
    assert swarmctl("token", "revoke", made["id"]).code == 1


def test_releasing_says_when_there_is_nothing_to_release(controller, swarmctl):
    """The storm brake of a healthy cluster does not hold."""
    ended = swarmctl("node", "release")

    assert ended.code == 0
    assert "nothing to release" in ended.out


def test_an_unknown_node_is_named(controller, swarmctl):
    """Every command about nodes says which one does not exist."""
    assert parsed(swarmctl, "node", "ls") == []
    for arguments in (["cordon", "n1"], ["label", "n1", "a=b"], ["rm", "n1"], ["inspect", "n1"]):
        ended = swarmctl("node", *arguments)
        assert ended.code == 1
        assert "n1" in ended.err
    assert swarmctl("node", "label", "n1", "nonsense").code == 2


def test_contexts_are_added_used_and_removed(controller, swarmctl, monkeypatch):
    """The first one added is current; --context goes before it, and after the command."""
    file = controller.data / "admin.context"
    monkeypatch.delenv("SWARMCTL_CONTEXT")
    assert swarmctl("ps").code == 3

    assert swarmctl("context", "add", str(file), "--name", "lab").out == "lab\n"
    assert swarmctl("ps").code == 0
    swarmctl("context", "add", str(file), "--name", "other")
    listed = parsed(swarmctl, "context", "ls")
    assert [(one["context"], one["current"]) for one in listed] == [
        ("lab", True),
        ("other", False),
    ]
    assert swarmctl("context", "use", "other").code == 0
    assert swarmctl("context", "rm", "other").code == 0
    assert swarmctl("ps").code == 3
    assert swarmctl("--context", "lab", "ps").code == 0
    assert swarmctl("ps", "--context", str(file)).code == 0
    ended = swarmctl("ps", "--context", "lba")
    assert ended.code == 1
    assert 'did you mean "lab"?' in ended.err


def test_a_context_does_not_replace_another_clusters(controller, swarmctl, tmp_path: Path):
    """A name in use is kept, unless it is the same cluster's."""
    file = controller.data / "admin.context"
    other = json.loads(file.read_text()) | {"cluster_id": "another"}
    (tmp_path / "other.context").write_text(json.dumps(other))

    assert swarmctl("context", "add", str(file), "--name", "lab").code == 0
    assert swarmctl("context", "add", str(file), "--name", "lab").code == 0
    ended = swarmctl("context", "add", str(tmp_path / "other.context"), "--name", "lab")
    assert ended.code == 1
    assert "exists already" in ended.err


def test_contexts_of_another_user_are_no_defect(swarmctl, config, monkeypatch):
    """A folder that may not be read is named, with what to do."""

    def refused(path: Path, **_options: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refused)
    ended = swarmctl("ps")

    assert ended.code == 1
    assert f"{config / 'current'}: cannot be read or written: permission denied" in ended.err
    assert "defect" not in ended.err


@pytest.mark.parametrize("text", ["not json", "{}", '{"name": 1}', "\x00"])
def test_a_file_that_is_no_context_is_refused(swarmctl, tmp_path: Path, text: str):
    """Exit code 2, the file, and which one is meant."""
    file = tmp_path / "x.context"
    file.write_text(text)
    ended = swarmctl("context", "add", str(file))

    assert ended.code == 2
    assert str(file) in ended.err
    assert "admin.context" in ended.err


# --- the way there, and errors ---------------------------------------------------------------


def test_nobody_there_is_exit_code_3(controller, swarmctl, tmp_path: Path):
    """A context whose controller does not run: at once, with the address."""
    context = json.loads((controller.data / "admin.context").read_text())
    context["addresses"] = ["tcp://127.0.0.1:1"]
    file = tmp_path / "gone.context"
    file.write_text(json.dumps(context))
    ended = swarmctl("--context", str(file), "ps")

    assert ended.code == 3
    assert "tcp://127.0.0.1:1" in ended.err
    assert swarmctl("version", "--context", str(file)).out.startswith("client")


def test_no_traceback_reaches_a_user_but_with_debug(controller, swarmctl, monkeypatch):
    """A defect is one line that says so; --debug, before or after, shows where."""

    def broken(*_args, **_named):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("swarmctl.client.Client.call", broken)
    ended = swarmctl("ps")
    assert ended.code == 1
    assert ended.err.startswith("error: ZeroDivisionError: oops\n")
    assert "Traceback" not in ended.err
    assert "Traceback" in swarmctl("--debug", "ps").err
    assert "Traceback" in swarmctl("ps", "--debug").err


def test_options_after_the_image_are_the_commands_own(controller, swarmctl):
    """``--debug`` behind IMAGE is not ours."""
    swarmctl("run", "--name", "web", "lab/web", "serve", "--debug", "-o", "x")

    spec = parsed(swarmctl, "service", "inspect", "web")["spec"]
    assert list(spec["template"]["container"]["command"]) == ["serve", "--debug", "-o", "x"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pss"], "Did you mean 'ps'?"),
        (["ps", "--nonsense"], "No such option"),
        (["ps", "-o", "xml"], "'xml' is not one of"),
        (["logs"], "Missing argument"),
        (["logs", "--tail", "0", "web"], "--tail"),
        (["node", "lss"], "No such command"),
    ],
)
def test_wrong_usage_is_exit_code_2(swarmctl, arguments: list[str], said: str):
    """Without a cluster: usage is checked first."""
    ended = swarmctl(*arguments)

    assert ended.code == 2
    assert said in ended.err


def test_every_command_has_help(swarmctl):
    """The table of commands and the modules agree."""
    from swarmctl.cli.main import _COMMANDS

    listed = swarmctl("--help").out
    for name in _COMMANDS:
        assert name in listed
        ended = swarmctl(name, "--help")
        assert ended.code == 0
        assert ended.out.startswith(f"Usage: swarmctl {name}")


# --- completion ------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(swarmctl, shell: str):
    """Each shell gets its own, which calls this command."""
    ended = swarmctl("completion", shell)

    assert ended.code == 0
    assert "_SWARMCTL_COMPLETE" in ended.out


def completed(capsys, monkeypatch, *words: str) -> list[str]:
    """What the shell is told for the last of ``words``."""
    from swarmctl.cli.main import run

    monkeypatch.setenv("_SWARMCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("swarmctl", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run([])
    monkeypatch.delenv("_SWARMCTL_COMPLETE")
    return [line.partition(",")[2] for line in capsys.readouterr().out.split()]


def test_names_complete(controller, swarmctl, capsys, monkeypatch):
    """Commands, services, instances and contexts."""
    swarmctl("run", "--name", "web", "--replicas", "2", "lab/web")
    swarmctl("run", "--name", "db", "lab/db")
    swarmctl("context", "add", str(controller.data / "admin.context"), "--name", "lab")

    assert completed(capsys, monkeypatch, "con") == ["controller", "console", "context"]
    assert completed(capsys, monkeypatch, "logs", "w") == ["web"]
    assert completed(capsys, monkeypatch, "exec", "w") == ["web.1", "web.2"]
    assert completed(capsys, monkeypatch, "stop", "web.") == ["web.1", "web.2"]
    assert completed(capsys, monkeypatch, "context", "use", "") == ["lab"]


def test_completion_without_a_cluster_is_silent(swarmctl, capsys, monkeypatch):
    """No error in the middle of a prompt."""
    assert completed(capsys, monkeypatch, "logs", "w") == []


# --- a controller that goes away -------------------------------------------------------------


def test_waiting_survives_a_controller_that_starts_anew(
    controller, swarmctl, monkeypatch, tmp_path: Path
):
    """``--wait`` asks again when its connection is lost."""
    from swarmctl.proto.errors import PeerUnreachable

    swarmctl("run", "--name", "web", "lab/web")
    receive = ClientStream.receive
    lost = threading.Event()

    def lose_once(self, timeout_s: float):
        if self._method == "service.wait" and not lost.is_set():
            lost.set()
            raise PeerUnreachable("the connection was lost")
        return receive(self, timeout_s)

    monkeypatch.setattr(ClientStream, "receive", lose_once)
    ended = swarmctl("wait", "web", "--for", "stopped")

    assert lost.is_set()
    assert ended.code == 0
