"""Processes of a bench: fresh, linked, and with what they need already imported."""

import os
import sys

import pytest

from nissl.bench.run.processes import PRELOADED, start


def answer(link, number):
    link.send((os.getpid(), number, [name in sys.modules for name in PRELOADED]))
    link.recv()


def end(link):
    os._exit(7)


def test_a_process_gets_its_arguments_and_a_link_and_has_the_imports():
    process, link = start(answer, 3)
    pid, number, imported = link.recv()
    link.send("end")
    process.join()
    assert pid == process.pid != os.getpid() and number == 3 and process.exitcode == 0
    assert sys.platform != "linux" or all(imported)


def test_the_link_of_a_process_that_ends_is_closed():
    process, link = start(end)
    with pytest.raises((EOFError, ConnectionResetError)):
        link.recv()
    process.join()
    assert process.exitcode == 7
