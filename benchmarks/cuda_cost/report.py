"""Results as Markdown tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .extrapolate import Result
from .update import PARTS


def tables(results: Sequence[Result], operations: int = 0) -> str:
    """What an update takes, its time by part, what waits, and the `operations` most expensive operations of each."""
    card = results[0].card
    modelled = [result for result in results if result.costs]
    lines = [f"Modelled for an {card.name}, not measured. Nominal figures: {card.source}.", ""]
    lines += _table(
        ("", "images/s", "ms", "share of peak, plain", "done", "TFLOP", "GB", "kernels", "host ms", "peak memory GB"),
        [_summary(result) for result in modelled],
    )
    lines += ["", "Milliseconds on the device:", ""]
    lines += _table(
        ("", *PARTS, "total"),
        [
            (result.name, *(_ms(result.of_part(part).seconds) for part in PARTS), _ms(result.total.seconds))
            for result in modelled
        ],
    )
    for result in results:
        lines += [f"\n{result.name}: the host waits for the device: {wait}" for wait in result.synchronizations]
        if operations:
            lines += ["", f"{result.name}, the most expensive operations:", "", *_most_expensive(result, operations)]
    return "\n".join(lines)


def as_dict(result: Result) -> dict[str, Any]:
    """Everything but the single operations, in seconds, bytes and FLOPs."""
    total = result.total
    return {
        "case": result.name,
        "card": result.card.name,
        "images_per_second": result.images / result.seconds if result.seconds else None,
        "device_seconds": total.seconds,
        "host_seconds": result.host_seconds,
        "kernels": round(total.kernels),
        "bytes": total.bytes,
        "flops": total.flops,
        "plain_flops": result.plain_flops,
        "peak_memory": result.peak,
        "seconds_by_part": {part: result.of_part(part).seconds for part in PARTS},
        "kernels_by_part": {part: round(result.of_part(part).kernels) for part in PARTS},
        "synchronizations": result.synchronizations,
    }


def _summary(result: Result) -> tuple[str, ...]:
    total, plain = result.total, result.plain_flops
    return (
        result.name,
        f"{result.images / result.seconds:,.0f}",
        _ms(result.seconds),
        "" if plain is None else f"{result.share_of_peak(plain):.1%}",
        f"{result.share_of_peak(total.flops):.1%}",
        f"{total.flops / 1e12:.1f}",
        f"{total.bytes / 1e9:,.0f}",
        f"{total.kernels:,.0f}",
        _ms(result.host_seconds),
        f"{result.peak / 1e9:.1f}" + (" (more than the card has)" if result.peak > result.card.memory else ""),
    )


def _most_expensive(result: Result, count: int) -> list[str]:
    ordered = sorted(result.costs.items(), key=lambda item: -item[1].seconds)[:count]
    return _table(
        ("part", "operation", "ms", "GB", "TFLOP", "kernels"),
        [
            (
                part,
                f"`{name}`",
                _ms(cost.seconds),
                f"{cost.bytes / 1e9:.1f}",
                f"{cost.flops / 1e12:.2f}",
                f"{cost.kernels:.0f}",
            )
            for (part, name), cost in ordered
        ],
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
