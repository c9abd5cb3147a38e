"""Router processes behind one port hand each other connections that the other can serve better, see `shares`.

    accepted connection -> place -> stays
                              '-> sent to the sibling's inbox (its descriptor, nothing was read) -> taken, stays there

Two things are shared. The board is memory with a row for each process, written by that process alone: what it has, and
what it has sent and taken. What was sent to a process and not taken yet counts as there, so that of many connections
that come at once not all go to one. The inbox is a socket of its own for each process, open in the parent too: what
lies in it when a process dies is served by the next one.

A process that is not up, or about to leave, is sent nothing, and sends nothing. Where a connection cannot be sent (the
inbox is full, a limit of descriptors) it stays.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import tempfile
from collections.abc import Hashable, Sequence
from contextlib import suppress

import attrs
import trio

from auxot.router.shares import Standing, place_client, place_worker

# What a row holds, in words of 8 bytes; behind them what this process has sent to each one, workers and clients.
_TAKES, _WORKERS, _SLOTS, _CLIENTS, _TAKEN_WORKERS, _TAKEN_CLIENTS = range(6)
_FIXED = 6
_WORKER, _CLIENT = b"w", b"c"
_MAX_TAKE = 64  # at once: then others have their turn


class Board:
    """The rows of all processes. A word is written by one process, and whole."""

    def __init__(self, fd: int, n_processes: int) -> None:
        self._n = n_processes
        self._stride = _FIXED + 2 * n_processes
        self._memory = mmap.mmap(fd, 8 * n_processes * self._stride)
        self._words = memoryview(self._memory).cast("q")

    def close(self) -> None:
        """Unmap the memory."""
        self._words.release()
        self._memory.close()

    def standing(self, number: int) -> Standing:
        """Return how a process stands."""
        row, words = number * self._stride, self._words
        sent_workers, sent_clients = self.sent_to(number)
        workers = max(0, sent_workers - words[row + _TAKEN_WORKERS])
        clients = max(0, sent_clients - words[row + _TAKEN_CLIENTS])
        return Standing(
            takes=bool(words[row + _TAKES]),
            n_workers=words[row + _WORKERS] + workers,
            n_slots=words[row + _SLOTS],
            n_clients=words[row + _CLIENTS] + clients,
            n_untaken=workers + clients,
        )

    def sent_to(self, number: int) -> tuple[int, int]:
        """Return how many workers and clients were ever sent to a process."""
        places = range(_FIXED + 2 * number, self._n * self._stride, self._stride)
        return sum(self._words[at] for at in places), sum(self._words[at + 1] for at in places)

    def write(self, number: int, word: int, value: int) -> None:
        """Write a word of a process's own row."""
        self._words[number * self._stride + word] = value

    def add(self, number: int, word: int, change: int) -> None:
        """Add to a word of a process's own row."""
        self._words[number * self._stride + word] += change

    def clear(self, number: int) -> None:
        """Note that a process has gone; what it has sent and taken is still true."""
        for word in (_TAKES, _WORKERS, _SLOTS, _CLIENTS):
            self.write(number, word, 0)


@attrs.define(eq=False)
class Siblings:
    """One process among its siblings. Owned by its event loop.

    Args:
        board: what all have written.
        number: of this process.
        inbox: where connections for this process come in.
        doors: the other ends of all inboxes, by number; none of these sockets blocks.
    """

    board: Board
    number: int
    inbox: socket.socket
    doors: Sequence[socket.socket]
    _workers: set[Hashable] = attrs.field(factory=set)
    _clients: set[Hashable] = attrs.field(factory=set)  # those with a request, or with none yet
    _left_behind: list[tuple[socket.socket, bool]] = attrs.field(factory=list)  # by the process before this one

    def open(self) -> None:
        """Begin to be handed connections. Until now nobody has sent any: what is in the inbox is of another life."""
        while batch := self._read_inbox():
            self._left_behind += batch
        for word, n_sent in zip((_TAKEN_WORKERS, _TAKEN_CLIENTS), self.board.sent_to(self.number), strict=True):
            self.board.write(self.number, word, n_sent)
        self.board.write(self.number, _TAKES, 1)

    def leave(self) -> None:
        """Be sent nothing more, and send nothing. What has been sent is still to be taken."""
        self.board.write(self.number, _TAKES, 0)

    def note_slots(self, n_slots: int) -> None:
        """Note how many slots our workers have."""
        self.board.write(self.number, _SLOTS, n_slots)

    def place(self, connection: Hashable, sock: trio.socket.SocketType, *, is_worker: bool) -> bool:
        """Send a new connection to the process that it is for, or keep it and count it until `forget`.

        Returns:
            Whether it was sent: then its descriptor here is to be closed.
        """
        standings = [self.board.standing(number) for number in range(len(self.doors))]
        decide = place_worker if is_worker else place_client
        there = decide(standings, here=self.number) if standings[self.number].takes else self.number
        if there != self.number and self._send(sock, there, is_worker=is_worker):
            return True
        self.keep(connection, is_worker=is_worker)
        return False

    def keep(self, connection: Hashable, *, is_worker: bool) -> None:
        """Count a connection until `forget`."""
        (self._workers if is_worker else self._clients).add(connection)
        self._publish()

    def forget(self, connection: Hashable) -> None:
        """Count a connection no more; harmless if it was not counted."""
        self._workers.discard(connection)
        self._clients.discard(connection)
        self._publish()

    async def take(self) -> list[tuple[socket.socket, bool]]:
        """Return what has come in: connections, and whether each is a worker's. Cancel-safe: then nothing was taken."""
        if self._left_behind:
            await trio.lowlevel.checkpoint()
            left_behind, self._left_behind = self._left_behind, []
            return left_behind
        await trio.lowlevel.wait_readable(self.inbox)
        batch = self._read_inbox()
        n_workers = sum(is_worker for _, is_worker in batch)
        self.board.add(self.number, _TAKEN_WORKERS, n_workers)
        self.board.add(self.number, _TAKEN_CLIENTS, len(batch) - n_workers)
        return batch

    def _publish(self) -> None:
        self.board.write(self.number, _WORKERS, len(self._workers))
        self.board.write(self.number, _CLIENTS, len(self._clients))

    def _send(self, sock: trio.socket.SocketType, there: int, *, is_worker: bool) -> bool:
        """Send a connection; False if that is not possible now."""
        word = _FIXED + 2 * there + (0 if is_worker else 1)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        self.board.add(self.number, word, 1)  # first: it may be taken before we get any further
        try:
            self.doors[there].sendmsg([_WORKER if is_worker else _CLIENT], rights)
        except OSError:
            self.board.add(self.number, word, -1)
            return False
        return True

    def _read_inbox(self) -> list[tuple[socket.socket, bool]]:
        """Return what is in the inbox, as much as is taken at once."""
        batch: list[tuple[socket.socket, bool]] = []
        with suppress(BlockingIOError):
            while len(batch) < _MAX_TAKE:
                batch += _receive(self.inbox)
        return batch


def _receive(inbox: socket.socket) -> list[tuple[socket.socket, bool]]:
    """Return the connection of one message; none if it came without. BlockingIOError: there is no message."""
    descriptors = array.array("i")
    kind, ancillary, _, _ = inbox.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, message_type, content in ancillary:
        if (level, message_type) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return [(socket.socket(fileno=fd), kind == _WORKER) for fd in descriptors]


@attrs.frozen(kw_only=True)
class Family:
    """What the parent of several routers keeps for them.

    Attributes:
        board_fd: of the board's memory.
        inboxes: the ends that the children read, by number.
        doors: the ends that their siblings write to.
    """

    board_fd: int
    board: Board
    inboxes: tuple[socket.socket, ...]
    doors: tuple[socket.socket, ...]

    def descriptors(self, number: int) -> tuple[int, ...]:
        """Return what a child inherits: the board's, its inbox's, the doors'."""
        return (self.board_fd, self.inboxes[number].fileno(), *(door.fileno() for door in self.doors))

    def close(self) -> None:
        """Close it all; connections that lie in an inbox end."""
        for one in (*self.inboxes, *self.doors):
            one.close()
        self.board.close()
        os.close(self.board_fd)


def found_family(n_processes: int) -> Family:
    """Make what so many processes share."""
    fd = _shared_memory(8 * n_processes * (_FIXED + 2 * n_processes))
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(n_processes)]
    for one in (one for pair in pairs for one in pair):
        one.setblocking(False)
    inboxes, doors = zip(*pairs, strict=True)
    return Family(board_fd=fd, board=Board(fd, n_processes), inboxes=inboxes, doors=doors)


def join_family(descriptors: Sequence[int], number: int) -> Siblings:
    """Return this process among its siblings, from what `Family.descriptors` has named.

    Raises:
        ValueError, OSError: those are not such descriptors.
    """
    board_fd, inbox, *doors = descriptors
    if not 0 <= number < len(doors):
        raise ValueError(f"no process has the number {number}")
    board = Board(board_fd, len(doors))
    os.close(board_fd)
    return Siblings(board, number, socket.socket(fileno=inbox), [socket.socket(fileno=door) for door in doors])


def _shared_memory(n_bytes: int) -> int:
    """Return the descriptor of so much memory, all of it 0."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("auxot-router")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, n_bytes)
    return fd
