# SPDX-License-Identifier: Apache-2.0
"""Who a certificate is for, and whether an operator's list names it.

A NAME on the list that has ``=`` in it is a distinguished name, as `openssl x509 -noout -subject -nameopt
RFC2253,-esc_msb -in CERT.pem` prints it (``CN=host-a,O=Example``): all of it has to be the certificate's subject, as
with QEMU's tls-authz. Any other NAME has to be the subject's common name, or a DNS name among its alternative names,
for which capital letters do not count. Nothing is a pattern: ``*`` is only a character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vmm.state.errors import printable

__all__ = ["named", "subject"]

# What RFC 4514 and openssl call the attributes that the ssl module spells out.
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "userId": "UID",
}
# RFC 4514, 2.4: what means something in a name, spaces at the ends, a # at the beginning.
_ESCAPED = re.compile(r'[,+"\\<>;]|^[ #]| $')


def subject(certificate: Mapping[str, Any]) -> str:
    """Return the distinguished name of a certificate, as SSLSocket.getpeercert gives it: the most specific first."""
    parts = [
        "+".join(f"{_SHORT.get(kind, kind)}={_ESCAPED.sub(_escape, value)}" for kind, value in part)
        for part in reversed(certificate.get("subject", ()))
    ]
    return printable(",".join(parts))


def _escape(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def named(certificate: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Is the certificate for somebody on the list?"""
    common = {value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"}
    hosts = {value.lower() for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
    for name in names:
        if name == subject(certificate) if "=" in name else name in common or name.lower() in hosts:
            return True
    return False
