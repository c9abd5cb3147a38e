"""What processes behind one port hand each other, with real sockets and memory; the processes are one here."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from auxot.router.shares import MAX_UNTAKEN
from auxot.router.siblings import Family, Siblings, found_family, join_family


@attrs.frozen
class House:
    """A family of two, of which 0 has nothing and 1 has a worker with slots."""

    family: Family
    poor: Siblings
    rich: Siblings


def member_of(family: Family, number: int) -> Siblings:
    """Return a process as it finds itself when it starts."""
    return join_family([os.dup(fd) for fd in family.descriptors(number)], number)


@contextmanager
def house() -> Iterator[House]:
    with closing(found_family(2)) as family:
        members = [member_of(family, number) for number in range(2)]
        for member in members:
            member.open()
        members[1].keep("worker", is_worker=True)
        members[1].note_slots(1000)
        try:
            yield House(family, *members)
        finally:
            for member in members:
                close(member)


def close(member: Siblings) -> None:
    for one in (member.inbox, *member.doors):
        one.close()
    member.board.close()


def n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def accepted() -> Iterator[tuple[socket.socket, trio.socket.SocketType]]:
    """Yield a client's end and the server's end of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with client, trio.socket.from_stdlib_socket(ours) as served:
        yield client, served


async def test_a_connection_goes_to_the_sibling_with_the_slots_and_is_served_there():
    """A handed connection is closed, or what its client has sent is lost."""
    with house() as two, accepted() as (client, served):
        client.sendall(b"hello")
        assert two.poor.place("c", served, is_worker=False)
        served.close()
        with trio.fail_after(5):
            [(taken, is_worker)] = await two.rich.take()
        with taken:
            assert (taken.recv(5), is_worker, taken.get_inheritable()) == (b"hello", False, False)
        assert client.recv(1) == b""


async def test_what_is_on_its_way_is_counted_until_it_is_taken():
    """Of many that come at once all go to one process."""
    with house() as two, accepted() as (_, served):
        for _ in range(3):
            two.poor.place("c", served, is_worker=False)
        assert two.poor.board.standing(1).n_clients == two.poor.board.standing(1).n_untaken == 3
        for sock, _ in await two.rich.take():
            two.rich.keep(sock, is_worker=False)
            sock.close()
        assert (two.poor.board.standing(1).n_clients, two.poor.board.standing(1).n_untaken) == (3, 0)


def test_a_stuck_sibling_gets_only_so_many():
    """A process that takes nothing collects all clients until the watchdog ends it."""
    with house() as two, accepted() as (_, served):
        sent = [two.poor.place(n, served, is_worker=False) for n in range(2 * MAX_UNTAKEN)]
        assert sent == [True] * MAX_UNTAKEN + [False] * MAX_UNTAKEN
        assert two.poor.board.standing(0).n_clients == MAX_UNTAKEN


def test_nothing_goes_to_or_from_a_process_that_leaves():
    """A client is handed to a process that has closed its doors, or by one that was told to stop."""
    with house() as two, accepted() as (_, served):
        two.rich.leave()
        assert not two.poor.place("c", served, is_worker=False)
    with house() as two, accepted() as (_, served):
        two.poor.leave()
        assert not two.poor.place("c", served, is_worker=False)


def test_what_cannot_be_sent_stays_and_leaves_no_count():
    """A connection is lost when an inbox takes no more, or its process looks busy for ever."""
    with house() as two, accepted() as (_, served):
        for door in two.poor.doors:
            door.close()
        assert not two.poor.place("c", served, is_worker=False)
        assert two.poor.board.standing(1).n_untaken == 0
        assert two.poor.board.standing(0).n_clients == 1


async def test_what_lies_in_the_inbox_of_the_dead_is_for_their_successor():
    """Clients wait for ever for a process that was killed, or its successor looks busy for ever."""
    with house() as two, accepted() as (client, served):
        client.sendall(b"x")
        two.poor.place("c", served, is_worker=False)
        two.family.board.clear(1)
        assert not two.poor.place("d", served, is_worker=False)
        with closing_member(member_of(two.family, 1)) as successor:
            successor.open()
            assert two.poor.board.standing(1).n_untaken == 0
            [(taken, _)] = await successor.take()
            with taken:
                assert taken.recv(1) == b"x"


@contextmanager
def closing_member(member: Siblings) -> Iterator[Siblings]:
    try:
        yield member
    finally:
        close(member)


async def test_no_descriptor_is_left():
    """A router runs out of descriptors after so many connections."""
    await one_round()
    before = n_descriptors()
    for _ in range(3):
        await one_round()
    assert n_descriptors() == before


async def one_round() -> None:
    with house() as two, accepted() as (_, served):
        for _ in range(5):
            assert two.poor.place("c", served, is_worker=False)
        for sock, _ in await two.rich.take():
            sock.close()
        for _ in range(5):  # these lie in the inbox when all ends
            assert two.poor.place("c", served, is_worker=False)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_is_nobodys_is_refused(number):
    """A router that was started by hand writes into the rows of others."""
    with closing(found_family(2)) as family, pytest.raises(ValueError, match="number"):
        join_family(family.descriptors(0), number)
