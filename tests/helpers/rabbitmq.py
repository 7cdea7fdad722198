"""A RabbitMQ server of this machine, on loopback, with everything it writes in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

#: Debian's package has the server's own script here; the one on the path changes to another user
_SCRIPTS = Path("/usr/lib/rabbitmq/bin")

#: why no server can run here, or nothing
MISSING = "" if shutil.which("rabbitmq-server", path=_SCRIPTS) else "package rabbitmq-server is not installed"


@contextmanager
def rabbitmq(folder: Path):
    """The port of a server that lives as long as the block; its name and password are guest."""
    node, epmd, distribution = _free_ports(3)
    environment = {
        **os.environ,
        "HOME": str(folder),  # its cookie
        "RABBITMQ_NODENAME": "diffuse@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(node),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (folder / "said").open("w") as said:
        server = subprocess.Popen(
            [_SCRIPTS / "rabbitmq-server"], cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(node, server, folder / "said")
            yield node
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            # the server's port mapper outlives it
            subprocess.run(["epmd", "-kill"], env=environment, capture_output=True)


def _free_ports(number: int) -> list:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _wait_for(port: int, server: subprocess.Popen, said: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"RabbitMQ does not start: {said.read_text()[-500:]}")
