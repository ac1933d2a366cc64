"""Kills a job at random instants, again and again, and checks that its results don't change.

    python -m benchmarks.soak --minutes=10 --seed=0 --json=soak.json

A tiny job that uses every source of randomness trains once without a kill. Then the same job, in
other workdirs, is started, killed and started again until it ends. The kills are: SIGKILL at any
time or in the middle of a save, SIGTERM, SIGINT, and a second signal while the job still answers
the first. Some kills come while the job is starting. Each job must give the results of the first
one, bit for bit: all arrays of the last checkpoint, the rows of metrics.csv and the summary, but
for images per second. The kills of such a job were survived. When the time is up, the last job runs
to its end.

The benchmark fails, with exit status 1, if a result differs, or if a start ends with a status other
than its signal's (130 of SIGINT, 143 of SIGTERM; without a signal, 0), prints a traceback, shows no
sign of life, outlives a signal by a minute or trains to the end in spite of it. One kind of
traceback is expected: that of a SIGINT while Python itself starts. The first failure ends the
benchmark: it names the log, and no file is removed.

    python -m benchmarks.soak --processes=2 --kills=30 --minutes=60

With --processes, each job is trained by that number of processes, as by several hosts. A kill is
the SIGKILL of one of them in a step, in a save or in an evaluation. The others must end by
themselves and name the process that was lost. Then all of them are started again.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import simplejpeg

from benchmarks import machine

IN_SAVE = "SIGKILL in a save"
# Kills are drawn from these without replacement: a name and the signals to send.
KILLS = (
    *[("SIGKILL", signal.SIGKILL)] * 4,
    *[(IN_SAVE, signal.SIGKILL)] * 3,
    *[("SIGTERM", signal.SIGTERM)] * 2,
    *[("SIGINT", signal.SIGINT)] * 2,
    ("second signal", signal.SIGTERM, signal.SIGKILL),
    ("second signal", signal.SIGTERM, signal.SIGTERM),
    ("second signal", signal.SIGINT, signal.SIGINT),
)
MOMENTS = ("step", "save", "evaluation")  # of the kills of one of several processes
STARTING = 0.2  # share of kills that come before training begins, or just then

_LAST = 10  # steps at a job's end in which a signal may come too late
# Rows, evaluations and checkpoints: their numbers of steps have no common divisor.
_OPTIONS = {
    "batch_size": 8,
    "eval_batch_size": 8,
    "accumulate_steps": 2,
    "log_every": 3,
    "eval_every": 50,
    "checkpoint.every": 17,
    "model.width": 16,
    "model.depth": 2,
    "model.mlp_dim": 16,
    "model.num_heads": 2,
    "model.patch_size": 8,
    "model.dropout": 0.1,
    "model.stochastic_depth": 0.2,
    "data.image_size": 16,
    "data.mixup": 0.2,
    "data.randaugment": 2,
    "optim.polyak": 0.9,
    "optim.warmup_steps": 10,
}
_LOST_AFTER = 10  # seconds without a sign of life after which one of several processes is lost
_AHEAD = 60  # steps, at most, from a start to the kill of one of several processes
# Of several processes, too: evaluations that take longer than a step, and come more often.
_OPTIONS_OF_SEVERAL = {"eval_every": 10, "data.train": "train", "data.test": "train"}
_REPOSITORY = pathlib.Path(__file__).parents[1]
_LIMIT = 600  # seconds until a sign of life, or the end of a job
_GRACE = 60  # seconds to end in, after a signal
_LEFT_OUT = "images_per_second"


class Failed(Exception):
    """A kill was not survived; the message says what differs, and names the log."""


# ----------------------------------------------------------------------------------------- jobs


class Job:
    """A command that is started again and again, with its messages in FOLDER/start_001.log…

    Args:
      folder: does not exist yet; the command's workdir is FOLDER/run.
      command: trains; without --workdir.
      env: the environment variables of the command.
      workdir: where the command trains, if it isn't FOLDER/run.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        command: Sequence[str],
        env: dict[str, str],
        workdir: pathlib.Path | None = None,
    ):
        folder.mkdir()
        self.folder, self.workdir = folder, workdir or folder / "run"
        self._command, self._env = [*command, f"--workdir={self.workdir}"], env
        self._starts = 0

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen]:
        """Starts the command; at the end of the context its process is killed if it still runs."""
        self._starts += 1
        self._old_table, self._old_partial = _stamp(self._table), self._partial()
        with open(self._log, "w") as file:
            process = subprocess.Popen(
                self._command,
                cwd=_REPOSITORY,
                env=self._env,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def training(self) -> bool:
        """Returns True once the process of this start has begun to write metrics.csv."""
        return _stamp(self._table) != self._old_table

    def saving(self) -> bool:
        """Returns True while a checkpoint of this start is half written."""
        return bool(self._partial() - self._old_partial)

    def reached(self) -> int:
        """Returns the step of the last row of metrics.csv, 0 if there is none."""
        rows = read_rows(self.workdir)
        return int(rows[-1]["step"]) if rows else 0

    def saved(self) -> int:
        """Returns the step of the newest complete checkpoint, 0 if there is none."""
        return max(_steps(self.workdir), default=0)

    def finish(self) -> dict[str, Any]:
        """Starts the command, lets it run to its end and returns its summary."""
        with self.started() as process:
            return self.ended(process)

    def ended(
        self,
        process: subprocess.Popen,
        signals: Collection[int] = (),
        prints_summary: bool = True,
    ) -> dict[str, Any] | None:
        """Waits for the end of a process; returns its summary, None if a signal ended it before.

        Args:
          signals: sent to the process: it may die of them, and must end soon.
          prints_summary: False for all but the first of several processes.

        Raises:
          Failed: the process takes longer, ends with an error, prints a traceback or, without a
            signal, prints no summary.
        """
        seconds = _GRACE if signals else _LIMIT
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"It still runs after {seconds} s") from None
        # Before the job begins to listen, the system ends the process: its status is negative.
        expected = {status for number in signals for status in (128 + number, -number)}
        if process.returncode not in (expected or {0}) and not (output and process.returncode == 0):
            raise self.failed(f"Exit status {process.returncode}")
        log = self._log.read_text()
        tracebacks = log.count("Traceback (most recent call last)")
        tracebacks -= len(re.findall(r"^KeyboardInterrupt\b", log, re.MULTILINE))
        if tracebacks > 0:
            raise self.failed("A traceback")
        summaries = [line for line in output.splitlines() if line.startswith("{")]
        if not summaries and prints_summary and not signals:
            raise self.failed("No summary")
        return json.loads(summaries[-1]) if summaries else None

    def wait_after_loss(self, process: subprocess.Popen, lost: int) -> None:
        """Waits for the end of a process that trains with a process that was killed.

        Args:
          lost: the number of the process that was killed.

        Raises:
          Failed: the process takes too long, or it doesn't say which process was lost. If it had
            come to the end of the job before, it need not.
        """
        try:
            process.communicate(timeout=_LOST_AFTER + _GRACE)
        except subprocess.TimeoutExpired:
            raise self.failed(f"It still runs {_LOST_AFTER + _GRACE} s after a kill") from None
        deadline = time.monotonic() + _GRACE  # the message comes right after the process's end
        while f"Process {lost} was lost: " not in (log := self._log.read_text()):
            if process.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise self.failed(f"Exit status {process.returncode}, no word of process {lost}")
            time.sleep(0.1)
        if any(words in log for words in ("Traceback", "stack trace", "Fatal Python error")):
            raise self.failed("A traceback")

    def failed(self, what: str) -> Failed:
        """Returns the error that says what happened and names the log of this start."""
        return Failed(f"{what}: see {self._log}")

    @property
    def _log(self) -> pathlib.Path:
        return self.folder / f"start_{self._starts:03}.log"

    @property
    def _table(self) -> pathlib.Path:
        return self.workdir / "metrics.csv"

    def _partial(self) -> set[Any]:
        folders = (self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        return {(path.name, stamp) for path in folders if (stamp := _stamp(path))}


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    """Returns a value that changes when a file or folder is written, None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def draw(folder: pathlib.Path) -> None:
    """Writes the data: JPEGs of noise around one colour a class, FOLDER/CLASS/*.jpg."""
    colours = {"blue": (60, 120, 200), "green": (90, 220, 90), "red": (200, 60, 60)}
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(16):
            pixels = np.clip(colour + rng.normal(0, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))


class Hosts:
    """A job that several processes train, with their messages in FOLDER/process_0 and so on.

    Args:
      folder: does not exist yet; the workdir is FOLDER/run.
      count: the number of processes.
      command, env: as of `Job`.
    """

    def __init__(
        self, folder: pathlib.Path, count: int, command: Sequence[str], env: dict[str, str]
    ):
        folder.mkdir()
        self.folder, self.workdir = folder, folder / "run"
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        together = [
            f"--coordinator_address={address}",
            f"--num_processes={count}",
            f"--lost_after={_LOST_AFTER}",
        ]
        self.jobs = [
            Job(
                folder / f"process_{i}",
                [*command, *together, f"--process_id={i}"],
                env,
                self.workdir,
            )
            for i in range(count)
        ]
        self.reached = self.jobs[0].reached

    @contextlib.contextmanager
    def started(self) -> Iterator[list[subprocess.Popen]]:
        """Starts all processes; at the end of the context those that still run are killed."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(job.started()) for job in self.jobs]

    def ended(self, processes: Sequence[subprocess.Popen]) -> dict[str, Any]:
        """Waits for the end of all processes; returns the summary, which the first one prints."""
        summary, *_ = [
            job.ended(process, prints_summary=i == 0)
            for i, (job, process) in enumerate(zip(self.jobs, processes, strict=True))
        ]
        return summary

    def finish(self) -> dict[str, Any]:
        """Starts all processes, lets them run to their end and returns the summary."""
        with self.started() as processes:
            return self.ended(processes)

    def moment(self) -> str:
        """Returns which of `MOMENTS` it is."""
        if self.jobs[0].saving():
            return "save"
        # The row of a step that is evaluated comes when that is done.
        every, rows = _OPTIONS_OF_SEVERAL["eval_every"], _OPTIONS["log_every"]
        reached = self.reached()
        next_row = min((reached // n + 1) * n for n in (every, rows))
        return "evaluation" if next_row % every == 0 else "step"


def command(images: pathlib.Path, steps: int, seed: int, processes: int = 1) -> list[str]:
    """Returns the command of the job, without --workdir."""
    options = _OPTIONS | {"total_steps": steps, "seed": seed}
    if processes > 1:
        options |= _OPTIONS_OF_SEVERAL
    return [
        sys.executable,
        "-m",
        "vit_jax.main",
        f"--config=configs/pretrain.py:Ti/16,{images}",
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]


def environment(cache: pathlib.Path) -> dict[str, str]:
    """Returns the environment variables of jobs: one CPU device, and a compilation cache."""
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


# ---------------------------------------------------------------------------------------- kills


class Kill(NamedTuple):
    """A kill of a job.

    Attributes:
      name: as in `KILLS`; a SIGKILL counts as `IN_SAVE` if it left a half-written checkpoint.
      training: True if training had begun.
      redone: steps between the newest checkpoint and the last row of metrics.csv.
    """

    name: str
    training: bool
    redone: int


def kill(
    job: Job,
    steps: int,
    drawn: Sequence[Any],
    rng: np.random.Generator,
    startup: float,
    span: float,
) -> tuple[Kill | None, dict[str, Any] | None]:
    """Starts a job and kills it.

    Args:
      steps: length of the job.
      drawn: one of `KILLS`.
      startup: seconds that a start takes; a kill while starting comes within them.
      span: seconds of training within which other kills come.

    Returns:
      The kill, None if the job ended before it came; the summary, None if the job has not ended.

    Raises:
      Failed: the job did not end because of the kill.
    """
    name, *signals = drawn
    with job.started() as process:
        if name != IN_SAVE and rng.random() < STARTING:
            _until(process, job.training, rng.uniform(0, startup))
        else:
            if not _until(process, job.training, _LIMIT) and process.poll() is None:
                raise job.failed(f"No sign of life for {_LIMIT} s")
            _until(process, lambda: False, rng.uniform(0, span))
            if name == IN_SAVE:
                _until(process, job.saving, _LIMIT)
                time.sleep(rng.choice([0, rng.uniform(0, 0.5)]))  # as the save begins, or later
        if process.poll() is not None:
            return None, job.ended(process)
        left = steps - job.reached()
        for i, number in enumerate(signals):
            if i:
                time.sleep(rng.uniform(0, 0.5))
            process.send_signal(number)
        summary = job.ended(process, signals)
        if summary is not None and left > _LAST:
            raise job.failed(f"{name} didn't stop it {left} steps before the end")
    if signals == [signal.SIGKILL]:
        name = IN_SAVE if job.saving() else "SIGKILL"
    training = job.training()
    redone = max(0, job.reached() - job.saved()) if training and summary is None else 0
    return Kill(name, training, redone), summary


def kill_one(
    hosts: Hosts, steps: int, drawn: tuple[int, str], rng: np.random.Generator
) -> tuple[Kill | None, dict[str, Any] | None]:
    """Starts a job of several processes and kills one of them.

    Args:
      hosts: the job.
      steps: length of the job.
      drawn: the number of the process, and one of `MOMENTS`: the first such moment after up to
        `_AHEAD` steps of this start, fewer if the job ends before.

    Returns:
      As `kill`.

    Raises:
      Failed: the other processes did not end as they should.
    """
    number, moment = drawn
    first = hosts.jobs[0]
    with hosts.started() as processes:
        process = processes[0]
        if not _until(process, first.training, _LIMIT) and process.poll() is None:
            raise first.failed(f"No sign of life for {_LIMIT} s")
        saved = first.saved()
        # Early enough for a save, the rarest moment, to come before the end.
        ahead = min(_AHEAD, max(1, steps - saved - _OPTIONS["checkpoint.every"]))
        wanted = saved + rng.integers(ahead)
        _until(process, lambda: hosts.reached() >= wanted, _LIMIT)
        _until(process, lambda: hosts.moment() == moment, _LIMIT)
        _until(process, lambda: False, rng.choice([0, rng.uniform(0, 0.2)]))
        if any(process.poll() is not None for process in processes):
            return None, hosts.ended(processes)
        moment, saved = hosts.moment(), first.saved()
        processes[number].kill()
        for i, (job, process) in enumerate(zip(hosts.jobs, processes, strict=True)):
            if i != number:
                job.wait_after_loss(process, number)
    return Kill(name_of(number, moment), True, max(0, hosts.reached() - saved)), None


def name_of(number: int, moment: str) -> str:
    """Returns the name of the kill of one of several processes."""
    return f"process {number} in {'an' if moment == 'evaluation' else 'a'} {moment}"


def _until(process: subprocess.Popen, condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for a condition; returns False if time is up or the process has ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


# ----------------------------------------------------------------------------------- comparison


def differences(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
    """Yields how two workdirs differ: in the bits of their last checkpoints, and in their rows."""
    step, found = (max(_steps(workdir), default=0) for workdir in (one, other))
    if step != found:
        yield f"the last checkpoint is of step {found}, not {step}"
    elif step:
        last = [workdir / "checkpoints" / str(step) for workdir in (one, other)]
        yield from _different_arrays(*last)
        notes = (json.loads((folder / "metadata" / "metadata").read_text()) for folder in last)
        if different := _different_values(*notes):
            yield f"metadata: {different}"
    tables = (read_rows(workdir) for workdir in (one, other))
    for i, (row, found) in enumerate(itertools.zip_longest(*tables, fillvalue={}), 1):
        if different := _different_values(row, found):
            yield f"row {i} of metrics.csv: {different}"
            return  # after a missing or doubled row, all rows differ


def _different_values(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Returns how two rows or summaries differ, but for their speed; "" if they are equal."""
    keys = {**one, **other}.keys() - {_LEFT_OUT}
    pairs = {key: (one.get(key), other.get(key)) for key in sorted(keys)}
    return ", ".join(f"{key} is {y}, not {x}" for key, (x, y) in pairs.items() if x != y)


def _different_arrays(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
    arrays, found = read_arrays(one), read_arrays(other)
    for name in sorted(arrays.keys() | found.keys()):
        if name not in arrays or name not in found:
            yield f"only {one if name in arrays else other} has {name}"
            continue
        x, y = arrays[name], found[name]
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            yield f"{name} is {y.dtype}{list(y.shape)}, not {x.dtype}{list(x.shape)}"
        elif x.tobytes() != y.tobytes():
            yield f"{name} has other bits in {np.sum(_bits(x) != _bits(y))} of {x.size} values"


def _bits(x: np.ndarray) -> np.ndarray:
    """Returns an array's values as unsigned integers of the same bits: NaN is NaN, 0 isn't -0."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def read_arrays(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint; keys are the item's name and the path in its tree."""
    handler, arrays = ocp.PyTreeCheckpointHandler(), {}
    for item in sorted(checkpoint.iterdir()):
        if not (item / "_METADATA").exists():  # only a tree of arrays has one
            continue
        restore = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree
        )
        tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=restore))
        for path, x in jax.tree.leaves_with_path(tree):
            arrays[item.name + jax.tree_util.keystr(path)] = np.asarray(x)
    return arrays


def read_rows(workdir: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of WORKDIR/metrics.csv, no row if there is no such file."""
    try:
        text = (workdir / "metrics.csv").read_text()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text.splitlines()))


def _steps(workdir: pathlib.Path) -> list[int]:
    folders = (workdir / "checkpoints").glob("*")
    return [int(folder.name) for folder in folders if folder.name.isdigit()]


# ------------------------------------------------------------------------------------- the soak


@dataclasses.dataclass
class Tally:
    """The kills until now, and which were survived.

    Attributes:
      kills: in the order of time.
      survived: number of kills, from the first, whose jobs gave the right results.
      jobs: number of jobs that were compared.
    """

    kills: list[Kill] = dataclasses.field(default_factory=list)
    survived: int = 0
    jobs: int = 0

    def rows(self, names: Collection[str]) -> list[dict[str, Any]]:
        """Returns a row for each kind of kill, by its name, and a last row for all kills."""
        survived = self.kills[: self.survived]

        def row(name, wanted):
            kills = [kill for kill in self.kills if kill.name in wanted]
            return {
                "kill": name,
                "kills": len(kills),
                "in training": sum(kill.training for kill in kills),
                "survived": sum(kill.name in wanted for kill in survived),
                "steps redone": sum(kill.redone for kill in kills),
            }

        return [*(row(name, [name]) for name in names), row("all", names)]


def soak(args: argparse.Namespace, folder: pathlib.Path, tally: Tally) -> None:
    """Runs and kills jobs until the time is up or there were enough kills; counts them in `tally`.

    Raises:
      Failed: a kill was not survived.
    """
    deadline = time.monotonic() + 60 * args.minutes
    rng = np.random.default_rng(args.seed)
    several = args.processes > 1
    kinds = list(itertools.product(range(args.processes), MOMENTS)) if several else KILLS
    drawn = (kinds[i] for _ in itertools.count() for i in rng.permutation(len(kinds)))
    draw(folder / "images")
    images, programs = folder / "images", folder / "programs"
    job = (command(images, args.steps, args.seed, args.processes), environment(programs))

    def new_job(name):
        if several:
            return Hosts(folder / name, args.processes, *job)
        return Job(folder / name, *job)

    undisturbed = new_job("undisturbed")
    start = time.monotonic()
    with undisturbed.started() as running:
        process, first_job = (
            (running[0], undisturbed.jobs[0]) if several else (running, undisturbed)
        )
        _until(process, first_job.training, _LIMIT)
        startup = time.monotonic() - start
        _until(process, lambda: undisturbed.reached() > 0, _LIMIT)  # the first step is compiled
        first_row = time.monotonic()
        _until(process, lambda: undisturbed.reached() == args.steps, _LIMIT)
        span = (time.monotonic() - first_row) / 4  # short enough for several kills a job
        wanted = undisturbed.ended(running)
    _say(f"undisturbed: {startup:.1f} s to start, {4 * span:.1f} s to train")

    def over():
        return time.monotonic() > deadline or len(tally.kills) == args.kills

    while not over():
        disturbed, summary = new_job(f"job_{tally.jobs + 1}"), None
        while summary is None and not over():
            if several:
                event, summary = kill_one(disturbed, args.steps, next(drawn), rng)
            else:
                event, summary = kill(disturbed, args.steps, next(drawn), rng, startup, span)
            if event is not None:
                tally.kills.append(event)
                when = f"after step {disturbed.reached()}" if event.training else "while starting"
                _say(
                    f"job {tally.jobs + 1}, kill {len(tally.kills)}: {event.name} {when}, "
                    f"{event.redone} steps to do again"
                )
        summary = summary or disturbed.finish()
        found = list(differences(undisturbed.workdir, disturbed.workdir))
        summary["checkpoint"] = summary["checkpoint"].replace(
            str(disturbed.workdir), str(undisturbed.workdir)
        )
        if different := _different_values(wanted, summary):
            found.append(f"summary: {different}")
        if found:
            raise Failed(f"{'; '.join(found)}: see {disturbed.folder}")
        tally.jobs += 1
        tally.survived = len(tally.kills)
        _say(f"job {tally.jobs} gave the right results")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.soak`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="of killing jobs")
    parser.add_argument("--kills", type=int, help="stop earlier, after that number of kills")
    parser.add_argument("--processes", type=int, default=1, help="that train a job together")
    parser.add_argument("--steps", type=int, default=300, help="of a job")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and of the jobs")
    parser.add_argument(
        "--workdir", type=pathlib.Path, help="a new folder, which is kept; default: a temporary one"
    )
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args(argv)
    if args.workdir is not None and args.workdir.exists():
        parser.error(f"{args.workdir} is there already: it must be new.")

    # With these handlers, jobs end when this process ends. A shell may set SIGINT to be ignored in
    # the background, and jobs would inherit that; the first handler replaces it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if args.workdir is None:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="vit_jax-soak-"))
    else:
        folder = args.workdir.resolve()
        folder.mkdir(parents=True)
    tally, failure, start = Tally(), None, time.monotonic()
    try:
        soak(args, folder, tally)
    except Failed as error:
        failure = error
    except (KeyboardInterrupt, SystemExit):
        if args.workdir is None:
            shutil.rmtree(folder)
        raise
    if args.workdir is None and failure is None:
        shutil.rmtree(folder)
    names = list(dict.fromkeys(name for name, *_ in KILLS))
    if args.processes > 1:
        names = [name_of(*kind) for kind in itertools.product(range(args.processes), MOMENTS)]
    settings = {"seed": args.seed, "steps": args.steps, "processes": args.processes}
    results = {"jobs compared": tally.jobs, "seconds": round(time.monotonic() - start)}
    about = machine.description("flax", "orbax-checkpoint") | settings | results
    machine.report("Kills survived", tally.rows(names), about, args.json)
    if failure is not None:
        sys.exit(f"\nFailed. {failure}. All files are kept in {folder}.")


if __name__ == "__main__":
    main()
