"""The formula against figures made by hand, and what it says of itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sdflow_core.capacity.formula import FIRST, STORIES, stories
from sdflow_core.capacity.plan import plan
from sdflow_core.capacity.prices import SHIPPED_PRICES, load_prices
from sdflow_core.capacity.rates import SHIPPED_RATES, Linear, Rates, load_rates
from sdflow_core.capacity.workload import Work, Workload, checked, makespan, whole
from sdflow_core.records.errors import ContractError
from tests.planned import rates, rates_document

ROOT = Path(__file__).resolve().parents[2]
LIMITS = load_prices().limits


def _requests(document: dict[str, Any], **more: dict[str, dict[str, dict[str, float]]]) -> Rates:
    return Rates.model_validate({**document, "requests": {**document["requests"], **more}})


def test_a_small_case_by_hand() -> None:
    # 2,500 pictures, 1,000 a shard, 2 devices: shards of 1,000, 1,000 and 500 rows in two waves
    known = rates(invert_device=0.01, invert_host=0.002, shard_host=1.0, plan_invert=0.001, story_start=5.0)
    found = stories(Workload(images=2500, devices=2), known, LIMITS)["invert"]
    full, last = 1.0 + 1000 * 0.012, 1.0 + 500 * 0.012
    assert found.work.shards == 3
    assert found.work.shard_seconds == pytest.approx(full)
    assert found.seconds == pytest.approx(5.0 + 2500 * 0.001 + full + last)
    assert found.device_seconds == pytest.approx(2500 * 0.01)
    assert (found.bound_by, found.device_lanes) == ("lanes", 2)


def test_a_device_speeds_up_networks_and_nothing_else() -> None:
    known = rates(edit_device=0.1, edit_host=0.03, ingest_host=0.02)
    slow = stories(Workload(images=1000, edits=3), known, LIMITS)
    fast = stories(Workload(images=1000, edits=3, device="fast"), known, LIMITS)
    assert slow["edit"].seconds == pytest.approx(3000 * 0.13)
    assert fast["edit"].seconds == pytest.approx(3000 * (0.01 + 0.03))
    assert slow["ingest"].seconds == fast["ingest"].seconds == pytest.approx(20.0)
    given = stories(Workload(images=1000, edits=3, device="fast", speedup=100), known, LIMITS)
    assert given["edit"].seconds == pytest.approx(3000 * (0.001 + 0.03))


def test_an_overlapped_shard_takes_as_long_as_its_slowest_part() -> None:
    known = rates(invert_device=0.01, invert_host=0.004)
    load = Workload(images=1000, pipeline="overlapped")
    assert stories(load, known, LIMITS)["invert"].seconds == pytest.approx(10.0)
    load = Workload(images=1000, pipeline="overlapped", speedup=100, host_cores=2)
    assert stories(load, known, LIMITS)["invert"].seconds == pytest.approx(2.0)


def test_what_a_commit_costs_more_on_a_table_that_grows() -> None:
    # ten shards of 1,000 rows: before them lie 0, 1,000, ... 9,000 rows
    known = rates(held_commit=1e-3)
    found = stories(Workload(images=10_000), known, LIMITS)
    assert found["label"].seconds == pytest.approx(1e-3 * 1000 * 45)
    assert found["ingest"].seconds == pytest.approx(2 * 1e-3 * 1000 * 45)  # faces and sources


def test_every_code_is_read_by_every_edit_shard_while_the_rates_say_so() -> None:
    found = stories(Workload(images=10_000), rates(held_edit=1e-4), LIMITS)
    assert found["edit"].seconds == pytest.approx(10 * 10_000 * 1e-4)
    assert stories(Workload(images=10_000), rates(), LIMITS)["edit"].seconds == 0
    # 100 bytes a code: 10^7 of them do not fit into the cache of 256 MiB, so that each of the 10^4 edit
    # shards fetches them anew
    big = stories(Workload(images=10**7), rates(held_edit=1e-9), LIMITS)["edit"]
    assert big.down_bytes == 10**4 * 10**7 * 100
    assert big.requests["GET"] == 10**4 * 10**4
    assert stories(Workload(images=10**6), rates(held_edit=1e-9), LIMITS)["edit"].down_bytes == 0


def test_requests_of_shards_rows_and_pages() -> None:
    ingest = {
        "crops": {"PUT": {"per_row": 1}},
        "journal": {"GET": {"fixed": 1, "per_shard": 2}},
        "source": {"LIST": {"fixed": 2}, "GET": {"per_row": 1}},
        "bytes": {"DOWN": {"per_row": 1500}, "UP": {"per_shard": 10}},
    }
    known = _requests(rates_document(s3_request=0.01), ingest=ingest)
    found = stories(Workload(images=2500, image_bytes=3000), known, LIMITS)["ingest"]
    assert found.requests == {"PUT": 2500, "GET": 1 + 2 * 3 + 2500, "HEAD": 0, "LIST": 2 * 3, "DELETE": 0}
    # the measured picture has 1,000 of the 1,500 bytes that cross the wire for a row
    assert (found.down_bytes, found.up_bytes) == (2500 * 3500, 30)
    assert found.work.shard_seconds == pytest.approx(0.01 * (2 + 2000))


def test_a_prefix_that_is_asked_too_much_sets_the_pace() -> None:
    known = _requests(rates_document(), ingest={"crops": {"PUT": {"per_row": 1}}})
    found = stories(Workload(images=35_000, devices=100), known, LIMITS)["ingest"]
    assert found.bound_by == "puts"
    assert found.seconds == pytest.approx(10.0)


def test_opening_a_journal_reads_snapshots_and_less_than_256_entries() -> None:
    known = _requests(rates_document(), night={"journal": {"GET": {"per_held_shard": 1}}})
    found = stories(Workload(images=256_000 // 5), known, LIMITS)["nothing_new"]  # 4 x 52 + 52 = 260 shards
    assert found.requests["GET"] == 1 + 4


def test_a_night_costs_what_is_new_and_a_look_at_all() -> None:
    known = rates(invert_device=1.0, plan_ingest=1e-3)
    found = stories(Workload(images=10_000), known, LIMITS)
    assert found["nothing_new"].seconds == pytest.approx(10.0)
    assert found["nothing_new"].device_seconds == 0
    assert found["one_percent"].seconds == pytest.approx(10.1 + 100)
    assert found["one_percent"].device_seconds == pytest.approx(100)


def test_failed_attempts_cost_half_of_themselves_and_the_wait() -> None:
    work = Work(shards=10, shard_seconds=100)
    lost = makespan(work, 0.1)[0] - makespan(work)[0]
    assert lost == pytest.approx(10 * (0.1 * (50 + 1) + 0.01 * (50 + 5)))


@pytest.mark.parametrize(
    "shards, lanes, waves", [(1, 1, 1), (1, 8, 1), (8, 8, 1), (9, 8, 2), (16, 8, 2), (17, 8, 3)]
)
def test_shards_come_in_waves(shards: int, lanes: int, waves: int) -> None:
    assert makespan(Work(shards=shards, shard_seconds=7, lanes=lanes))[0] == 7 * waves


def test_storage_grows_with_rows_shards_and_edits() -> None:
    document = rates_document()
    document["stored"] = {
        "crops": {"bytes_per_row": 6000, "objects_per_row": 1},
        "edits": {"bytes_per_row": 7000, "objects_per_row": 1},
        "journal": {"bytes_per_shard": 5000, "objects_per_shard": 5},
    }
    found = plan(Workload(images=2000, edits=3), Rates.model_validate(document), load_prices())["total"]
    # entries: two tables of ingest, latents and labels of 2 shards each, edits of 6 shards
    assert found["stored"] == {"crops": 12_000_000, "edits": 42_000_000, "journal": (4 * 2 + 6) * 1000}
    assert found["objects"] == 2000 + 6000 + 14


def test_money_is_prices_times_amounts(tmp_path: Path) -> None:
    text = SHIPPED_PRICES.read_text()
    (mine := tmp_path / "mine.toml").write_text(text.replace("h200 = 4.0", "h200 = 4.0\nfast = 7.2"))
    known = _requests(rates_document(invert_device=36.0), invert={"crops": {"GET": {"per_row": 1}}})
    found = plan(Workload(images=1000, device="fast", devices=2), known, load_prices(mine))["stories"]
    # one shard, so that one of two devices is idle for the hour, and both are paid
    assert found["invert"]["money"]["compute"] == pytest.approx(2 * 7.2)
    assert found["invert"]["money"]["requests"] == pytest.approx(0.0004)
    assert found["publish"]["money"]["people"] == pytest.approx(1000 * 3 / 3600 * 30, abs=1e-4)


def test_every_figure_says_where_it_comes_from() -> None:
    known = rates(invert_device=0.01)
    few = stories(Workload(images=10), known, LIMITS)
    assert few["invert"].source == "measured"
    assert few["refresh"].source == "extrapolated"
    assert stories(Workload(images=11), known, LIMITS)["invert"].source == "extrapolated"
    guessed = stories(Workload(images=10, device="fast"), known, LIMITS)
    assert guessed["invert"].source == "assumed"
    assert guessed["invert"].assumed == ("devices.fast.speedup",)
    assert guessed["ingest"].source == "measured"  # no network of the device is in it
    given = plan(Workload(images=10, speedup=3.0), known, load_prices())
    assert given["device"]["source"] == "assumed"
    assert any("ASSUMED" in remark and "--speedup" in remark for remark in given["remarks"])


def test_the_shipped_rates_are_those_of_the_benchmark_and_claim_no_gpu() -> None:
    assert SHIPPED_RATES.read_bytes() == (ROOT / "benchmarks" / "rates.json").read_bytes()
    shipped = load_rates()
    for name, device in shipped.devices.items():
        assert name == "cpu" or device.source == "assumed" or device.note, name
    found = plan(Workload(images=10**6, edits=3, device="h200"), shipped, load_prices())
    assert list(found["stories"]) == list(STORIES)
    assert found["total"]["seconds"] == pytest.approx(
        sum(found["stories"][n]["seconds"] for n in FIRST), rel=1e-6
    )
    if shipped.devices["h200"].source == "assumed":
        assert found["stories"]["edit"]["source"] == "assumed"


@pytest.mark.parametrize("images", [1, 999, 1000, 1001, 10**4, 10**6, 10**8, 10**10])
def test_plans_are_finite_and_grow_with_pictures(images: int) -> None:
    prices, shipped = load_prices(), load_rates()
    one = plan(Workload(images=images, edits=2), shipped, prices)["total"]
    two = plan(Workload(images=min(2 * images, 10**10), edits=2), shipped, prices)["total"]
    for name in ("seconds", "objects", "up_bytes", "down_bytes"):
        assert math.isfinite(one[name]) and 0 < one[name] <= two[name], name
    json.dumps(one, allow_nan=False)


def test_more_devices_never_take_longer() -> None:
    shipped = load_rates()
    seconds = [
        stories(Workload(images=10**6, devices=devices), shipped, LIMITS)["edit"].seconds
        for devices in (1, 2, 3, 8, 100, 10_000)
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_counts_as_people_write_them() -> None:
    assert [whole(text, "n") for text in ("20000", "1_000_000", "1e6", "2.0")] == [20000, 10**6, 10**6, 2]
    for text in ("0", "-1", "nan", "inf", "1e30", "1.5", "many", "", "0x10", "1e400"):
        with pytest.raises(ContractError, match="whole number"):
            whole(text, "--images")


def test_nonsense_workloads_are_refused_by_name() -> None:
    for said in ({"images": 0}, {"images": 10**11}, {"failure_rate": 1.0}, {"failure_rate": math.nan},
                 {"speedup": 0.0}, {"speedup": math.inf}, {"devices": 0}, {"image_px": 10**6}):  # fmt: skip
        with pytest.raises(ContractError, match=next(iter(said))):
            checked({"images": 5, **said})
    with pytest.raises(ContractError, match="cpu, fast"):
        stories(Workload(images=5, device="abacus"), rates(), LIMITS)


def test_a_broken_file_of_rates_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    whole_file = rates_document()
    cases: list[tuple[str, str]] = [
        ("{", "no JSON"),
        ("[]", "make no sense"),
        ("\xff", "no JSON"),
        (json.dumps({**whole_file, "format": 2}), "format"),
        (json.dumps({**whole_file, "devices": {}}), "devices"),
        (json.dumps({**whole_file, "seconds": {}}), "missing: seconds.ingest.host"),
        (json.dumps(whole_file).replace('"value": 0.0', '"value": NaN', 1), "finite"),
        (json.dumps(whole_file).replace('"value": 0.0', '"value": -1', 1), "greater than or equal to 0"),
        (json.dumps(whole_file).replace('"measured"', '"guessed"', 1), "."),
    ]
    for text, told in cases[:-1]:
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ContractError, match=told):
            load_rates(path)
    with pytest.raises(ContractError, match="cannot be read"):
        load_rates(tmp_path / "nowhere.json")
    with pytest.raises(ContractError, match="cannot be read"):
        load_rates(tmp_path)


def test_a_broken_price_table_is_told(tmp_path: Path) -> None:
    path, text = tmp_path / "prices.toml", SHIPPED_PRICES.read_text()
    cases = [
        ("= = =", "no TOML"),
        ("\xff", "no TOML"),
        ("", "storage"),
        (text.replace("gb_month = 0.023", "gb_month = -1"), "storage.gb_month"),
        (text.replace("gb_month = 0.023", "gb_month = nan"), "storage.gb_month"),
        (text.replace("gb_month = 0.023", "gb_month = inf"), "storage.gb_month"),
        (text.replace("gb_month = 0.023", 'gb_month = "cheap"'), "storage.gb_month"),
        (text.replace("put = 0.005", "put_typo = 0.005"), "requests.put"),
        (text.replace("put_per_second = 3500", "put_per_second = 0"), "put_per_second"),
    ]
    for said, told in cases:
        path.write_bytes(said.encode("latin-1"))
        with pytest.raises(ContractError, match=told):
            load_prices(path)
    path.write_text(text.replace("h200 = 4.0", ""))
    with pytest.raises(ContractError, match=r"device_hour\.h200"):
        plan(Workload(images=5, device="h200"), load_rates(), load_prices(path))


def test_counts_are_sums() -> None:
    assert Linear(fixed=1, per_shard=2, per_row=0.5, per_held_shard=3).of(10, 100, 4) == 1 + 20 + 50 + 12
