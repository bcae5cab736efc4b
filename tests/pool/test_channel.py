"""Messages between processes: whole, in order, and arrays without a copy of ours."""

from __future__ import annotations

import pickle
import socket
import threading
import tracemalloc

import numpy as np
import pytest

from scoring_service.engine.worker.channel import Channel


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


def test_everything_arrives_as_it_was_sent(ends: tuple[Channel, Channel]) -> None:
    messages = [
        None,
        {"a": np.arange(7, dtype=np.int32)},
        [np.zeros((0, 3)), np.arange(12).reshape(3, 4).T, np.arange(20)[::3], "text"],
        [np.full(3, i) for i in range(2000)],  # more pieces than one system call takes
        np.arange(1 << 21, dtype=np.float64),  # more than the kernel holds
    ]
    sender = threading.Thread(target=lambda: [ends[0].send(m) for m in messages], daemon=True)
    sender.start()
    for sent in messages:
        received = ends[1].receive()
        assert pickle.dumps(received) == pickle.dumps(sent)
    sender.join(10)


def test_messages_of_several_threads_do_not_mix(ends: tuple[Channel, Channel]) -> None:
    def send(number: int) -> None:
        for _ in range(50):
            ends[0].send((number, np.full(50_000, number)))

    for number in range(4):
        threading.Thread(target=send, args=(number,), daemon=True).start()
    for _ in range(200):
        number, values = ends[1].receive()
        assert (values == number).all()


def test_sending_copies_no_array(ends: tuple[Channel, Channel]) -> None:
    values = np.ones(64 << 20, dtype=np.uint8)
    received = []
    reader = threading.Thread(target=lambda: received.append(ends[1].receive()), daemon=True)
    tracemalloc.start()
    reader.start()
    ends[0].send(values)
    reader.join(30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert received[0].nbytes == values.nbytes
    assert peak < 1.1 * values.nbytes, "one array: the received one"


def test_an_end_that_is_gone_is_an_error(ends: tuple[Channel, Channel]) -> None:
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()
    with pytest.raises(OSError, match="Broken pipe"):
        ends[1].send(1)
