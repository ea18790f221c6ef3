"""`sdflow plan`: time, device hours, storage, requests and money, before anything runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.output import result, state, table

__all__ = ["register"]

_METHODS = ("PUT", "GET", "HEAD", "LIST", "DELETE")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("plan")(plan)


def plan(
    context: typer.Context,
    images: Annotated[str, typer.Option("--images", metavar="N", help="Pictures: 20000, 1_000_000, 1e6.")],
    edits: Annotated[str, typer.Option("--edits", metavar="N", help="Edits of each picture.")] = "1",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="As the rates call it.")] = "cpu",
    devices: Annotated[str, typer.Option("--devices", metavar="N", help="How many of them.")] = "1",
    workers: Annotated[
        str, typer.Option("--workers", metavar="N", help="Shard tasks at a time; default: one a device.")
    ] = "",
    shard_rows: Annotated[
        str, typer.Option("--shard-rows", metavar="N", help="As SDFLOW_SHARD_ROWS.")
    ] = "1000",
    image_bytes: Annotated[
        str, typer.Option("--image-bytes", metavar="BYTES", help="Mean size; default: as measured.")
    ] = "",
    image_px: Annotated[
        str, typer.Option("--image-px", metavar="PX", help="Side of a square of as many pixels.")
    ] = "",
    failure_rate: Annotated[
        float, typer.Option("--failure-rate", metavar="P", help="Share of shard tasks that fail and retry.")
    ] = 0.0,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", metavar="X", help="Of the device over the measured core: your assumption."),
    ] = None,
    overlapped: Annotated[
        bool, typer.Option("--overlapped", help="Reading, pixels, network and writing at the same time.")
    ] = False,
    host_cores: Annotated[
        str, typer.Option("--host-cores", metavar="N", help="Cores beside a device, with --overlapped.")
    ] = "1",
    processes: Annotated[
        bool, typer.Option("--processes", help="Every worker is a process, as with SDFLOW_RUNNER=ray.")
    ] = False,
    prices: Annotated[str, typer.Option("--prices", metavar="FILE", help="Your price table (TOML).")] = "",
    rates: Annotated[str, typer.Option("--rates", metavar="FILE", help="Your rates (JSON).")] = "",
) -> None:
    """Say what so many pictures take: time, device hours, storage, requests, money. Nothing is run."""
    from sdflow_core.capacity.plan import plan as make
    from sdflow_core.capacity.prices import load_prices
    from sdflow_core.capacity.rates import load_rates
    from sdflow_core.capacity.workload import checked, whole

    counts = {
        "images": images,
        "edits": edits,
        "devices": devices,
        "workers": workers,
        "shard_rows": shard_rows,
        "image_bytes": image_bytes,
        "image_px": image_px,
        "host_cores": host_cores,
    }
    given: dict[str, object] = {
        name: whole(text, f"--{name.replace('_', '-')}") for name, text in counts.items() if text != ""
    }
    load = checked(
        {
            **given,
            "device": device,
            "failure_rate": failure_rate,
            "speedup": speedup,
            "pipeline": "overlapped" if overlapped else "serial",
            "processes": processes,
        }
    )
    document = make(load, load_rates(rates), load_prices(prices))
    result(state(context), document, lambda: _show(document))


def _show(said: dict[str, Any]) -> None:
    load, money = said["workload"], said["prices"]["currency"]
    stories = {**said["stories"]}
    first = said["total_of"]
    rows = [[name, *_cells(stories[name])] for name in first]
    rows.append(["total", *_cells({**said["total"], "rows": "", "shards": "", "bound_by": "", "source": ""})])
    rows += [[f"({name})", *_cells(one)] for name, one in stories.items() if name not in first]
    columns = ("story", "rows", "shards", "time", "device h", "busy h", "bound by", *_METHODS, "up", "down")
    head = f"{load['images']:,} pictures, {load['edits']} edits each, {load['devices']} x {load['device']}"
    table(head, (*columns, "at rest", money, "source"), rows)
    table(
        "At rest, from pictures to a release",
        ("kind", "bytes"),
        [(kind, _bytes(size)) for kind, size in sorted(said["total"]["stored"].items())],
    )
    bills = [(name, *stories[name]["money"].values()) for name in first]
    bills.append(("total", *said["total"]["money"].values()))
    heads = ("story", *said["total"]["money"])
    table(f"Money, {money}, prices as of {said['prices']['as_of']}", heads, [_amounts(b) for b in bills])
    table("What grows", ("what", "how much"), [(name, _grown(name, n)) for name, n in said["growth"].items()])
    assumed = sorted({name for one in stories.values() for name in one["assumed"]})
    for remark in said["remarks"]:
        print(remark)
    print(f"Assumed rates: {', '.join(assumed) or 'none'}. Prices: {said['prices']['remark'] or 'your own'}.")
    print("Stories in brackets come later, each once, and are not in the total. --json has every rate.")


def _cells(one: dict[str, Any]) -> list[object]:
    return [
        _count(one["rows"]),
        _count(one["shards"]),
        _time(one["seconds"]),
        f"{one['device_hours']:,.2f}",
        f"{one['device_busy_hours']:,.2f}",
        one["bound_by"],
        *(_count(one["requests"].get(method, 0)) for method in _METHODS),
        _bytes(one["up_bytes"]),
        _bytes(one["down_bytes"]),
        _bytes(sum(one["stored"].values())),
        f"{one['money']['total']:,.2f}",
        one["source"],
    ]


def _grown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{story} {_time(seconds)}" for story, seconds in value.items())
    if name.endswith("_bytes"):
        return _bytes(value)
    return _time(value) if name.endswith("_seconds") else f"{value:,}"


def _amounts(row: tuple[Any, ...]) -> list[object]:
    return [row[0], *(f"{value:,.2f}" for value in row[1:])]


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if isinstance(value, float) else ""


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError  # the loop has returned


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
