"""Who makes the batches ahead of their use: how many threads, and in which processes."""

from __future__ import annotations

import grain
import jax
from ml_collections import ConfigDict

from vit_jax.common import host
from vit_jax.data.processes import THREADS, make_in_processes
from vit_jax.data.skipped import SkippedImages


def read_ahead(
    batches: grain.MapDataset, options: ConfigDict, skipped: SkippedImages
) -> grain.IterDataset:
    """Returns the batches in their order, made ahead by `config.data.threads` threads.

    Args:
      batches: of `batch.layout`, by index.
      options: `config.data`.
      skipped: what `batches` gives its skipped images to.
    """
    how = read_options(options)
    return spread(batches, how.num_threads, skipped).to_iter_dataset(how)


def read_options(options: ConfigDict) -> grain.ReadOptions:
    """Returns how many threads make batches, and how many are made ahead."""
    threads = options.threads or threads_of_process()
    return grain.ReadOptions(threads, prefetch_buffer_size=max(options.prefetch, threads))


def read_all(dataset: grain.MapDataset, threads: int | None = None) -> grain.IterDataset:
    """Returns the elements in their order, made ahead by `threads` threads; None: one for each CPU.

    Where an element is None, it is left out.
    """
    threads = threads or len(host.available_cpus())
    ahead = grain.ReadOptions(threads, prefetch_buffer_size=16 * threads)
    return spread(dataset, threads).to_iter_dataset(ahead)


def spread(
    dataset: grain.MapDataset, threads: int, skipped: SkippedImages | None = None
) -> grain.MapDataset:
    """Returns the same elements, made by other processes if that takes more than a few threads."""
    return make_in_processes(dataset, threads, skipped) if threads > THREADS else dataset


def threads_of_process(process: host.Process | None = None) -> int:
    """Returns how many threads read and decode: a process's share of the CPUs that it may use.

    It is at least 1. Where CPUs compute the steps as well, it is at most 2: each thread holds a
    batch in the same memory.

    Processes of one host that may use the same CPUs share them evenly. If there are several
    processes, all of them must call this function.

    Args:
      process: one of `host.all_processes`; None for this process.
    """
    process = process or host.own_process()
    most = 2 if jax.default_backend() == "cpu" else process.cpu_count
    return min(most, max(1, process.cpu_count // host.all_processes().count(process)))
