"""Whom we believe at ``ssl:``, and who we are there: with files, as OVN's own tools take them.

OVN's servers and clients show each other a certificate of one private authority, mostly made by
``ovs-pki``, and ask of the other's only that it is of that authority: names of hosts are not
compared.  With such files we do the same.  Without them, as with any other server in the world: the
system's authorities are believed, and the certificate has to be for the host of the address.
"""

import ssl
from pathlib import Path

from attrs import frozen

from swarmctl.proto.errors import InvalidSpec


@frozen
class Credentials:
    """Files of PEM: our key, our certificate, and the authority that the server's has to be of."""

    private_key: Path
    certificate: Path
    authority: Path


def tls_context(credentials: Credentials | None) -> ssl.SSLContext:
    """What a connection begins with; the files are read now, so a renewed one counts.

    Raises:
        InvalidSpec: one of the files cannot be used.
    """
    if credentials is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_verify_locations(credentials.authority)
    except OSError as error:
        raise _unusable("an authority's certificate", credentials.authority, error) from error
    own = f"a certificate and its key {credentials.private_key}"
    try:
        # With a word for the key nobody is asked for one at the terminal.
        context.load_cert_chain(credentials.certificate, credentials.private_key, password="")
    except OSError as error:
        raise _unusable(own, credentials.certificate, error) from error
    return context


def _unusable(what: str, file: Path, error: OSError) -> InvalidSpec:
    why = getattr(error, "reason", None) or error.strerror or str(error)
    hint = "PEM files, the key without a passphrase, that this process may read"
    return InvalidSpec(f"it cannot be used as {what}: {why}", str(file), hint)
