"""Kills a running job at random instants, over and over: does it end as if nothing had happened?

    python -m benchmarks.soak --minutes=10 --seed=0 --json=soak.json

A tiny job with all that is random turned on trains once undisturbed. Then the same job, in other
workdirs, is started, killed and started again until it ends: SIGKILL at any time or in the middle
of a save, SIGTERM, SIGINT, and a second signal while the first is still being answered. Some kills
come while the job is starting. Each job must end as the undisturbed one did, bit for bit: all
of the last checkpoint, the rows of metrics.csv and the summary, but for images per second. The
kills of such a job were survived. When the time is up, the last job runs to its end.

It fails, with exit status 1, where an end differs, or a start ends with another status than 0 or
that of its signal, prints a traceback, shows no sign of life, outlives a signal by a minute or goes
on to the end in spite of it. Two kinds of tracebacks are as they should be: that of Ctrl-C before
training, and what a second signal leaves of a save. A failure ends it all: it names the log and
keeps everything.
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
# What kills are drawn from, without putting back: a name and the signals to send.
KILLS = (
    *[("SIGKILL", signal.SIGKILL)] * 4,
    *[(IN_SAVE, signal.SIGKILL)] * 3,
    *[("SIGTERM", signal.SIGTERM)] * 2,
    *[("SIGINT", signal.SIGINT)] * 2,
    ("second signal", signal.SIGTERM, signal.SIGKILL),
    ("second signal", signal.SIGTERM, signal.SIGTERM),
    ("second signal", signal.SIGINT, signal.SIGINT),
)
STARTING = 0.2  # share of kills that come before training begins, or as it does

_LAST = 10  # steps at a job's end in which a signal may come too late
# Rows, tests and checkpoints come after numbers of steps that have no divisor in common.
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
_REPOSITORY = pathlib.Path(__file__).parents[1]
_LIMIT = 600  # seconds until a sign of life, or the end of a job
_GRACE = 60  # seconds to end in, after a signal
_LEFT_OUT = "images_per_second"


class Failed(Exception):
    """A kill was not survived: says how, and where to look."""


# ----------------------------------------------------------------------------------------- jobs


class Job:
    """A command that is started again and again; FOLDER/start_001.log… keep what it says.

    Args:
      folder: a new one; the command's workdir is FOLDER/run.
      command: that trains, without --workdir.
      env: its environment.
    """

    def __init__(self, folder: pathlib.Path, command: Sequence[str], env: dict[str, str]):
        folder.mkdir()
        self.folder, self.workdir = folder, folder / "run"
        self._command, self._env = [*command, f"--workdir={self.workdir}"], env
        self._starts = 0

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen]:
        """Starts the command; whatever happens, its process doesn't outlive the context."""
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
        """Tells whether the process of this start has begun to write metrics.csv."""
        return _stamp(self._table) != self._old_table

    def saving(self) -> bool:
        """Tells whether a checkpoint is half written, by the process of this start."""
        return bool(self._partial() - self._old_partial)

    def reached(self) -> int:
        """Returns the step of the last row of metrics.csv, 0 where there is none."""
        rows = read_rows(self.workdir)
        return int(rows[-1]["step"]) if rows else 0

    def saved(self) -> int:
        """Returns the step of the newest whole checkpoint, 0 where there is none."""
        return max(_steps(self.workdir), default=0)

    def finish(self) -> dict[str, Any]:
        """Starts the command, lets it run to its end and returns its summary."""
        with self.started() as process:
            return self.ended(process)

    def ended(
        self, process: subprocess.Popen, signals: Collection[int] = ()
    ) -> dict[str, Any] | None:
        """Waits for the end of a process; returns the summary, None where a signal came before.

        Args:
          signals: that it was sent: it may die of them, and has to end soon.

        Raises:
          Failed: it takes longer, ends with an error, prints a traceback or, without a signal, no
            summary.
        """
        seconds = _GRACE if signals else _LIMIT
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise self.failed(f"It still runs after {seconds} s") from None
        if process.returncode not in {0, *(-number for number in signals)}:
            raise self.failed(f"Exit status {process.returncode}")
        log = self._log.read_text()
        tracebacks = log.count("Traceback (most recent call last)")
        tracebacks -= len(re.findall(r"^KeyboardInterrupt\b", log, re.MULTILINE))
        if tracebacks > 0 and len(signals) < 2:
            raise self.failed("A traceback")
        if not said and not signals:
            raise self.failed("No summary")
        return json.loads(said) if said else None

    def failed(self, what: str) -> Failed:
        """Returns the error that says what happened and where the log of this start is."""
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
    """Returns what changes when a file or folder is written, None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def draw(folder: pathlib.Path) -> None:
    """Writes the data: JPEGs of noise round one colour a class, FOLDER/CLASS/*.jpg."""
    colours = {"blue": (60, 120, 200), "green": (90, 220, 90), "red": (200, 60, 60)}
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(16):
            pixels = np.clip(colour + rng.normal(0, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))


def command(images: pathlib.Path, steps: int, seed: int) -> list[str]:
    """Returns the command of the job, without --workdir."""
    options = _OPTIONS | {"total_steps": steps, "seed": seed}
    return [
        sys.executable,
        "-m",
        "vit_jax.main",
        f"--config=configs/pretrain.py:Ti/16,{images}",
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]


def environment(cache: pathlib.Path) -> dict[str, str]:
    """Returns the environment of jobs: one CPU device, compiled programs kept in a folder."""
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


# ---------------------------------------------------------------------------------------- kills


class Kill(NamedTuple):
    """What happened to a job.

    Attributes:
      name: as in `KILLS`; SIGKILLs are told apart by whether they left half a checkpoint.
      training: whether training had begun.
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
      steps: of the whole job.
      drawn: one of `KILLS`.
      startup: seconds a start takes: a kill while starting comes within them.
      span: seconds of training within which other kills come.

    Returns:
      The kill, None where the job ended before it came; the summary, if the job has ended.

    Raises:
      Failed: the job did something else than end because of it.
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
                time.sleep(rng.choice([0, rng.uniform(0, 0.5)]))  # as it begins, or later in it
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


def _until(process: subprocess.Popen, so: Callable[[], bool], seconds: float) -> bool:
    """Waits until something is so; False where time is up or the process has ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if so():
            return True
        time.sleep(0.002)
    return False


# ----------------------------------------------------------------------------------- comparison


def differences(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
    """Yields how the results in two workdirs differ: last checkpoints, bit by bit, and rows."""
    step, found = (max(_steps(workdir), default=0) for workdir in (one, other))
    if step != found:
        yield f"the last checkpoint is of step {found}, not {step}"
    elif step:
        last = [workdir / "checkpoints" / str(step) for workdir in (one, other)]
        yield from _different_arrays(*last)
        notes = (json.loads((folder / "metadata" / "metadata").read_text()) for folder in last)
        if told := _different_values(*notes):
            yield f"metadata: {told}"
    tables = (read_rows(workdir) for workdir in (one, other))
    for i, (row, found) in enumerate(itertools.zip_longest(*tables, fillvalue={}), 1):
        if told := _different_values(row, found):
            yield f"row {i} of metrics.csv: {told}"
            return  # a row that is missing or doubled makes all that follow differ


def _different_values(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Returns how a row or a summary differs from another; "" where only its speed does."""
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
    """Returns all arrays of a checkpoint, by the item's name and the path in its tree."""
    handler, arrays = ocp.PyTreeCheckpointHandler(), {}
    for item in sorted(checkpoint.iterdir()):
        if not (item / "_METADATA").exists():  # of a tree of arrays
            continue
        restore = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree
        )
        tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=restore))
        for path, x in jax.tree.leaves_with_path(tree):
            arrays[item.name + jax.tree_util.keystr(path)] = np.asarray(x)
    return arrays


def read_rows(workdir: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of WORKDIR/metrics.csv, none where it isn't there."""
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
    """What came of it so far.

    Attributes:
      kills: in their order.
      survived: how many of them, from the first, belong to jobs that ended as they should.
      jobs: that were compared.
    """

    kills: list[Kill] = dataclasses.field(default_factory=list)
    survived: int = 0
    jobs: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each kind of kill, and one for all."""
        names = dict.fromkeys(name for name, *_ in KILLS)
        survived = self.kills[: self.survived]

        def row(name, wanted):
            of_it = [kill for kill in self.kills if kill.name in wanted]
            return {
                "kill": name,
                "kills": len(of_it),
                "in training": sum(kill.training for kill in of_it),
                "survived": sum(kill.name in wanted for kill in survived),
                "steps redone": sum(kill.redone for kill in of_it),
            }

        return [*(row(name, [name]) for name in names), row("all", names)]


def soak(args: argparse.Namespace, folder: pathlib.Path, tally: Tally) -> None:
    """Runs and kills jobs until the time is up or there were enough kills; counts in `tally`.

    Raises:
      Failed: a kill wasn't survived.
    """
    deadline = time.monotonic() + 60 * args.minutes
    rng = np.random.default_rng(args.seed)
    drawn = (KILLS[i] for _ in itertools.count() for i in rng.permutation(len(KILLS)))
    draw(folder / "images")
    job = (command(folder / "images", args.steps, args.seed), environment(folder / "programs"))

    whole = Job(folder / "undisturbed", *job)
    start = time.monotonic()
    with whole.started() as process:
        _until(process, whole.training, _LIMIT)
        startup = time.monotonic() - start
        wanted = whole.ended(process)
    span = (time.monotonic() - start - startup) / 4  # so that a job gets on between two kills
    _say(f"undisturbed: {startup:.1f} s to start, {4 * span:.1f} s to train")

    def over():
        return time.monotonic() > deadline or len(tally.kills) == args.kills

    while not over():
        disturbed, summary = Job(folder / f"job_{tally.jobs + 1}", *job), None
        while summary is None and not over():
            event, summary = kill(disturbed, args.steps, next(drawn), rng, startup, span)
            if event is not None:
                tally.kills.append(event)
                when = f"after step {disturbed.reached()}" if event.training else "while starting"
                _say(
                    f"job {tally.jobs + 1}, kill {len(tally.kills)}: {event.name} {when}, "
                    f"{event.redone} steps to do again"
                )
        summary = summary or disturbed.finish()
        found = list(differences(whole.workdir, disturbed.workdir))
        summary["checkpoint"] = summary["checkpoint"].replace(
            str(disturbed.workdir), str(whole.workdir)
        )
        if told := _different_values(wanted, summary):
            found.append(f"summary: {told}")
        if found:
            raise Failed(f"{'; '.join(found)}: see {disturbed.folder}")
        tally.jobs += 1
        tally.survived = len(tally.kills)
        _say(f"job {tally.jobs} ended as it should")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.soak`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10, help="to kill for")
    parser.add_argument("--kills", type=int, help="after which it ends earlier")
    parser.add_argument("--steps", type=int, default=300, help="of a job")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and of the jobs")
    parser.add_argument(
        "--workdir", type=pathlib.Path, help="a new folder, which is kept; else a temporary one"
    )
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args(argv)
    if args.workdir is not None and args.workdir.exists():
        parser.error(f"{args.workdir} is there already: it must be new.")

    # Handlers of our own, so that jobs are ended with us, and so that they don't inherit a shell's
    # wish to ignore SIGINT in the background.
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
    settings = {"seed": args.seed, "steps": args.steps}
    results = {"jobs compared": tally.jobs, "seconds": round(time.monotonic() - start)}
    about = machine.description("flax", "orbax-checkpoint") | settings | results
    machine.report("Kills survived", tally.rows(), about, args.json)
    if failure is not None:
        sys.exit(f"\nFailed. {failure}. All of it is kept in {folder}.")


if __name__ == "__main__":
    main()
