# SPDX-License-Identifier: Apache-2.0
"""The bodies of messages: canonical CBOR, and nothing is taken from it that is not of the expected form.

States are the streams of vmm.state. Parsing never touches /dev/kvm.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmm.migration.errors import ProtocolError
from vmm.migration.incarnation import Incarnation
from vmm.migration.pages import KEY_SIZE, PAGE
from vmm.state.errors import StreamError, printable
from vmm.state.stream.canonical import NotCanonical, decode, encode
from vmm.state.stream.container import Limits
from vmm.state.stream.decode import read_state
from vmm.state.stream.encode import write_state
from vmm.state.validate import validate
from vmm.state.value import PayloadIdentity, VmState

__all__ = [
    "ID_SIZE",
    "MAX_MEMORY",
    "MEMORY_HEAD",
    "TOKEN_SIZE",
    "Codec",
    "Final",
    "Hello",
    "Ready",
    "Resolve",
    "Welcome",
    "pack_state",
    "unpack_state",
]

ID_SIZE, TOKEN_SIZE = 16, 32
MAX_MEMORY = 1 << 44  # page numbers on the line have 32 bits
_MAX_REGIONS, _MAX_PATIENCE = 16, 24 * 3600
_LONGEST_FACTS = 512 << 10  # vmm probe writes 20 to 50 KiB; as values they take thirty times as much
# region, codec, bytes that follow the message; then the runs
MEMORY_HEAD = struct.Struct("<IIQ")


class Codec:
    """How the pages that follow a MEMORY message are written."""

    RAW, ZSTD = 0, 1
    NAMES = ("raw", "zstd")


def _take(body: bytes, what: str, forms: Mapping[str, type]) -> dict[str, Any]:
    try:
        value = decode(body)
    except NotCanonical as error:
        raise ProtocolError(f"{what} is {error}") from error
    if type(value) is not dict or set(value) != set(forms):
        raise ProtocolError(f"{what} has not the entries {', '.join(sorted(forms))}")
    for name, form in forms.items():
        if type(value[name]) is not form:
            raise ProtocolError(f"{name} in {what} is {type(value[name]).__name__} and not {form.__name__}")
    return dict(value)


def _sized(what: str, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ProtocolError(f"{what} has {len(data)} bytes and not {size}")
    return data


@dataclass(frozen=True, slots=True)
class Hello:
    """Who comes: the migration's id, the guest's architecture, payload and memory ((address, size) of each
    region), the key of the page digests, the codec wished for, what vmm probe says about the source's host, and for
    how many seconds the source asks at most when it is in doubt."""

    identifier: bytes
    arch: str
    payload: PayloadIdentity
    regions: tuple[tuple[int, int], ...]
    key: bytes
    codec: int
    facts: Mapping[str, Any]
    patience: int

    def pack(self) -> bytes:
        """Return the body of HELLO."""
        return encode(
            {
                "id": self.identifier, "arch": self.arch, "payload": self.payload.name,
                "digest": self.payload.digest, "regions": [list(region) for region in self.regions],
                "key": self.key, "codec": self.codec, "facts": json.dumps(dict(self.facts)),
                "patience": self.patience,
            }
        )  # fmt: skip

    @classmethod
    def unpack(cls, body: bytes) -> Hello:
        """Return what a HELLO says; ProtocolError if it is malformed."""
        forms = {
            "id": bytes, "arch": str, "payload": str, "digest": bytes, "regions": list, "key": bytes,
            "codec": int, "facts": str, "patience": int,
        }  # fmt: skip
        value = _take(body, "HELLO", forms)
        if value["codec"] >= len(Codec.NAMES):
            raise ProtocolError(f"HELLO asks for codec {value['codec']}, which is not known here")
        if value["patience"] > _MAX_PATIENCE:
            raise ProtocolError(f"HELLO wants to ask for {value['patience']} s, {_MAX_PATIENCE} are allowed")
        payload = PayloadIdentity(printable(value["payload"]), _sized("the payload's digest", value["digest"], 32))
        identifier = _sized("the migration's id", value["id"], ID_SIZE)
        key = _sized("the key", value["key"], KEY_SIZE)
        regions = _regions(value["regions"])
        facts = _facts(value["facts"])
        return cls(
            identifier, printable(value["arch"]), payload, regions, key, value["codec"], facts, value["patience"]
        )


def _facts(text: str) -> Mapping[str, Any]:
    if len(text) > _LONGEST_FACTS:
        raise ProtocolError(f"the facts in HELLO have {len(text)} characters, {_LONGEST_FACTS} are allowed")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the facts in HELLO are not JSON") from error
    if type(facts) is not dict:
        raise ProtocolError("the facts in HELLO are not a JSON object")
    return facts


def _regions(rows: list[Any]) -> tuple[tuple[int, int], ...]:
    if not 1 <= len(rows) <= _MAX_REGIONS:
        raise ProtocolError(f"a guest with {len(rows)} memory regions: 1 to {_MAX_REGIONS} are taken")
    regions: list[tuple[int, int]] = []
    end = 0
    for row in rows:
        if type(row) is not list or [type(number) for number in row] != [int, int]:
            raise ProtocolError("a memory region is not an address and a size")
        gpa, size = row
        if gpa % PAGE or size % PAGE or not size or gpa < end or gpa + size > MAX_MEMORY:
            raise ProtocolError(f"a memory region of {size:#x} bytes at {gpa:#x} overlaps or is not in pages")
        end = gpa + size
        regions.append((gpa, size))
    return tuple(regions)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The codec to use, for how many seconds the source may ask when it is in doubt, and who answers: the guest's
    process, and its keeper, who knows what became of it."""

    codec: int
    patience: int
    process: Incarnation
    keeper: Incarnation

    def pack(self) -> bytes:
        """Return the body of WELCOME."""
        return encode(
            {
                "codec": self.codec, "patience": self.patience,
                "process": self.process.text, "keeper": self.keeper.text,
            }
        )  # fmt: skip

    @classmethod
    def unpack(cls, body: bytes) -> Welcome:
        """Return what a WELCOME says; ProtocolError if it is malformed."""
        value = _take(body, "WELCOME", {"codec": int, "patience": int, "process": str, "keeper": str})
        if value["codec"] >= len(Codec.NAMES):
            raise ProtocolError(f"WELCOME chooses codec {value['codec']}, which is not known here")
        process, keeper = Incarnation(value["process"]), Incarnation(value["keeper"])
        return cls(value["codec"], value["patience"], process, keeper)


@dataclass(frozen=True, slots=True)
class Final:
    """The state of the stopped guest, as a stream, and the digests of each region's memory."""

    state: bytes
    digests: tuple[tuple[bytes, ...], ...]

    def pack(self) -> bytes:
        """Return the body of FINAL."""
        return encode({"state": self.state, "digests": [b"".join(digests) for digests in self.digests]})

    @classmethod
    def unpack(cls, body: bytes) -> Final:
        """Return what a FINAL says; ProtocolError if it is malformed."""
        value = _take(body, "FINAL", {"state": bytes, "digests": list})
        digests = []
        for joined in value["digests"]:
            if type(joined) is not bytes or len(joined) % 32:
                raise ProtocolError("the digests in FINAL are not SHA-256")
            digests.append(tuple(joined[at : at + 32] for at in range(0, len(joined), 32)))
        return cls(value["state"], tuple(digests))


@dataclass(frozen=True, slots=True)
class Ready:
    """The secret that HANDOVER and RESOLVE have to name, and the state that the receiver captured again."""

    token: bytes
    state: bytes

    def pack(self) -> bytes:
        """Return the body of READY."""
        return encode({"token": self.token, "state": self.state})

    @classmethod
    def unpack(cls, body: bytes) -> Ready:
        """Return what a READY says; ProtocolError if it is malformed."""
        value = _take(body, "READY", {"token": bytes, "state": bytes})
        return cls(_sized("the token", value["token"], TOKEN_SIZE), value["state"])


@dataclass(frozen=True, slots=True)
class Resolve:
    """Which migration a new line is about."""

    identifier: bytes
    token: bytes

    def pack(self) -> bytes:
        """Return the body of RESOLVE."""
        return self.identifier + self.token

    @classmethod
    def unpack(cls, body: bytes) -> Resolve:
        """Return what a RESOLVE says; ProtocolError if it is malformed."""
        _sized("RESOLVE", body, ID_SIZE + TOKEN_SIZE)
        return cls(body[:ID_SIZE], body[ID_SIZE:])


def pack_state(state: VmState) -> bytes:
    """Return a state without memory as a stream."""
    file = io.BytesIO()
    write_state(file, state)
    return file.getvalue()


def unpack_state(data: bytes, what: str) -> VmState:
    """Return a state from a stranger, checked in user space; ProtocolError if it is none or brings memory."""
    try:
        state = read_state(io.BytesIO(data), limits=Limits(memory=MAX_MEMORY))
        validate(state)
    except StreamError as error:
        raise ProtocolError(f"the state in {what}: {error}") from error
    if any(region.extents for region in state.memory):
        raise ProtocolError(f"the state in {what} brings memory, which has messages of its own")
    return state
