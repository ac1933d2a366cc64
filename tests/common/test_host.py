"""What a run's processes know of each other's hosts and CPUs."""

import os
import platform

import jax
import numpy as np
import pytest

from vit_jax.common import host


@pytest.fixture(autouse=True)
def nothing_kept():
    """Calls the cached functions anew in each test, and in those that follow."""
    host.own_process.cache_clear()
    host.all_processes.cache_clear()
    yield
    host.own_process.cache_clear()
    host.all_processes.cache_clear()


def test_a_process_alone_is_all_there_is():
    """The operating system's count of its CPUs; nothing is exchanged."""
    [process] = host.all_processes()
    assert process == host.own_process()
    assert process.cpu_count == len(os.sched_getaffinity(0)) == len(host.available_cpus())
    assert host.processes_on_host() == 1


def test_processes_are_told_apart_by_host_and_cpus(monkeypatch):
    """Three of four are on this host, two of these with the same CPUs, after one exchange."""
    gathered = []

    def in_turn(name, cpus):
        monkeypatch.setattr(platform, "node", lambda: name)
        monkeypatch.setattr(host, "available_cpus", lambda: cpus)
        host.own_process.cache_clear()
        return host.own_process()

    others = [in_turn("a", (0, 1)), in_turn("a", (2, 3)), in_turn("b", (0, 1))]
    own = in_turn("a", (0, 1))

    def gather(row):
        gathered.append(row)
        return np.array([row, *others], np.uint32)

    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(host.multihost_utils, "process_allgather", gather)
    assert host.all_processes() == (own, *others)
    assert host.all_processes().count(own) == 2
    assert host.processes_on_host() == 3
    assert len(gathered) == 1
