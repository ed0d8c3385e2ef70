"""A head that goes away, as a socket that stops listening: what a driver's error becomes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from ray.exceptions import ActorDiedError

from l2g_ray.errors import ClusterLost
from l2g_ray.orchestrate import cluster as cluster_watch
from l2g_ray.orchestrate.cluster import ClusterWatch


@pytest.fixture
def head() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address(head: socket.socket) -> str:
    host, port = head.getsockname()
    return f"{host}:{port}"


def test_an_actor_that_ends_before_its_head_is_the_first_sign_of_a_lost_cluster(head: socket.socket) -> None:
    timer = threading.Timer(0.5, head.close)
    with pytest.raises(ClusterLost, match="does not answer any more; when it is back, run the same command again"):  # noqa: PT012, SIM117
        with ClusterWatch(address(head)):
            timer.start()
            raise ActorDiedError


def test_an_actor_that_ends_alone_stays_what_it_is(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "GRACE_S", 0.5)
    with pytest.raises(ActorDiedError), ClusterWatch(address(head)):
        raise ActorDiedError


@pytest.mark.parametrize(("listens", "expected"), [(True, ValueError), (False, ClusterLost)])
def test_another_error_is_the_clusters_where_it_does_not_answer(
    head: socket.socket, listens: bool, expected: type[Exception]
) -> None:
    where = address(head)
    if not listens:
        head.close()
    with pytest.raises(expected), ClusterWatch(where):
        raise ValueError
