"""Start several processes, wait for them, and leave none behind."""

import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120
"""Seconds after which processes that hang are ended; they need a few."""


def environment(**more):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return os.environ | address | {"OMP_NUM_THREADS": "1"} | more


def finish(processes):
    """Wait for all; none is left behind, whatever happens."""
    try:
        return [process.communicate(timeout=LIMIT)[1] for process in processes]
    finally:
        for process in processes:
            process.terminate()  # torchrun ends its own processes then
        for process in processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def start(command, env):
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
