import os
import socket
import subprocess
import sys

import pytest

from workbench.errors import DeploymentError
from workbench.serve.processes import ports
from workbench.serve.processes.ports import free_ports, listens


def test_free_ports_are_distinct_and_can_be_had():
    chosen = free_ports(50)
    assert len(set(chosen)) == 50
    for port in chosen:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))


def test_a_port_in_use_is_not_chosen(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        with pytest.raises(DeploymentError, match="no free port between"):
            free_ports(1)


def test_who_listens_on_a_port_is_known_for_a_process_and_its_children():
    code = "import socket; s = socket.create_server(('127.0.0.1', 0));"
    code += "print(s.getsockname()[1], flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        port = int(child.stdout.readline())
        assert listens(child.pid, port)
        assert listens(os.getpid(), port)
        assert not listens(child.pid, port + 1)
        assert not listens(os.getppid(), port + 1)
    assert not listens(child.pid, port)
