"""Nights on an object store that are killed, disturbed or left without their server, and what is left then.

`python -m tests.crashes STORE PHOTOS ROWS` prepares a store with models and an editor that can do little, and
photographs: in a process of its own, because Prefect reads its settings once a process.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdflow_core.records.leases import leases
from tests.fault_proxy import fault_proxy
from tests.nights import (
    ROOT,
    copy_store,
    kill_once,
    night,
    orphans_after_gc,
    prepare,
    remove_store,
    start_night,
    unnamed_shards,
    whole,
    write_people,
    write_policy,
)
from tests.s3_server import S3Server

DATASET = "few"


@dataclass(frozen=True)
class Scene:
    """A store before its night, and how the undisturbed night ended.

    Attributes:
        server: Where it lies; the photographs are in the bucket `faces`, the stores in `store`.
        prefix: Of everything in both buckets.
        policy: File of the night; nights run in its folder.
        shard_rows: Rows of a shard.
        digests: After the undisturbed night.
        seconds: That it took.
    """

    server: S3Server
    prefix: str
    policy: Path
    shard_rows: int
    digests: dict[str, str]
    seconds: float

    def fresh(self, name: str) -> str:
        """A copy of the store as it was before the night."""
        return copy_store(f"s3://store/{self.prefix}/base", f"s3://store/{self.prefix}/{name}")

    def night(self, store: str) -> dict[str, Any]:
        """One undisturbed night."""
        return night(store, self.policy, self.shard_rows)

    def end(self, store: str) -> dict[str, Any]:
        """What is left at the end, compared with the undisturbed night; removes the store."""
        digests, wrong = whole(store, DATASET)
        unnamed = len(unnamed_shards(store))
        facts = {
            "identical": digests == self.digests,
            "rows_lost_or_doubled": wrong,
            "unnamed_shards": unnamed,
            "orphans_after_gc": orphans_after_gc(store),
        }
        assert whole(store, DATASET)[0] == digests, "gc removed what is named"
        remove_store(store)
        return facts


def make_scene(server: S3Server, work: Path, prefix: str, rows: int, shard_rows: int) -> Scene:
    """Prepares a store, and runs the undisturbed night in a copy of it.

    The environment must name the server and a Prefect server.
    """
    local, photos = work / "base", work / "photos"
    words = [sys.executable, "-m", "tests.crashes", str(local), str(photos), str(rows)]
    subprocess.run(words, cwd=ROOT, check=True)
    copy_store(local, f"s3://store/{prefix}/base")
    copy_store(photos, f"s3://faces/{prefix}")
    policy = write_policy(work / "few.toml", DATASET, f"s3://faces/{prefix}")
    scene = Scene(server, prefix, policy, shard_rows, {}, 0.0)
    calm = scene.fresh("calm")
    seconds = float(scene.night(calm)["seconds"])
    digests, wrong = whole(calm, DATASET)
    assert wrong == 0, "the undisturbed night itself"
    return Scene(server, prefix, policy, shard_rows, digests, seconds)


def kill_nights(scene: Scene, kills: int, seed: int = 5) -> list[dict[str, Any]]:
    """Kills nights at instants of chance and starts them again, until enough were killed; one row an end."""
    chance = random.Random(seed)
    left, ends = kills, list[dict[str, Any]]()
    while left:
        store, killed = scene.fresh(f"killed-{seed}-{len(ends)}"), 0
        while killed < left and kill_once(
            store, scene.policy, scene.shard_rows, chance.uniform(0, scene.seconds)
        ):
            killed += 1
        scene.night(store)
        left -= killed
        ends.append({"kills": killed, **scene.end(store)})
    return ends


def disturb_night(scene: Scene, seed: int, share: float = 0.05) -> dict[str, Any]:
    """One night through a proxy that strikes a share of its requests; it must end well by itself."""
    store = scene.fresh(f"faults-{seed}")
    with fault_proxy(scene.server, seed=seed, share=share) as proxy:
        started = time.monotonic()
        night(store, scene.policy, scene.shard_rows, proxy.environment())
        seconds = round(time.monotonic() - started, 1)
        requests, struck = proxy.counts.total(), proxy.struck
        kinds = {kind: 0 for _, kind in sorted(proxy.counts)}
        for (_, kind), count in proxy.counts.items():
            kinds[kind] += count
    facts = {"seed": seed, "requests": requests, "struck": struck, "kinds": kinds, "process_seconds": seconds}
    return {**facts, **scene.end(store)}


def away(scene: Scene, store: str, process: subprocess.Popen[str], after: float, seconds: float) -> bool:
    """Kills the S3 server under a running night and starts it again; False when the night had ended before.

    Args:
        scene: Whose server.
        store: Of the night.
        process: The night.
        after: When, in lengths of an undisturbed night after this one has begun.
        seconds: How long the server is away.
    """
    from sdflow_core.records.store import open_store

    opened = open_store(store)
    while process.poll() is None and all(held.dead() for held in leases(opened)):
        time.sleep(0.1)
    time.sleep(after * scene.seconds)
    running = process.poll() is None
    scene.server.kill()
    try:
        time.sleep(seconds)
    finally:
        scene.server.start()
    return running


def restart_server(scene: Scene, seed: int, away_seconds: float = 4.0) -> dict[str, Any]:
    """A night whose server is killed; a second night goes on if it does not survive that by itself."""
    store = scene.fresh(f"restart-{seed}")
    process = start_night(store, scene.policy, scene.shard_rows)
    met = away(scene, store, process, random.Random(seed).uniform(0.1, 0.8), away_seconds)
    out, err = process.communicate(timeout=240)
    said = ""
    if process.returncode:
        assert "Traceback" not in err + out, err + out
        said = str(json.loads(out.strip().splitlines()[-1])["error"]["message"])
        assert said
        scene.night(store)
    return {"seed": seed, "met": met, "exit_code": process.returncode, "said": said, **scene.end(store)}


def main() -> None:
    """Prepare a store and photographs."""
    store, photos, rows = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bundle = prepare(store, 2, people=6, prior_samples=16)
    from tasks.runtime import store_at

    write_people(store_at(store), bundle, Path(photos), 50_000, int(rows))


if __name__ == "__main__":
    main()
