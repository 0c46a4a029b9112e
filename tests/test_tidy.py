"""House rules that no linter knows: what may not be written, and who may import whom."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE_MAX_LINES = 500
FUNCTION_MAX_LINES = 70
# Longer ones that were there when the rule came. Entries only go: shorten one, then delete it.
MODULES_TOO_LONG: dict[str, int] = {
    "swarmctl/agent/drivers/sim.py": 510,
    "swarmctl/agent/supervisor.py": 560,
}
FUNCTIONS_TOO_LONG: dict[str, int] = {}

PRINTING = ("swarmctl/cli/", "swarmctl/__main__.py", "lab/", "bench/", "docs/")


def tracked():
    """Every file that git knows and that is there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = (Path(name) for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if (ROOT / path).is_file()]


FILES = tracked()
MODULES = [path for path in FILES if path.suffix == ".py"]
PACKAGE = [path for path in MODULES if path.parts[0] == "swarmctl"]
TREES = {path: ast.parse((ROOT / path).read_text()) for path in MODULES}


def test_the_files_are_found():
    """The rules below look at something."""
    assert len(PACKAGE) > 50
    assert Path("swarmctl/proto/states.py") in PACKAGE


# --- what is not written --------------------------------------------------------------------------


def calls(tree):
    """Dotted name and line of every call of a plain name or attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def imports(tree):
    """Every module that is imported, at whatever depth in the code, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def offences(paths, find):
    """`path:line what` for everything that `find` yields in these modules."""
    return [f"{path}:{line} {what}" for path in paths for what, line in find(TREES[path])]


@pytest.mark.parametrize("banned", ["asyncio", "pickle", "marshal", "shelve"])
def test_some_modules_are_never_imported(banned):
    """One event loop, trio's; nothing that runs code while it reads data."""
    found = offences(
        MODULES, lambda tree: (each for each in imports(tree) if each[0].split(".")[0] == banned)
    )
    assert found == []


def test_only_the_command_line_prints():
    """Daemons and libraries log; what talks to an operator prints."""
    paths = [path for path in MODULES if not str(path).startswith((*PRINTING, "tests/"))]
    assert offences(paths, lambda tree: (each for each in calls(tree) if each[0] == "print")) == []


def test_nothing_is_swallowed_whole():
    """No bare except, and none that only passes over everything."""

    def find(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in (
                    "Exception",
                    "BaseException",
                )
                if node.type is None or (broad and all(isinstance(n, ast.Pass) for n in node.body)):
                    yield "swallows exceptions", node.lineno

    assert offences(MODULES, find) == []


def test_nothing_is_left_for_later_in_the_code():
    """What is not built is said in the documents, not marked in the code."""
    # In pieces, so that this file passes its own rule.
    marks = re.compile(
        r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|NotImplemented" + r"Error"
    )
    found = [
        f"{path}:{number} {line.strip()}"
        for path in MODULES
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


# Where the wall clock becomes a time that people read, and is never subtracted from another.
WALL_CLOCKS = (
    "swarmctl/agent/drivers/libvirt/connection.py",  # when an event of libvirt came
    "swarmctl/agent/drivers/libvirt/inventory.py",  # when an end was noticed
    "swarmctl/agent/drivers/libvirt/logs.py",  # when a console's line was written
)


def test_durations_are_not_measured_by_the_wall_clock():
    """`time.time()` jumps; whoever needs the time of day is listed, or is given a clock."""
    allowed = ("swarmctl/cli/", "lab/", "bench/", "tests/", *WALL_CLOCKS)
    paths = [path for path in MODULES if not str(path).startswith(allowed)]
    found = offences(paths, lambda tree: (each for each in calls(tree) if each[0] == "time.time"))
    assert found == []


# --- who imports whom -----------------------------------------------------------------------------

# Of swarmctl/net/, what decides; the others carry it out.
NET_PURE = (
    *("model", "numbers", "addresses", "vlans", "names", "mtu"),
    *("schema", "draft", "rows", "hostnames", "security", "routing", "diff"),
)
PURE = (
    *("swarmctl/spec/", "swarmctl/proto/", "swarmctl/scheduler/"),
    *(f"swarmctl/net/{name}.py" for name in NET_PURE),
)
IMPURE = ("trio", "zmq", "libvirt", "docker", "time", "random", "secrets", "socket", "subprocess")


def of_folder(*folders):
    return [path for path in PACKAGE if str(path).startswith(folders)]


def imports_of(*prefixes):
    """Finds imports of these modules or of anything in them."""

    def find(tree):
        return (
            (name, line)
            for name, line in imports(tree)
            if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
        )

    return find


def test_the_pure_packages_do_no_io_and_know_no_clock():
    """What spec, proto and scheduler answer depends on their arguments alone."""
    assert offences(of_folder(*PURE), imports_of(*IMPURE)) == []


def test_controller_and_agent_do_not_know_each_other():
    """They share messages (proto) and links (transport), so either can be replaced."""
    controller = offences(of_folder("swarmctl/controller/"), imports_of("swarmctl.agent"))
    agent = offences(of_folder("swarmctl/agent/"), imports_of("swarmctl.controller"))
    assert controller + agent == []


def test_only_the_command_line_knows_the_command_line():
    """Nothing below depends on click's commands."""
    below = [path for path in PACKAGE if not str(path).startswith(("swarmctl/cli/", "swarmctl/__"))]
    assert offences(below, imports_of("swarmctl.cli", "click")) == []


def test_the_product_does_not_need_the_lab():
    """lab/ and bench/ serve people who work on swarmctl; the product works without them."""
    assert offences(PACKAGE, imports_of("lab", "bench", "tests")) == []


def test_the_lab_needs_no_packages():
    """It runs before the virtual environment is made."""
    lab = [path for path in MODULES if path.parts[0] == "lab"]
    assert offences(lab, imports_of("swarmctl", "trio", "attrs", "click", "docker", "rich")) == []


# --- sizes ----------------------------------------------------------------------------------------


def check_ratchet(sizes, limit, known):
    """Nothing new above the limit, nothing known that grew, and no entry that is not needed."""
    over = {name: size for name, size in sizes.items() if size > limit}
    grown = {name: size for name, size in over.items() if size > known.get(name, limit)}
    assert grown == {}, f"longer than {limit} lines: {grown}"
    assert set(known) - set(over) == set(), "short enough now: take the entry out"


def test_modules_stay_short():
    """A module is one subject."""
    sizes = {
        str(path): len((ROOT / path).read_text().splitlines())
        for path in MODULES
        if path.parts[0] != "tests"
    }
    check_ratchet(sizes, MODULE_MAX_LINES, MODULES_TOO_LONG)


def test_functions_stay_short():
    """A function is one job."""
    sizes = {}
    for path in MODULES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                name = f"{path}:{node.name}"
                sizes[name] = max(length, sizes.get(name, 0))
    check_ratchet(sizes, FUNCTION_MAX_LINES, FUNCTIONS_TOO_LONG)


# --- what names the world outside -----------------------------------------------------------------

# Parts of names that belong to one machine or one network.
LOCAL = re.compile(
    r"(?<![\w.])/(?:work|root/\.|Users/\w+)/"
    r"|\b(?:[\w-]+\.)*(?:artifactory|jfrog|pkg\.dev|nexus)\b|--(?:extra-)?index-url"
)


def test_no_file_names_one_machine_or_a_package_index():
    """A clone works anywhere: pip and apt are configured by the machine, not by us."""
    found = []
    for path in FILES:
        if path == Path("tests/test_tidy.py"):
            continue
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path}:{number} {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if LOCAL.search(line) and "--no-emit-" not in line
        ]
    assert found == []


def test_every_dependency_is_locked_with_its_hash():
    """What CI installs is what was chosen: one version each, checked by hash."""
    lock = (ROOT / "requirements.lock").read_text()
    names = re.findall(r"^([\w.-]+)==\S+ \\\n    --hash=sha256:", lock, flags=re.MULTILINE)
    pinned = re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE)
    assert names == pinned
    assert {"trio", "pyzmq", "libvirt-python", "setuptools", "pip"} <= set(names)
