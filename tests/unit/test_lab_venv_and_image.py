"""The pure parts of the lab's virtual environment, image and demo."""

import io
import json
import os
import tarfile

import pytest

from lab import bootstrap, image, venv
from lab.demo.cluster import Demo, cluster_id_in, config_folder

LOCK = """attrs==26.1.0 \\
    --hash=sha256:aa
    # via swarmctl
libvirt-python==12.8.0 \\
    --hash=sha256:bb \\
    --hash=sha256:cc
    # via swarmctl
msgpack==1.2.4 \\
    --hash=sha256:dd
"""


def test_a_package_is_left_out_of_the_lock_with_all_its_lines():
    """Where libvirt's headers are missing, the rest is installed all the same."""
    left = venv.without_package(LOCK, "libvirt-python")

    assert left == LOCK.replace(LOCK[LOCK.index("libvirt") : LOCK.index("msgpack")], "")
    assert venv.without_package(left, "libvirt-python") == left


def test_an_environment_is_remade_when_what_it_was_made_from_changes(tmp_path):
    """The stamp covers the lock file and whether libvirt's binding is in it."""
    assert venv.recipe(with_libvirt=True) != venv.recipe(with_libvirt=False)
    assert not venv.is_made(tmp_path, "this")
    (tmp_path / "recipe").write_text("this")
    assert not venv.is_made(tmp_path, "this"), "there is no Python in it"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    assert venv.is_made(tmp_path, "this")
    assert not venv.is_made(tmp_path, "that")


def test_an_image_is_built_from_two_files():
    """The same files make the same bytes, so that Docker's cache knows them."""
    made = image.context(b"FROM x", b"\x7fELF")

    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        modes = {one.name: one.mode for one in archive.getmembers()}
    assert modes == {"Dockerfile": 0o644, "dist/swarmctl": 0o755}
    assert made == image.context(b"FROM x", b"\x7fELF")


def test_a_base_is_known_by_its_recipe():
    """Another release of Debian is another base."""
    made_of = image.MMDEBSTRAP_OPTIONS
    assert bootstrap.recipe("bookworm", made_of) != bootstrap.recipe("trixie", made_of)
    assert bootstrap.recipe("bookworm", made_of) != bootstrap.recipe("bookworm", made_of[1:])


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "null", '{"cluster": 1}'])
def test_a_context_that_makes_no_sense_is_no_cluster(tmp_path, content):
    """Taking down goes on with what it can find."""
    file = tmp_path / "admin.context"
    if content is not None:
        file.write_text(content)
    assert cluster_id_in(file) is None


def test_the_demo_s_context_is_kept_where_swarmctl_keeps_it(tmp_path):
    """The lab cannot import swarmctl's rule, so it repeats it."""
    from swarmctl.cli import clusters

    for variables in (
        {"SWARMCTL_CONFIG": "/a"},
        {"XDG_CONFIG_HOME": "/b"},
        {"HOME": str(tmp_path)},
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("SWARMCTL_CONFIG", "XDG_CONFIG_HOME"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert config_folder(os.environ) == clusters.config_folder()


def test_a_reused_pid_is_not_a_process_of_the_demo(tmp_path):
    """A lock file may outlive its process; the pid in it may be somebody else's by now."""
    demo = Demo(tmp_path, "tcp://127.0.0.1:1", "")
    (tmp_path / "lock").write_text(f"{os.getpid()} dev\n")
    (tmp_path / "controller").mkdir()
    (tmp_path / "controller/lock").write_text(json.dumps("nonsense"))
    assert list(demo.processes()) == []
