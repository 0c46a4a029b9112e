"""Run first in the one-file binary: gives the programs that it starts the system's environment.

The binary unpacks itself into a folder of its own and puts that first where libraries are looked
for. A program of the system (qemu-img, QEMU) must not find its libraries there; and another
swarmctl that this one starts must unpack itself, since our folder goes when we end.
"""

import os

_before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if _before is None:
    os.environ.pop("LD_LIBRARY_PATH", None)
else:
    os.environ["LD_LIBRARY_PATH"] = _before
os.environ["PYINSTALLER_RESET_ENVIRONMENT"] = "1"
