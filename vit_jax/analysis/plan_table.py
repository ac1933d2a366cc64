"""The report of a plan as lines of text."""

from __future__ import annotations

import math
from typing import Any


def format_plan(report: dict[str, Any]) -> list[str]:
    """Returns a heading, and a line for each fact of a report.

    Args:
      report: what `planning.plan` returns.
    """
    rows = [*_step_rows(report), *_time_rows(report)]
    rows.append(("compiled in", f"{report['compile_seconds']:.0f} s"))
    rows += map(_suggestion_row, report["suggestions"])
    width = max(len(name) for name, _ in rows) + 2
    heading = (
        f"{report['variant']} on {report['topology']} ({report['chips']} x {report['device']}): "
        f"{report['batch_size']} images a step, {report['parallel']}, {report['dtype']}"
    )
    return [heading, *(f"{name:<{width}}{value}" for name, value in rows)]


def _step_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns rows on the size of a step: parameters, FLOPs, memory, collectives."""
    count, trained = report["parameters"], report["trained_parameters"]
    rows = [
        ("parameters", f"{count:,}" + f", of which {trained:,} are trained" * (trained < count)),
        ("FLOPs an image", f"{with_prefix(report['flops_per_image'])}, three forward passes"),
        ("FLOPs a step", with_prefix(report["flops_per_step"])),
    ]
    if report["fits"]:
        compiled = with_prefix(report["compiled_flops_per_step"])
        rows.append(("as compiled", f"{compiled} ({report['compiled_flops_ratio'] - 1:+.1%})"))
    fits = "fits" if report["fits"] else "does not fit"
    total, memory, estimated = (
        _with_binary_prefix(report[f"{x}_bytes"]) for x in ("total", "memory", "estimated")
    )
    rows += [
        ("state and batch", f"{_with_binary_prefix(report['arguments_bytes'])} a chip"),
        ("temporaries", f"{_with_binary_prefix(report['temporaries_bytes'])} a chip"),
        ("memory", f"{total} of {memory} a chip: {fits}"),
        ("estimated", f"{estimated} a chip, with accumulate_steps={report['accumulate_steps']}"),
    ]
    for kind, found in (report["collectives"] or {}).items():
        size, sent = with_prefix(found["bytes"]), with_prefix(found["sent"])
        rows.append((kind, f"{found['count']}, of {size}B; a chip sends {sent}B"))
    return rows


def _time_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns rows on the time of a step and of the run; none if the step doesn't fit."""
    if not report["fits"]:
        return []
    peak = report["intensity_of_peak"]
    limit = f"; bound by memory below {peak:,.0f}" if peak else ""
    rows = [("intensity", f"{report['intensity']:,.0f} FLOPs a byte accessed{limit}")]
    times = report["step_seconds"]
    if times is None:
        message = f"no estimate: the peaks of a {report['device']} are unknown"
        return [*rows, ("step", message)]
    parts = ", ".join(f"{k} {1e3 * v:,.1f}" for k, v in times.items() if k != "step")
    hours, chip_hours = report["run_hours"], report["run_chip_hours"]
    return [
        *rows,
        ("step, roofline", f"{1e3 * times['step']:,.1f} ms ({parts})"),
        ("images/s", f"{report['images_per_second']:,.0f}"),
        ("run", f"{report['total_steps']:,} steps: {hours:,.2f} h, {chip_hours:,.1f} chip-h"),
    ]


def _suggestion_row(found: dict[str, Any]) -> tuple[str, str]:
    change = " ".join(f"--config.{key}={value}" for key, value in found["change"].items())
    total = f", {_with_binary_prefix(found['total_bytes'])} a chip" if found["total_bytes"] else ""
    how = "compiled" if found["verified"] else "estimated; --suggest compiles it"
    name = "largest batch" if "batch_size" in found["change"] else "may fit"
    return name, f"{change}{total} ({how})"


def with_prefix(number: float) -> str:
    """Returns a number with four digits, a space and its SI prefix, such as "1.234 k"."""
    power = min(5, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**power:.4g} {'kMGTP'[power - 1] if power else ''}"


def _with_binary_prefix(size: float) -> str:
    """Returns a number of bytes with four digits and its unit, such as "1.5 GiB"."""
    power = min(3, int(math.log2(max(size, 1)) // 10))
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
