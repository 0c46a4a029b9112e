"""Seeds as the real cloud-init reads them.

Debian's cloud-init and what it imports are unpacked, not installed: installing it would configure
this machine at its next boot.
"""

import json
import os
import subprocess
from pathlib import Path

import pycdlib
import pytest

from swarmctl.agent.drivers.libvirt import seed
from swarmctl.spec.models import CloudInit

CACHE = Path(os.environ.get("SWARMCTL_LAB_CACHE", "/var/cache/swarmctl-lab")) / "cloud-init"
PYTHON = "/usr/bin/python3"
PACKAGES = [
    "cloud-init",
    "python3-attr",
    "python3-certifi",
    "python3-chardet",
    "python3-charset-normalizer",
    "python3-configobj",
    "python3-idna",
    "python3-jinja2",
    "python3-json-pointer",
    "python3-jsonpatch",
    "python3-jsonschema",
    "python3-markupsafe",
    "python3-netifaces",
    "python3-oauthlib",
    "python3-pyrsistent",
    "python3-requests",
    "python3-serial",
    "python3-six",
    "python3-urllib3",
    "python3-yaml",
]

# What the guest's boot does: find the data in the seed's folder, and answer these questions.
ASK = """
import json, sys
from cloudinit import helpers, sources
from cloudinit.distros import fetch
from cloudinit.sources import DataSourceNoCloud

run = sys.argv[1]
config = {"datasource": {"NoCloud": {"fs_label": None}}, "system_info": {"distro": "debian"}}
paths = helpers.Paths({"cloud_dir": run + "/lib", "run_dir": run + "/run"})
distro = fetch("debian")("debian", {}, paths)
source = DataSourceNoCloud.DataSourceNoCloud(config, distro, paths)
found = source.get_data()
print(json.dumps({
    "found": found,
    "instance_id": source.get_instance_id(),
    "hostname": str(source.get_hostname().hostname),
    "keys": source.get_public_ssh_keys(),
    "user_data": source.get_userdata_raw().decode(),
    "parts": [part.get_content_type() for part in source.get_userdata().walk()],
}))
"""


@pytest.fixture(scope="module")
def cloud_init() -> dict[str, str]:
    """The environment in which the system's Python imports cloud-init."""
    root = CACHE / "root"
    if not (root / "usr/bin/cloud-init").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *PACKAGES]
        done = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"cloud-init cannot be fetched: {done.stderr}"
        for package in sorted(CACHE.glob("*.deb"), key=lambda deb: deb.name.startswith("cloud")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    return {**os.environ, "PYTHONPATH": str(root / "usr/lib/python3/dist-packages")}


def unpack(image: bytes, folder: Path) -> None:
    """Both files of a seed, as a guest that mounted it would see them."""
    folder.mkdir(parents=True)
    path = folder.parent / "seed.iso"
    path.write_bytes(image)
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    for name in ("user-data", "meta-data"):
        with (folder / name).open("wb") as file:
            iso.get_file_from_iso_fp(file, rr_path=f"/{name}")
    iso.close()


def ask(environment: dict[str, str], folder: Path, spec: CloudInit) -> dict:
    """What cloud-init makes of the seed of ``spec``."""
    made = seed.contents(spec, instance_id="swarmctl-c1-n1-db.2-7-42", hostname="db-2")
    unpack(seed.image(made), folder / "lib" / "seed" / "nocloud")
    done = subprocess.run(
        [PYTHON, "-c", ASK, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFh3 someone@example"


@pytest.mark.parametrize(
    ("user_data", "kind"),
    [
        ("#cloud-config\npackages: [vim]\n", "text/cloud-config"),
        ("#!/bin/sh\necho hello\n", "text/x-shellscript"),
        ("", "text/cloud-config"),
    ],
)
def test_cloud_init_takes_the_seed(cloud_init, tmp_path, user_data, kind):
    """It finds the instance id, the host name, the keys and the user's text."""
    spec = CloudInit(user_data=user_data, hostname="mail", ssh_authorized_keys=(KEY,))

    answer = ask(cloud_init, tmp_path, spec)

    assert answer["found"] is True
    assert answer["instance_id"] == "swarmctl-c1-n1-db.2-7-42"
    assert answer["hostname"] == "mail"
    assert answer["keys"] == [KEY]
    assert kind in answer["parts"]
    if user_data:
        assert answer["user_data"] == user_data


def test_host_name_defaults_to_the_instances(cloud_init, tmp_path):
    """Without one in the spec the guest is called after its instance."""
    assert ask(cloud_init, tmp_path, CloudInit())["hostname"] == "db-2"


def test_its_schema_accepts_what_we_write(cloud_init, tmp_path):
    """The user-data that stands in for none is valid for cloud-init's own check."""
    config = tmp_path / "user-data"
    config.write_text(seed.contents(CloudInit(), instance_id="i", hostname="h").user_data)

    done = subprocess.run(
        [PYTHON, "-m", "cloudinit.cmd.main", "schema", "--config-file", str(config)],
        env=cloud_init,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


def test_the_image_is_found_by_its_label(tmp_path):
    """The program that cloud-init asks for devices sees the label and the file system."""
    path = tmp_path / "seed.iso"
    seed.write(seed.contents(CloudInit(), instance_id="i", hostname="h"), path)

    done = subprocess.run(
        ["blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True, timeout=30
    )

    assert {"LABEL=cidata", "TYPE=iso9660"} <= set(done.stdout.splitlines())
