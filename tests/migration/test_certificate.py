# SPDX-License-Identifier: Apache-2.0
"""Who may send: the names in a certificate, and what both sides hear if none of them is on the list."""

from __future__ import annotations

import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.migration.test_lines import _listening
from tests.migration.test_migration import Pair
from tests.migration.test_tls import Authority, _handshake, authority, stranger  # noqa: F401  (fixtures)
from tests.patience import LIMIT
from vmm.arch import module
from vmm.migration.certificate import named, subject
from vmm.migration.line import Line
from vmm.migration.resolve import NEVER_RAN

_CERTIFICATE: dict[str, Any] = {
    "subject": ((("countryName", "DE"),), (("organizationName", "Ex, Ltd"),), (("commonName", "Host-A"),)),
    "subjectAltName": (("DNS", "a.example.org"), ("IP Address", "192.0.2.1"), ("DNS", "*.example.com")),
}


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("Host-A", True),
        ("a.example.org", True),
        ("A.Example.ORG", True),
        (r"CN=Host-A,O=Ex\, Ltd,C=DE", True),
        ("*.example.com", True),
        ("host-a", False),
        ("b.example.com", False),
        ("example.org", False),
        ("*", False),
        ("192.0.2.1", False),
        ("CN=Host-A", False),
        ("CN=Host-A,O=Ex, Ltd,C=DE", False),
        ("C=DE,O=Ex\\, Ltd,CN=Host-A", False),
        (r"cn=Host-A,O=Ex\, Ltd,C=DE", False),
        ("", False),
    ],
)
def test_a_name_is_the_whole_subject_or_a_whole_name_in_the_certificate(name: str, allowed: bool) -> None:
    assert named(_CERTIFICATE, [name]) is allowed
    assert named(_CERTIFICATE, ["somebody else", name]) is allowed


def test_a_certificate_without_names_is_nobodys() -> None:
    assert not named({}, ["", "=", "CN=", "None"])
    assert subject({}) == ""


def test_a_common_name_does_not_pass_for_a_subject() -> None:
    certificate = {"subject": ((("commonName", "CN=a,O=b"),),)}
    assert not named(certificate, ["CN=a,O=b"])
    assert named(certificate, [r"CN=CN=a\,O=b"])


@pytest.mark.parametrize(
    "name",
    ["/C=DE/O=Example, Inc/CN=a", "/DC=org/DC=example/UID=7/CN=# b ", '/O=a+b/OU=c;d/CN=<e>\\\\"f', "/ST=x/L=y/CN=ü"],
)
def test_a_subject_is_spelled_as_openssl_spells_it(authority: Authority, name: str) -> None:  # noqa: F811
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "spelled.key")
    authority._run("req", "-x509", *key, "-days", "2", "-utf8", "-subj", name, "-out", "spelled.pem")
    path = authority.folder / "spelled.pem"
    printed = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253,-esc_msb", "-in", str(path)],
        capture_output=True, text=True, check=True, timeout=LIMIT,
    ).stdout.removeprefix("subject=").removesuffix("\n")  # fmt: skip
    context = ssl.create_default_context(cafile=str(path))
    (certificate,) = context.get_ca_certs()
    assert subject(certificate) == printed
    assert named(certificate, [printed])


def test_one_of_the_names_lets_a_peer_in(authority: Authority) -> None:  # noqa: F811
    server = authority.tls("server", authority)
    for allow in (("other", "client"), ("CN=client",)):
        with _listening("127.0.0.1:0", replace(server, allow=allow)) as listener:
            ours, theirs = _handshake(listener, authority.tls("client", authority))
            assert isinstance(ours, Line) and isinstance(theirs, Line)


@pytest.mark.kvm
def test_a_peer_that_is_not_on_the_list_is_told_so_on_both_sides(authority: Authority, tmp_path: Path) -> None:  # noqa: F811
    server = replace(authority.tls("server", authority), allow=("CN=clients", "server"))
    pair = Pair(tls=(server, authority.tls("client", authority)), reached=False).run(tmp_path)
    assert (pair.report["outcome"], pair.there, pair.status) == ("kept", None, NEVER_RAN)
    assert pair.here == bytes(module("chain").reference("sse", 30000, 7)).hex()
    refusal = (
        "the receiver gave up: it takes no guests from CN=client: none of its --tls-allow names this certificate"
    )
    assert pair.report["reason"] == refusal
    assert len(pair.said) == 1
    assert pair.said[0].endswith("was refused: its certificate is for CN=client, which no --tls-allow names")


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--tls-allow", "host"], "TLS needs --tls-cert, --tls-key and --tls-ca"),
        (["--tls-allow", "host", "--tls-cert", "x"], "TLS needs --tls-cert, --tls-key and --tls-ca"),
        (["--tls-allow", "", "--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"], "names nobody"),
    ],
)
def test_a_list_without_tls_or_without_a_name_is_wrong_usage(more: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "vmm", "receive", "127.0.0.1:0", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
