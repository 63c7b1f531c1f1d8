# SPDX-License-Identifier: Apache-2.0
"""TLS for a line: both sides show a certificate and both check the other's. Mutual authentication is mandatory.

A module of its own, imported where TLS is asked for: a Python may have been built without it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from vmm.migration.certificate import named, subject
from vmm.migration.errors import LineLost, MigrationError
from vmm.migration.line import Buffer, Line, shut, tune, wait
from vmm.migration.wire import Channel, Kind

__all__ = ["Tls", "TlsLine"]


class TlsLine(Line):
    """A socket with TLS over it."""

    def __init__(self, secured: ssl.SSLSocket, name: str, timeout: float) -> None:
        super().__init__(name, timeout)
        self._socket = secured
        secured.settimeout(timeout)
        # Of the other side; {} for none, which cannot be here.
        self.certificate: Mapping[str, Any] = secured.getpeercert() or {}
        tune(secured, timeout)

    def send(self, *buffers: Buffer) -> None:
        try:
            for buffer in buffers:
                self._socket.sendall(buffer)
        except TimeoutError:
            self._silent()
        except OSError as error:
            self._broken(error)

    def receive_into(self, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                got = self._socket.recv_into(view[done:])
                if not got:
                    self._ended()
                done += got
        except TimeoutError:
            self._silent()
        except OSError as error:
            self._broken(error)

    def readable(self, timeout: float) -> bool:
        return bool(self._socket.pending()) or wait(self._socket.fileno(), select.POLLIN, timeout)

    def fileno(self) -> int:
        return self._socket.fileno()

    def cut(self) -> None:
        shut(self._socket)

    def close(self) -> None:
        self._socket.close()

    def _broken(self, error: OSError) -> NoReturn:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            self._ended()
        if isinstance(error, ssl.SSLError):
            alert = "ALERT" in str(error.reason)  # TLS 1.3 tells a client at its first read
            hint = ": this side's certificate is not trusted there" if alert else ""
            raise LineLost(f"TLS with {self.name} failed ({error.reason or error}){hint}") from error
        super()._broken(error)


@dataclass(frozen=True, slots=True)
class Tls:
    """This side's certificate and key, and the authorities it trusts: files in PEM.

    ``name`` is what a server's certificate has to be for, where it is not the host of the address; ``allow`` are the
    names of which a client's has to have one (vmm.migration.certificate), where there are any.
    """

    certificate: str
    key: str
    authorities: str
    name: str | None = None
    allow: tuple[str, ...] = ()

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return the context of one side; MigrationError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise MigrationError(
                f"the certificate {self.certificate} with key {self.key} cannot be used ({_why(error)}): "
                "both are PEM files that belong together, the key without a password"
            ) from error
        try:
            context.load_verify_locations(self.authorities)
        except OSError as error:
            raise MigrationError(
                f"the authorities in {self.authorities} cannot be used ({_why(error)}): it has to be a PEM file"
            ) from error
        return context

    def connect(self, raw: socket.socket, host: str | None, name: str, timeout: float) -> TlsLine:
        """Do the client's side of the handshake; MigrationError if one side does not trust the other."""
        expected = self.name or host
        if not expected:
            raise MigrationError(f"{name} has no host name to check its certificate against: give --tls-name")
        return self._handshake(raw, self.context(server=False), expected, name, timeout)

    def accept(self, raw: socket.socket, name: str, timeout: float) -> TlsLine:
        """Do the server's side of the handshake; MigrationError if one side does not trust the other.

        A client that is none of those allowed is told so, and is a MigrationError as well.
        """
        line = self._handshake(raw, self.context(server=True), None, name, timeout)
        if self.allow and not named(line.certificate, self.allow):
            who = subject(line.certificate) or "nobody"
            with contextlib.suppress(MigrationError):
                _turn_away(line, who)
            line.close()
            raise MigrationError(f"{name} was refused: its certificate is for {who}, which no --tls-allow names")
        return line

    def _handshake(
        self, raw: socket.socket, context: ssl.SSLContext, expected: str | None, name: str, timeout: float
    ) -> TlsLine:
        raw.settimeout(timeout)
        try:
            secured = context.wrap_socket(raw, server_side=expected is None, server_hostname=expected)
        except ssl.SSLCertVerificationError as error:
            raise MigrationError(
                f"the certificate of {name} is not trusted ({error.verify_message}): "
                f"it has to be signed by one of the authorities in {self.authorities}"
                + (f" and be for {expected}" if expected else "")
            ) from error
        except ssl.SSLError as error:
            raise MigrationError(
                f"TLS with {name} failed ({_why(error)}): both sides need --tls-cert, --tls-key and --tls-ca, "
                "and each has to trust the other's authority"
            ) from error
        except TimeoutError as error:
            raise MigrationError(f"{name} did not answer the TLS handshake in {timeout:g} s") from error
        except OSError as error:
            raise MigrationError(f"the line to {name} broke in the TLS handshake: {error.strerror}") from error
        return TlsLine(secured, name, timeout)


def _turn_away(line: Line, who: str) -> None:
    """Tell somebody who is not allowed, when he has said what he wants: before that he does not listen."""
    channel = Channel(line)
    channel.open()
    channel.receive(Kind.HELLO, Kind.RESOLVE)
    channel.abort(f"it takes no guests from {who}: none of its --tls-allow names this certificate")


def _no_password() -> str:
    raise ValueError("the key has a password")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    return str(getattr(error, "strerror", None) or error)
