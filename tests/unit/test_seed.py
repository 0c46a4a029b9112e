"""The NoCloud seed: what goes into it, and what is refused."""

import io

import pytest
import yaml
from attrs import evolve

from swarmctl.agent.drivers.libvirt import seed
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import CloudInit

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFh3 someone@example"


def contents(**spec) -> seed.Seed:
    return seed.contents(CloudInit(**spec), instance_id="i-7-42", hostname="db-2")


def test_meta_data_names_the_instance_and_its_host():
    """The instance id is given; the host name is the instance's when the spec has none."""
    meta = yaml.safe_load(contents().meta_data)

    assert meta == {"instance-id": "i-7-42", "local-hostname": "db-2"}


def test_host_name_and_keys_travel_with_every_kind_of_user_data():
    """Neither is dropped, and the user's text arrives as it was."""
    for user_data in ("", "#!/bin/sh\necho hi\n", "#cloud-config\npackages: [vim]\n"):
        made = contents(user_data=user_data, hostname="mail", ssh_authorized_keys=(KEY,))
        meta = yaml.safe_load(made.meta_data)

        assert meta["local-hostname"] == "mail"
        assert meta["public-keys"] == [KEY]
        assert made.user_data == (user_data or "#cloud-config\n{}\n")


@pytest.mark.parametrize(
    "user_data",
    [
        "#!/usr/bin/python3\n",
        "#include\nhttp://x\n",
        "#cloud-boothook\n",
        "#cloud-config-archive\n- {type: text/x-shellscript}\n",
        "## template: jinja\n#cloud-config\nx: {{ v1.region }}\n",
        "Content-Type: multipart/mixed; boundary=x\n",
        "#cloud-config\n",
        "#cloud-config\n{}",
    ],
)
def test_kinds_that_cloud_init_takes(user_data):
    """All its headers are let through untouched."""
    assert contents(user_data=user_data).user_data == user_data


@pytest.mark.parametrize(
    ("spec", "words", "where"),
    [
        ({"user_data": "packages: [vim]\n"}, "would ignore", "user_data"),
        ({"user_data": "#cloud-config\na: [1\n"}, "not valid YAML", "user_data line"),
        ({"user_data": "#cloud-config\n- a\n"}, "mapping", "user_data"),
        ({"user_data": "#cloud-config\nhostname: a\n", "hostname": "b"}, "'b' here", "hostname"),
        (
            {"user_data": "#cloud-config\nusers: [{name: me}]\n", "ssh_authorized_keys": (KEY,)},
            "default user",
            "ssh_authorized_keys",
        ),
        ({"user_data": "#!" + "x" * seed.USER_DATA_MAX_BYTES}, "larger", "user_data"),
    ],
)
def test_what_would_be_lost_is_refused(spec, words, where):
    """What cloud-init would ignore or prefer silently is an error that names the field."""
    with pytest.raises(InvalidSpec) as raised:
        contents(**spec)

    assert words in raised.value.what
    assert where in raised.value.where


@pytest.mark.parametrize(
    "config",
    ["users: [default, {name: me}]", "hostname: b", "users: [{name: default}]", "users: default"],
)
def test_what_agrees_is_accepted(config):
    """The same host name twice, or a users list with the default user, loses nothing."""
    made = contents(
        user_data=f"#cloud-config\n{config}\n", hostname="b", ssh_authorized_keys=(KEY,)
    )

    assert KEY in made.meta_data


def test_image_has_the_label_and_all_files():
    """The image reads back with the label and byte-identical files."""
    pycdlib = pytest.importorskip("pycdlib", reason="the libvirt extra is not installed")
    made = contents(user_data="#!/bin/sh\necho grüße\n", ssh_authorized_keys=(KEY,))
    made = evolve(made, guest='{"node": "pods.1"}')
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(seed.image(made)))

    def read(**path):
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, **path)
        return out.getvalue().decode()

    assert iso.pvd.volume_identifier.decode().strip() == "cidata"
    assert read(rr_path="/user-data") == made.user_data
    assert read(joliet_path="/meta-data") == made.meta_data
    assert read(joliet_path="/swarmctl.json") == read(rr_path="/swarmctl.json") == made.guest


def test_file_appears_whole_and_private(tmp_path):
    """The seed holds secrets: only its owner reads it; nothing unfinished is left."""
    pytest.importorskip("pycdlib", reason="the libvirt extra is not installed")
    path = tmp_path / "seed.iso"

    seed.write(contents(), path)
    seed.write(contents(hostname="other"), path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size >= seed.IMAGE_MIN_BYTES
    assert b"other" in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
