"""How runs answer to Ctrl-C and SIGTERM: what they say, how they end, and what they leave."""

import contextlib
import fcntl
import hashlib
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from conftest import REPOSITORY, environment

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.checkpoints.manager import CheckpointManager
from vit_jax.jobs import signals as signals_file
from vit_jax.jobs import train as train_file
from vit_jax.jobs.signals import Interrupted, StopSignals, watch_signals
from vit_jax.jobs.sweep import sweep
from vit_jax.jobs.train import train

STOPS = [signal.SIGINT, signal.SIGTERM]


def send(number):
    """Sends a signal to this process, and waits until the thread that reads signals has it."""
    os.kill(os.getpid(), number)
    time.sleep(0.5)


def test_a_signal_is_seen_while_the_main_thread_runs_c_code():
    """OpenSSL's loop doesn't return for a signal, unlike Python's sleep."""
    seen = []
    sender = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    with watch_signals(
        (signal.SIGUSR1,), lambda number: seen.append((number, time.monotonic() - begin))
    ):
        begin = time.monotonic()
        sender.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)
        seconds = time.monotonic() - begin
        ((number, at),) = seen
    assert number == signal.SIGUSR1
    assert seconds > 0.6 and at < seconds - 0.2


def test_the_inner_context_gets_the_signals_and_leaves_the_outer_as_it_was():
    before = signal.getsignal(signal.SIGUSR1)
    inner, outer = [], []
    with watch_signals((signal.SIGUSR1,), outer.append):
        with watch_signals((signal.SIGUSR1,), inner.append):
            send(signal.SIGUSR1)
        assert (len(inner), len(outer)) == (1, 0)
        send(signal.SIGUSR1)
    assert (len(inner), len(outer)) == (1, 1)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    ("asked", "number", "said"),
    [
        (1, signal.SIGINT, "finishing step 2, saving; press Ctrl-C again to stop now\n"),
        (2, signal.SIGTERM, "finishing step 3, evaluating, saving; send SIGTERM again to stop now"),
        (6, signal.SIGINT, "saving the last step; press Ctrl-C again to stop now\n"),
    ],
)
def test_what_is_said_is_what_is_done(capsys, asked, number, said):
    """After six steps, of which the third and the last are evaluated."""
    with StopSignals(1, 6, lambda step: step in (3, 6)) as signals:
        signals.listen()
        for step in range(1, asked + 1):
            assert signals.received(step) is None
        send(number)
        assert signals.received(asked + 1) == signals.number == number
        assert said in capsys.readouterr().err


def test_without_stderr_nothing_is_said_on_stdout(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with StopSignals(1, 6, lambda step: False) as signals:
        signals.listen()
        send(signal.SIGTERM)
        assert signals.received(1) == signal.SIGTERM
    assert capsys.readouterr().out == ""


def test_a_second_signal_ends_the_process_but_not_at_once(capsys, monkeypatch):
    """`timeout` sends two signals for one stop: to the process, and to its group."""
    ended = []
    monkeypatch.setattr(signals_file, "exit_at_once", lambda number, _: ended.append(number))
    with StopSignals(1, 6, lambda step: False) as signals:
        signals.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        send(signal.SIGTERM)
        assert ended == [] and capsys.readouterr().err.count("saving") == 1
        time.sleep(0.6)  # since the thread that reads signals had the first one
        send(signal.SIGINT)
        assert ended == [signal.SIGINT] and signals.number == signal.SIGTERM


def test_before_the_first_step_signals_are_what_they_are_outside():
    outer = []
    with watch_signals(STOPS, outer.append), StopSignals(1, 6, lambda step: False) as signals:
        send(signal.SIGTERM)
    assert outer == [signal.SIGTERM] and signals.number is None


@pytest.mark.parametrize("in_thread", [False, True])
def test_several_processes_agree_on_a_signal_also_in_a_thread(monkeypatch, in_thread):
    """The service is told after the first step; another process got Ctrl-C."""
    sync = signals_file.multihost_utils
    monkeypatch.setattr(signals_file.jax, "process_count", lambda: 2)
    monkeypatch.setattr(signals_file, "_preemption_service", contextlib.nullcontext)
    monkeypatch.setattr(sync, "reached_preemption_sync_point", lambda step: step == 2)
    monkeypatch.setattr(sync, "process_allgather", lambda own: [own, int(signal.SIGINT)])
    handler = signal.getsignal(signal.SIGTERM)
    found = []

    def run():
        with StopSignals(1, 6, lambda step: False) as signals:
            found.extend(signals.received(step) for step in (1, 2))
        found.append(signal.getsignal(signal.SIGTERM))

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
        signal.signal(signal.SIGTERM, handler)
    assert found == [None, signal.SIGINT, handler if in_thread else signal.SIG_DFL]


CLOSED = """
import os, signal, sys, time
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
os.close(writer)
{}
time.sleep(20)
"""
SEND = "os.kill(os.getpid(), signal.{})"
EXIT = f"""
from vit_jax.cli.errors import exit_at_signals
with exit_at_signals("Stopped"):
    {SEND}
    time.sleep(20)
"""
RAISED = """
from vit_jax.cli.errors import exit_at_signals
with exit_at_signals("Stopped"):
    raise KeyboardInterrupt
"""
AGAIN = f"""
from vit_jax.jobs.signals import StopSignals
with StopSignals(1, 6, lambda step: False) as signals:
    signals.listen()
    for _ in range(2):
        {SEND}
        time.sleep(1)
"""
BAR = """
from tqdm import tqdm
from vit_jax.cli.environment import start_logging
start_logging()
for _ in tqdm(range(3), mininterval=0, file=sys.stderr):
    pass
os._exit(130)
"""
HOOK = f"""
from vit_jax.cli.interrupts import end_quietly_at_ctrl_c
end_quietly_at_ctrl_c()
{SEND}
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param(code.format(name), 128 + number, id=f"{what}-{name}")
        for what, code, name, number in [
            ("first", EXIT, "SIGINT", 2),
            ("first", EXIT, "SIGTERM", 15),
            ("second", AGAIN, "SIGINT", 2),
            ("second", AGAIN, "SIGTERM", 15),
            ("raised", RAISED, "", 2),
            ("hook", HOOK, "SIGINT", 2),
            ("bar", BAR, "", 2),
        ]
    ],
)
def test_signals_end_a_command_whose_stderr_nobody_reads(code, status):
    """Ctrl-C in `COMMAND 2>&1 | tee log` ends tee, too."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSED.format(code)], cwd=REPOSITORY, env=environment(), timeout=60
    )
    assert done.returncode == status


@contextlib.contextmanager
def at(monkeypatch, where, number):
    """A signal comes while a run does something: its last step's evaluation, or a save."""
    owner, name = {"evaluation": (train_file, "measure"), "save": (CheckpointManager, "save")}[
        where
    ]
    original = getattr(owner, name)

    def signalled(*args):
        send(number)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        yield


@pytest.mark.parametrize("where", ["evaluation", "save"])
def test_a_run_that_is_complete_all_the_same_says_its_result(
    settings, tmp_path, monkeypatch, where
):
    settings.update(total_steps=2, eval_every=0)
    settings.checkpoint.every = 0
    with at(monkeypatch, where, signal.SIGTERM), pytest.raises(Interrupted) as stopped:
        train(settings, tmp_path / "stopped")
    assert stopped.value.number == signal.SIGTERM
    wanted = train(settings, tmp_path / "whole")
    for key in ("step", "test_loss", "test_accuracy"):
        assert stopped.value.summary[key] == wanted[key]


@pytest.mark.parametrize("where", ["evaluation", "save"])
def test_a_sweep_stops_before_its_next_run(settings, tmp_path, monkeypatch, where):
    settings.update(job="sweep", total_steps=2, eval_every=0)
    settings.checkpoint.every = 0
    settings.sweep.lr = (0.01, 0.02)
    with at(monkeypatch, where, signal.SIGINT), pytest.raises(Interrupted) as stopped:
        sweep(settings, tmp_path)
    assert stopped.value.number == signal.SIGINT and stopped.value.summary is None
    assert (tmp_path / "lr_0.01" / "summary.json").exists()
    assert not (tmp_path / "lr_0.02").exists()
    table = (tmp_path / "lr_0.01" / "metrics.csv").read_text()
    sweep(settings, tmp_path)
    assert (tmp_path / "lr_0.01" / "metrics.csv").read_text() == table
    assert (tmp_path / "best" / "summary.json").exists()


# ------------------------------------------------------------------------- commands in a terminal


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command):
        self._keys, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # Linux's way to say that the process has ended
            while content := os.read(self._keys, 65536):
                self.text += content.decode(errors="replace")

    def wait_for(self, pattern, seconds=150):
        """Returns the match of a pattern as soon as it is in the text, and the seconds it took."""
        begin = time.monotonic()
        while not (found := re.search(pattern, self.text)):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < begin + seconds, self.text
            time.sleep(0.005)
        return found, time.monotonic() - begin

    def press_ctrl_c(self):
        """Does what the terminal does: the whole process group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self):
        """Returns the exit status."""
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=5)
        return status


@pytest.fixture
def terminal():
    """Returns a function that starts a command in a terminal; it ends with the test."""
    started = []

    def start(command):
        started.append(Terminal(command))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def nano(image_folder, workdir, *options):
    """Trains Nano/8 in steps of a few tenths of a second."""
    return [
        *(
            sys.executable,
            "-m",
            "vit_jax.main",
            f"--config=configs/pretrain.py:Nano/8,{image_folder}",
        ),
        *("--config.data.image_size=96", f"--workdir={workdir}"),
        *("--config.batch_size=64", "--config.eval_batch_size=16", "--config.total_steps=100000"),
        *("--config.eval_every=0", "--config.checkpoint.every=0", *options),
    ]


BAR = r"(\d+)/100000 \["


@pytest.mark.slow
def test_ctrl_c_saves_a_run_whose_output_nobody_reads(image_folder, tmp_path):
    process = subprocess.Popen(
        nano(image_folder, tmp_path, "--config.log_every=1"),
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while "step/s" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert read_checkpoint(tmp_path).step > 1


@pytest.mark.slow
def test_ctrl_c_answers_within_a_second_and_ends_within_two_steps(terminal, image_folder, tmp_path):
    shown = terminal(nano(image_folder, tmp_path))
    shown.wait_for(r" 3/100000 \[")
    shown.press_ctrl_c()
    answer, seconds = shown.wait_for(r"finishing step (\d+), saving; press Ctrl-C again .*now")
    assert seconds < 1
    assert shown.end() == 130

    last, before = int(answer[1]), shown.text[: answer.start()]
    at_answer = [int(found) for found in re.findall(BAR, before)]
    assert last - 2 <= at_answer[-1] < last  # finished steps, while two more may be on the devices
    assert read_checkpoint(tmp_path).step == last
    counts = [int(found) for found in re.findall(BAR, shown.text)]
    assert counts == sorted(counts) and counts[-1] == last
    # The line is whole: nothing stands before it, and the bar goes on below.
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[A-Z]", "", shown.text))
    assert answer[0] in [line.strip() for line in lines]
    assert lines[-2] == f"Stopped; the same command goes on from what {tmp_path} holds."


@pytest.mark.parametrize(
    "command",
    ["main", "predict", "visualize", "convert", "plan", "export", "data", "cost", "demo"],
)
def test_ctrl_c_has_no_traceback_while_a_command_imports_the_rest(command):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", f"vit_jax.{command}", "--help"],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stderr.readline, "")
    while "vit_jax.cli.interrupts" not in next(lines):
        pass
    while "numpy" not in next(lines):
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped." in errors and "Traceback" not in errors


def test_ctrl_c_ends_predict_without_a_traceback(terminal):
    """It waits for names of images."""
    command = [sys.executable, "-X", "importtime", "-m", "vit_jax.predict"]
    shown = terminal([*command, "checkpoints/quickstart", "-"])
    shown.wait_for(r"\| vit_jax\.inference\.classifier")
    time.sleep(1)
    shown.press_ctrl_c()
    assert shown.end() == 130
    assert "Stopped." in shown.text and "Traceback" not in shown.text


def test_an_interrupt_that_the_garbage_collector_drops_comes_again():
    """Python prints an exception in such a callback, and goes on."""
    program = """
import gc, os, signal, time
from vit_jax.cli.interrupts import end_quietly_at_ctrl_c
end_quietly_at_ctrl_c()
def drop(phase, info):
    if phase == "stop":
        gc.callbacks.clear()
        os.kill(os.getpid(), signal.SIGINT)
gc.callbacks.append(drop)
gc.collect()
try:
    time.sleep(30)
finally:
    print("cleaned up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "cleaned up\n")
    assert done.stderr == "\nStopped.\n"
