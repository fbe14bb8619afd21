"""Ports: reserved ones stay ours, taken ones have a name."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path

import pytest

from agentmesh import ports


def test_a_reserved_port_is_given_to_nobody_else_but_a_server_may_come_and_go_there() -> None:
    reserved = ports.reserve()

    for _ in range(2):
        with socket.create_server(("127.0.0.1", reserved.port)) as server:  # sets SO_REUSEADDR, as servers do
            assert server.getsockname()[1] == reserved.port
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", reserved.port))


def test_nobody_answers_on_a_reserved_port() -> None:
    reserved = ports.reserve()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", reserved.port))


def test_a_port_is_free_again_when_its_reservation_is_forgotten() -> None:
    reserved = ports.reserve()
    port = reserved.port

    del reserved
    gc.collect()

    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_reserved_ports_are_all_different() -> None:
    reserved = [ports.reserve() for _ in range(50)]

    assert len({each.port for each in reserved}) == 50


def test_reserving_at_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(OSError, match="taken on 192"):
        ports.reserve("192.0.2.1")  # a documentation address


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_listener_of_a_port_is_named(host: str) -> None:
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()

        assert not ports.is_free("127.0.0.1", port)
        assert ports.listener(port) == f"{name} (pid {os.getpid()})"


def test_a_port_without_listener_has_no_name() -> None:
    assert ports.listener(ports.reserve().port) == "another process"
