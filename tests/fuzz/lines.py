# SPDX-License-Identifier: Apache-2.0
"""The target ``wire``: all that a peer says on a line, as `vmm receive` reads it and as `vmm send` does.

Both sides are played without a KVM: what comes in is checked and unpacked, the guest's memory is plain memory.
"""

from __future__ import annotations

import hashlib
import mmap
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import cbor2
import zstandard

from tests.data import probes
from tests.fuzz import streams
from tests.fuzz.trees import Leaf, changed
from tests.state.state_samples import PAYLOAD, arm64_state, x86_state
from vmm._kvm import ffi
from vmm.cli.lines import blockers
from vmm.migration.errors import MigrationError
from vmm.migration.incarnation import Incarnation, Witness
from vmm.migration.line import SocketLine
from vmm.migration.messages import (
    MEMORY_HEAD,
    Codec,
    Final,
    Hello,
    Ready,
    Resolve,
    Welcome,
    pack_state,
    unpack_state,
)
from vmm.migration.pages import PAGE, Key, PageTable
from vmm.migration.precopy import MemoryReceiver
from vmm.migration.wire import MAGIC, Channel, Kind
from vmm.state.compare import differences
from vmm.state.value import MemoryState, VmState

__all__ = ["change", "hello_with", "read", "seeds"]

_PREAMBLE = struct.pack("<8sHH4x", MAGIC, 1, 1)
_HEAD = struct.Struct("<IHHQ")
_DIGEST = 32
_LARGEST = 1 << 20  # the guest whose memory is really there
_TOKEN = bytes(range(32))

# A message: its kind, its body, and the pages that follow it.
_Said = tuple[int, bytes, bytes]


# --- what is said ---------------------------------------------------------------------------------


def _without_memory(state: VmState) -> VmState:
    return VmState(state.arch, state.vcpus, (MemoryState(0, 16 * PAGE),), state.machine, PAYLOAD, state.about)


def _memory(codec: int) -> tuple[list[_Said], tuple[bytes, ...]]:
    """Some pages on their way, and the digests of the memory that they make."""
    area = mmap.mmap(-1, 16 * PAGE)
    area[PAGE : 3 * PAGE] = b"what a guest may hold " * 372 + bytes(8)
    table = PageTable(memoryview(area), Key(bytes(32)))
    said: list[_Said] = []
    for chunk in table.chunks(ffi.new("uint64_t[]", [0xFFFF]), 1, 0, 16, 256):
        data = table.pack()
        if codec == Codec.ZSTD:
            data = zstandard.ZstdCompressor(level=1).compress(data)
        said.append((Kind.MEMORY, MEMORY_HEAD.pack(0, codec, len(data)) + chunk.runs, data))
    return said, tuple(table.digest())


def _source(state: VmState, codec: int, facts: str) -> list[_Said]:
    hello = Hello(
        bytes(16), state.arch, PAYLOAD, ((0, 16 * PAGE),), bytes(32), codec, probes.document(facts), 60
    )  # fmt: skip
    memory, digests = _memory(codec)
    bare = pack_state(_without_memory(state))
    return [
        (Kind.HELLO, hello.pack(), b""), (Kind.CONFIG, bare, b""), *memory, (Kind.ROUND, b"", b""),
        (Kind.FINAL, Final(bare, (digests,)).pack(), b""), (Kind.HANDOVER, _TOKEN, b""), (Kind.SETTLED, _TOKEN, b""),
    ]  # fmt: skip


def _receiver(state: VmState, last: Kind) -> list[_Said]:
    welcome = Welcome(Codec.ZSTD, 60, Incarnation("a b 1 2"), Incarnation("a b 3 4"))
    ready = Ready(_TOKEN, pack_state(_without_memory(state)))
    return [
        (Kind.WELCOME, welcome.pack(), b""), (Kind.PREPARED, b"", b""), (Kind.ROUND_DONE, b"", b""),
        (Kind.READY, ready.pack(), b""), (last, b"", b""),
    ]  # fmt: skip


def seeds() -> Iterator[bytes]:
    """Yield both sides of whole migrations, and questions about one."""
    tiles, plain, sve = x86_state(), x86_state(tiles=False), arm64_state(1, 2)
    yield _sealed(_source(plain, Codec.RAW, "svm-7.2"))
    yield _sealed(_source(tiles, Codec.ZSTD, "amx-7.2"))
    yield _sealed(_source(sve, Codec.RAW, "sve-6.1"))
    yield _sealed(_receiver(plain, Kind.RUNNING))
    yield _sealed(_receiver(sve, Kind.DISCARDED))
    yield _sealed([(Kind.RESOLVE, Resolve(bytes(16), _TOKEN).pack(), b""), (Kind.HANDOVER, _TOKEN, b"")])
    yield _sealed([(Kind.ABORT, b"no reason \x1b[2J", b"")])


def hello_with(facts: str) -> bytes:
    """Return a source's side of a migration whose HELLO has other facts."""
    said = _source(x86_state(tiles=False), Codec.RAW, "svm-7.2")
    body = cbor2.dumps({**cbor2.loads(said[0][1]), "facts": facts}, canonical=True)
    return _sealed([(Kind.HELLO, body, b""), *said[1:]])


def _sealed(said: list[_Said], *, first: int = 0) -> bytes:
    parts = [_PREAMBLE]
    for number, (kind, body, pages) in enumerate(said, first):
        head = _HEAD.pack(number, kind, 0, len(body))
        parts += [head, body, hashlib.sha256(head + body).digest(), pages]
    return b"".join(parts)


def _opened(data: bytes) -> list[_Said]:
    """Take a line apart, believing all of it."""
    said: list[_Said] = []
    position = len(_PREAMBLE)
    while position + _HEAD.size <= len(data):
        _, kind, _, length = _HEAD.unpack_from(data, position)
        body = data[position + _HEAD.size : position + _HEAD.size + length]
        position += _HEAD.size + len(body) + _DIGEST
        pages = b""
        if kind == Kind.MEMORY and len(body) >= MEMORY_HEAD.size:
            pages = data[position : position + MEMORY_HEAD.unpack_from(body)[2]]
            position += len(pages)
        said.append((kind, body, pages))
    return said


# --- who reads it ---------------------------------------------------------------------------------


def read(data: bytes) -> bool:
    """Hear it as each side; tell whether one of them heard it to its end."""
    taken = False
    for side in (_as_receiver, _as_source):
        try:
            _hear(data, side)
            taken = True
        except MigrationError as error:
            assert str(error).isprintable(), "a stranger's text is not fit for a terminal"
    return taken


def _hear(data: bytes, side: Callable[[Channel], None]) -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(SocketLine(ours, "them", 5)) as line:
        sent = theirs.send(data, socket.MSG_DONTWAIT)
        if sent == len(data):
            theirs.shutdown(socket.SHUT_WR)
            side(Channel(line))
            return
        rest = threading.Thread(target=_say, args=(theirs, data[sent:]))
        rest.start()
        try:
            side(Channel(line))
        finally:
            line.cut()
            rest.join()


def _say(connected: socket.socket, data: bytes) -> None:
    """Say what did not fit into the buffers, as long as somebody hears it."""
    with suppress(OSError):
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)


def _as_receiver(channel: Channel) -> None:
    channel.open()
    message = channel.receive(Kind.HELLO, Kind.RESOLVE)
    if message.kind is Kind.RESOLVE:
        Resolve.unpack(message.body)
        channel.receive(Kind.HANDOVER, Kind.SETTLED, Kind.ABORT)
        return
    hello = Hello.unpack(message.body)
    blockers(hello.facts, probes.document("svm-7.2" if hello.arch == "x86" else "sve-7.2"))
    if sum(size for _, size in hello.regions) > _LARGEST:
        raise MigrationError("a guest that is too large")
    shell = unpack_state(channel.receive(Kind.CONFIG).body, "CONFIG")
    list(map(str, differences(shell, shell)))
    areas = [mmap.mmap(-1, size) for _, size in hello.regions]
    memories: list[Any] = [
        SimpleNamespace(view=memoryview(area), gpa=gpa, flush=lambda: None)
        for area, (gpa, _) in zip(areas, hello.regions, strict=True)
    ]
    with closing(MemoryReceiver(channel, memories, Key(hello.key), codec=hello.codec)) as memory:
        while (message := channel.receive(Kind.MEMORY, Kind.ROUND, Kind.FINAL)).kind is not Kind.FINAL:
            if message.kind is Kind.MEMORY:
                memory.take(message.body)
            else:
                memory.settle()
        final = Final.unpack(message.body)
        memory.compare(final.digests, reread=True)
    unpack_state(final.state, "FINAL")
    channel.receive(Kind.HANDOVER)
    channel.receive(Kind.SETTLED)


@cache
def _here() -> VmState:
    return _without_memory(x86_state(tiles=False))


def _as_source(channel: Channel) -> None:
    channel.open()
    welcome = Welcome.unpack(channel.receive(Kind.WELCOME).body)
    Witness(welcome.process, welcome.keeper).close()
    channel.receive(Kind.PREPARED)
    while (message := channel.receive(Kind.ROUND_DONE, Kind.READY)).kind is Kind.ROUND_DONE:
        pass
    ready = Ready.unpack(message.body)
    list(map(str, differences(_here(), unpack_state(ready.state, "READY"))))
    channel.receive(Kind.RUNNING, Kind.WAITING, Kind.DISCARDED, Kind.DIED)


# --- changes --------------------------------------------------------------------------------------


def change(source: random.Random, data: bytes, leaf: Leaf) -> bytes:
    """Return a line with some changes, mostly under digests that are right."""
    if source.random() < 0.1:
        return leaf(data)
    said = _opened(data)
    for _ in range(source.choice((1, 1, 2, 3))):
        if not said:
            break
        at = source.randrange(len(said))
        if source.random() < 0.15:
            said = source.choice((said[:at] + said[at + 1 :], said[:at] + said[at:][:1] + said[at:], said[: at + 1]))
        else:
            said[at] = _other(source, said[at], leaf)
    return _sealed(said, first=source.random() < 0.01)


def _other(source: random.Random, said: _Said, leaf: Leaf) -> _Said:
    kind, body, pages = said
    choice = source.random()
    if choice < 0.05:
        return source.choice([*map(int, Kind), 0, 19, 65535]), body, pages
    if kind == Kind.MEMORY:
        if choice < 0.5:
            return kind, leaf(body), pages
        pages = leaf(pages)
        return kind, body[:8] + struct.pack("<Q", len(pages)) + body[16:], pages

    def inner(part: bytes) -> bytes:
        """A state inside a message is a stream, which is changed as one."""
        return streams.change(source, part, leaf) if part.startswith(b"\x89VMST") else leaf(part)

    if kind == Kind.CONFIG or choice < 0.1:
        return kind, inner(body), pages
    try:
        return kind, cbor2.dumps(changed(source, cbor2.loads(body), inner), canonical=True), pages
    except (cbor2.CBORError, ValueError, TypeError):
        return kind, leaf(body), pages
