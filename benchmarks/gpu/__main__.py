"""Runs `python -m benchmarks.gpu`: all parts, one after the other, within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import benchmarks.gpu
from benchmarks.gpu import result

# Seconds that each part may take.
PARTS = {
    "device": 30,
    "numerics": 60,
    "speed": 190,
    "options": 120,  # not among the default parts
    "loop": 125,
    "memory": 80,
}
_DEFAULT = [name for name in PARTS if name != "options"]


def run_part(name: str, args, seconds: float) -> str:
    """Runs a part; returns "ok", or why there is no more of it."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}", f"--out={args.out}"]
    command += [f"--seconds={seconds:.0f}", *(["--smoke"] if args.smoke else [])]
    log = pathlib.Path(args.out, f"{name}.log")
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            status = process.wait(seconds + 5)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # its contenders, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status == 0:
        return "ok"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    reason = "its time was over" if status is None else f"exit status {status}"
    return f"{reason}: {lines[-1][:300] if lines else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 1 if one failed."""
    parser = result.parser(benchmarks.gpu.__doc__)
    parser.prog = "python -m benchmarks.gpu"
    parser.set_defaults(seconds=420)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=_DEFAULT)
    args = parser.parse_args(argv)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    begin, status = time.monotonic(), {}
    for name in args.parts:
        left = args.seconds - (time.monotonic() - begin)
        start = time.monotonic()
        limit = left if args.smoke else min(PARTS[name], left)
        ended = run_part(name, args, limit) if left > 10 else "no time was left"
        status[name] = {"ended": ended, "seconds": round(time.monotonic() - start, 1)}
        print(f"{name}: {status[name]}", flush=True)
        whole = {"parts": status, **{p: result.read_tables(args.out, p) for p in args.parts}}
        (out / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    text = result.markdown(args.out, args.parts)
    (out / "gpu.md").write_text(text, encoding="utf-8")
    print("\n" + text)
    return int(any(part["ended"] != "ok" for part in status.values()))


if __name__ == "__main__":
    sys.exit(main())
