"""A step computes exactly what its table lacks: a new image, another labeller, another version or config."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundles, ModelStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


class Customer:
    """A store, a folder with pictures and a consent list for all of them."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder

    def night(self) -> dict[str, int]:
        """Ingest, invert, label; rows that each computed."""
        from flows.ingest import ingest
        from flows.invert import invert
        from flows.label import label

        consent = str(self.folder.parent / "consent.csv")
        return {
            "ingest": ingest("people", str(self.folder), consent, self.store.uri)["new"],
            "invert": invert("people", self.store.uri)["new"],
            "label": label("people", self.store.uri)["new"],
        }

    def digest(self, table: str) -> str:
        return Table(self.store, "people", table).canonical_digest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tasks.demo import install_models, make_people
    from tasks.step import Job

    root = tmp_path_factory.mktemp("made")
    store = open_store(str(root / "store"))
    make_people(install_models(Job(store=store.uri, dataset="people", parent="test")), 4)
    (root / "photos").mkdir()
    for number in range(3):
        name = f"person-{number:04d}" + (".png" if number % 3 == 2 else ".jpg")
        (root / "photos" / name).write_bytes(store.read(f"demo/photos/{name}"))
    (root / "consent.csv").write_text("source,subject,attributes,expires,evidence\n*,ann,*,,form\n")
    assert Customer(store, root / "photos").night() == {"ingest": 3, "invert": 3, "label": 3}
    return root


@pytest.fixture
def customer(made: Path, tmp_path: Path) -> Customer:
    store = open_store(str(shutil.copytree(made / "store", tmp_path / "copy")))
    photos = Path(shutil.copytree(made / "photos", tmp_path / "moved" / "photos"))
    shutil.copy(made / "consent.csv", tmp_path / "moved" / "consent.csv")
    found = Customer(store, photos)
    found.night()  # the moved files are other sources, of the same faces
    return found


def called(before: Counter[str]) -> dict[str, int]:
    from tasks.runtime import CALLS

    return {name: CALLS[name] - before[name] for name in CALLS if CALLS[name] != before[name]}


def test_one_new_image_computes_one_row_a_step(customer: Customer) -> None:
    from tasks.runtime import CALLS

    before = Counter(CALLS)
    assert customer.night() == {"ingest": 0, "invert": 0, "label": 0} and called(before) == {}
    (customer.folder / "new.jpg").write_bytes(customer.store.read("demo/photos/person-0003.jpg"))
    assert customer.night() == {"ingest": 1, "invert": 1, "label": 1}
    assert called(before) == {"detector": 1, "encoder": 1, "generator": 1, "labeller": 1}
    before = Counter(CALLS)
    assert customer.night() == {"ingest": 0, "invert": 0, "label": 0} and called(before) == {}


def test_another_labeller_touches_no_latent(customer: Customer) -> None:
    from sdflow_core.faces.checkpoint import load_model, save_model
    from tasks.runtime import CALLS

    bundles, models = Bundles(customer.store), ModelStore(customer.store)
    current = bundles.current()
    assert current is not None and current.labeller is not None
    latents = customer.digest("latents")
    other = load_model(models.weights(current.labeller))
    other.load_state_dict(
        {k: v * 1.01 if v.is_floating_point() else v for k, v in other.state_dict().items()}
    )
    digest = models.add("labeller", save_model(other), {"title": "another labeller"})
    bundles.promote(current.model_copy(update={"labeller": digest}), "test", "")
    before = Counter(CALLS)
    assert customer.night() == {"ingest": 0, "invert": 0, "label": 3}
    assert called(before) == {"labeller": 1} and customer.digest("latents") == latents
    bundles.rollback("test", "")
    assert customer.night() == {"ingest": 0, "invert": 0, "label": 0}


@pytest.mark.parametrize(
    ("step", "computed"),
    [
        ("label", {"ingest": 0, "invert": 0, "label": 3}),
        ("invert", {"ingest": 0, "invert": 3, "label": 0}),
        ("ingest", {"ingest": 3, "invert": 3, "label": 3}),
    ],
)
def test_a_new_version_of_a_step_computes_it_and_what_hangs_on_it(
    step: str, computed: dict[str, int], customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import recipes
    from tasks.service import staleness

    bundle = Bundles(customer.store).current()
    assert bundle is not None
    version = recipes.VERSIONS[step]
    monkeypatch.setitem(recipes.VERSIONS, step, version + 1)
    found = staleness(customer.store, "people", bundle)
    # the copy's moved files are sources of their own: six rows, of three files that are still looked at
    assert {s.step: s.stale for s in found.steps if s.step in ("invert", "label")} == {
        name: computed[name] for name in ("invert", "label")
    }
    assert bool(found.step("ingest").stale) == bool(computed["ingest"])
    assert f"step version {version} -> {version + 1}" in found.text
    assert customer.night() == computed


def test_a_new_config_computes_the_steps_that_have_it(
    customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import recipes

    monkeypatch.setattr(recipes, "MICRO_BATCH", 8)
    assert customer.night() == {"ingest": 0, "invert": 3, "label": 3}
