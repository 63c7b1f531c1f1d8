# SPDX-License-Identifier: Apache-2.0
"""TLS: both sides show a certificate and check the other's; mutual authentication is mandatory."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.migration.test_lines import _accepted, _exchange, _listening
from tests.patience import LIMIT
from vmm.migration.errors import LineLost, MigrationError
from vmm.migration.line import Line
from vmm.migration.tls import Tls
from vmm.migration.transport import Connector, Listener, parse


class Authority:
    """A certificate authority in a folder, by openssl(1)."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.certificate = folder / f"{name}.pem"
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                  "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip

    def tls(self, who: str, trusts: Authority, *, name: str | None = None) -> Tls:
        """Return what ``who`` needs, with a certificate of this authority, to talk to those of another."""
        stem = f"{self.name}-{who}"
        extensions = self.folder / f"{stem}.ext"
        extensions.write_text(f"subjectAltName=DNS:{who},IP:127.0.0.1\n" if who != "nobody" else "")
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={who}",
                  "-keyout", f"{stem}.key", "-out", f"{stem}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{stem}.csr", "-CA", f"{self.name}.pem", "-CAkey", f"{self.name}.key",
                  "-CAcreateserial", "-days", "2", "-extfile", extensions.name, "-out", f"{stem}.pem")  # fmt: skip
        paths = (str(self.folder / f"{stem}.pem"), str(self.folder / f"{stem}.key"), str(trusts.certificate))
        return Tls(*paths, name)

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make certificates with")
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def stranger(authority: Authority) -> Authority:
    return Authority(authority.folder, "strangers")


def _handshake(
    listener: Listener, client: Tls | None, timeout: float = LIMIT
) -> tuple[Line | Exception, Line | Exception]:
    """Return what each side gets: a line that works, or an error."""
    results: list[Line | Exception] = []

    def accept() -> None:
        try:
            line = _accepted(listener)
            data = bytearray(2)
            line.receive_into(memoryview(data))
            line.send(data)
            results.append(line)
        except MigrationError as error:
            results.append(error)

    server = threading.Thread(target=accept)
    server.start()
    try:
        line = Connector(parse(listener.text), timeout, client).connect()
        line.send(b"hi")
        line.receive_into(memoryview(bytearray(2)))
        ours: Line | Exception = line
    except MigrationError as error:
        ours = error
    server.join()
    return ours, results[0]


def test_tls_carries_data_over_tcp_and_unix_sockets(authority: Authority, tmp_path: Path) -> None:
    with _listening("127.0.0.1:0", authority.tls("server", authority)) as listener:
        ours, theirs = _handshake(listener, authority.tls("client", authority))
        assert isinstance(ours, Line) and isinstance(theirs, Line)
        _exchange(ours, theirs)
        theirs.close()
        with pytest.raises(LineLost, match="closed the line"):
            ours.receive_into(memoryview(bytearray(1)))
        ours.close()
    named = authority.tls("client", authority, name="server")
    with _listening(f"unix:{tmp_path}/line", authority.tls("server", authority)) as listener:
        ours, theirs = _handshake(listener, named)
        assert isinstance(ours, Line) and isinstance(theirs, Line)


def test_a_stranger_is_not_let_in_by_tls(authority: Authority, stranger: Authority) -> None:
    with _listening("127.0.0.1:0", authority.tls("server", authority)) as listener:
        # TLS 1.3 tells the client that it is not wanted when it first reads.
        ours, theirs = _handshake(listener, stranger.tls("client", authority))
        assert any(words in str(ours) for words in ("is not trusted there", "closed the line", "broke")), str(ours)
        assert "is not trusted (" in str(theirs)
    # Who says less than a TLS record's head is waited for.
    with _listening("127.0.0.1:0", authority.tls("server", authority), 1.0) as listener:
        ours, theirs = _handshake(listener, None)
        assert isinstance(ours, MigrationError)
        assert "TLS handshake" in str(theirs)


def test_a_server_of_another_authority_or_name_is_not_trusted(authority: Authority, stranger: Authority) -> None:
    with _listening("127.0.0.1:0", stranger.tls("server", authority)) as listener:
        ours, _ = _handshake(listener, authority.tls("client", authority))
        assert "is not trusted" in str(ours) and "signed by one of the authorities" in str(ours)
    with _listening("127.0.0.1:0", authority.tls("nobody", authority)) as listener:
        ours, _ = _handshake(listener, authority.tls("client", authority))
        assert "is not trusted" in str(ours) and "be for 127.0.0.1" in str(ours)


def test_a_server_without_tls_is_not_talked_to_in_the_clear(authority: Authority) -> None:
    with _listening("127.0.0.1:0", timeout=1.0) as listener:
        ours, _ = _handshake(listener, authority.tls("client", authority), timeout=1.0)
        assert isinstance(ours, MigrationError)


def test_files_that_are_not_certificates_are_refused(authority: Authority, tmp_path: Path) -> None:
    good = authority.tls("server", authority)
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    with pytest.raises(MigrationError, match=r"the certificate .*junk with key .* cannot be used"):
        Listener(parse("127.0.0.1:0"), 1.0, Tls(str(junk), good.key, good.authorities))
    with pytest.raises(MigrationError, match="No such file"):
        Listener(parse("127.0.0.1:0"), 1.0, Tls(good.certificate, "/none", good.authorities))
    with pytest.raises(MigrationError, match=r"the authorities in .*junk cannot be used"):
        Listener(parse("127.0.0.1:0"), 1.0, Tls(good.certificate, good.key, str(junk)))
    with pytest.raises(MigrationError, match="TLS needs TCP or a Unix socket"):
        Connector(parse("exec:true"), 1.0, good)


def test_tls_over_a_unix_socket_needs_a_name_to_check(authority: Authority, tmp_path: Path) -> None:
    tls = authority.tls("server", authority)
    with _listening(f"unix:{tmp_path}/line", tls) as listener, pytest.raises(MigrationError, match="give --tls-name"):
        Connector(parse(listener.text), LIMIT, tls).connect()
