"""What a plugin could do to its neighbours, and that it does not."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tokenopt import plugins, records
from tokenopt.catalog import plain
from tokenopt.catalog.plain import plain_record
from tokenopt.plugins import load_plugins

HEAD = """
from tokenopt.hookspecs import hookimpl
from tokenopt.records import *
S = Source('x', 'assumed')
def chip(**changes):
    values = dict(key='evil-1', vendor='acme', name='A', family='a', launch_year=2026, hbm_bytes=1e11,
        hbm_bytes_per_s=3e12, peak_flops={'bf16': 1e15}, scale_up_bytes_per_s=4e11, scale_up_domain_chips=8,
        scale_up_topology='switched', scale_out_bytes_per_s=5e10, chips_per_node=8, tdp_w=700.0, sources={'*': S})
    return Accelerator(**{**values, **changes})
def offer(**changes):
    values = dict(accelerator='h100-sxm', provider='p', instance_type='', region='', term='on-demand',
        usd_per_chip_hr=0.01, chips_per_instance=8, as_of='2026-01-01', source=S)
    return Offer(**{**values, **changes})
"""


def hook(name: str, answer: str, before: str = "") -> str:
    return f"{HEAD}\n{before}\n@hookimpl\ndef tokenopt_{name}():\n    return {answer}\n"


UNUSABLE = {
    "same key twice": (hook("accelerators", "[chip(), chip(hbm_bytes=2e11)]"), "evil-1 is given twice"),
    "endless integer": (hook("accelerators", "[chip(hbm_bytes=10**400)]"), "hbm_bytes is 1000"),
    "peak is not a number": (hook("accelerators", "[chip(peak_flops={'bf16': float('nan')})]"), "'bf16' is nan"),
    "peak is zero": (hook("accelerators", "[chip(peak_flops={'bf16': 0.0})]"), "peak_flops.bf16 is 0.0"),
    "bandwidth is infinite": (hook("accelerators", "[chip(hbm_bytes_per_s=float('inf'))]"), "hbm_bytes_per_s is inf"),
    "memory in GB": (hook("accelerators", "[chip(hbm_bytes=141)]"), "is the unit right?"),
    "a number as text": (hook("accelerators", "[chip(tdp_w='700')]"), "tdp_w is '700'"),
    "no vendor": (hook("accelerators", "[chip(vendor=None)]"), "vendor is None"),
    "unknown topology": (hook("accelerators", "[chip(scale_up_topology='blob')]"), "scale_up_topology is 'blob'"),
    "no source": (hook("accelerators", "[chip(sources={})]"), "no source for hbm_bytes"),
    "some sources": (hook("accelerators", "[chip(sources={'hbm_bytes': S})]"), "no source for hbm_bytes_per_s"),
    "source of a misspelt figure": (hook("accelerators", "[chip(sources={'*': S, 'hbm': S})]"), "'hbm'"),
    "source is a number": (hook("accelerators", "[chip(sources={'*': 5})]"), "not a Source"),
    "source without reference": (hook("accelerators", "[chip(sources={'*': Source('', 'assumed')})]"), "reference"),
    "unknown confidence": (hook("accelerators", "[chip(sources={'*': Source('x', 'sure')})]"), "not"),
    "half a chip": (hook("accelerators", "[chip(chips_per_node=8.5)]"), "chips_per_node is 8.5"),
    "a subclass": (hook("accelerators", "[Evil(**{f: getattr(chip(), f) for f in Accelerator.__slots__})]",
                        "class Evil(Accelerator): pass"), "returned a Evil"),
    "a record without fields": (hook("accelerators", "[object.__new__(Accelerator)]"), "AttributeError"),
    "engine without families": (hook("engines", "[Engine('x', '1', '2026-01-01', 'nvidia', None, ('bf16',), ('bf16',), S)]"),
                                "families is None"),
    "engine of unknown format": (hook("engines", "[Engine('x', '1', '2026-01-01', 'nvidia', (), ('fp7',), ('bf16',), S)]"),
                                 "weight_formats is fp7"),
    "engine parameter not finite": (
        hook("engines", "[Engine('x', '1', '2026-01-01', 'v', (), ('bf16',), ('bf16',), S, 'serving', {'a': float('inf')})]"),
        "'a' is inf"),
    "model key is a list": (hook("models", "[Model(['x'], 'h', {}, None, S)]"), "key is ['x']"),
    "model cannot be counted": (hook("models", "[Model('acme-lm', 'h', {'key': 'acme-lm'}, None, S)]"), "cannot be counted"),
    "model holds an object": (hook("models", "[Model('acme-lm', 'h', {'key': object()}, None, S)]"), "architecture"),
    "price is negative": (hook("prices", "[offer(usd_per_chip_hr=-1.0)]"), "usd_per_chip_hr is -1.0"),
    "price is not a number": (hook("prices", "[offer(usd_per_chip_hr=float('nan'))]"), "usd_per_chip_hr is nan"),
    "price is absurd": (hook("prices", "[offer(usd_per_chip_hr=1e9)]"), "at most 100,000"),
    "unknown term": (hook("prices", "[offer(term='gratis')]"), "term is 'gratis'"),
    "price without source": (hook("prices", "[offer(source=None)]"), "source is None"),
    "price without date": (hook("prices", "[offer(as_of='')]"), "as_of is empty"),
    "part of an instance": (hook("prices", "[offer(chips_per_instance=0.5)]"), "chips_per_instance is 0.5"),
    "measurement without id": (hook("measurements", "[Measurement('', {}, S)]"), "no id"),
    "deployer of no name": (hook("deployers", "[Deployer('', 'd', 't')]"), "deployer name"),
    "price source without parser": (hook("price_sources", "[PriceSource('x', 'd', None, None)]"), "parse is None"),
    "an error without message": ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "import raised E"),
    "leaves the process": ("import sys; sys.exit(3)", "SystemExit"),
    "points at another's module": ("from tokenopt_nvidia import *", "already provided by tokenopt-nvidia"),
    "version of another type": ("TOKENOPT_HOOK_API_VERSION = '1'", "of type str"),
    "control characters": ("raise RuntimeError('a\\x1b[31mb\\n' + 'c' * 1000)", "import raised RuntimeError: a [31mb ccc"),
}  # fmt: skip


def _everything(registry: plugins.PluginRegistry) -> tuple[Any, ...]:
    registry.collect_all()
    return (
        registry.accelerators, registry.engines, registry.offers, registry.models, registry.measurements,
        registry.deployers, sorted(registry.price_sources),
    )  # fmt: skip


@pytest.fixture(scope="module")
def untouched() -> tuple[Any, ...]:
    return _everything(load_plugins())


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_data_is_named_and_changes_nothing(
    name: str, fake_package: Callable[..., None], untouched: tuple[Any, ...]
) -> None:
    source, message = UNUSABLE[name]
    fake_package("hostile-plugin", source, version="6.6")
    registry = load_plugins()
    assert _everything(registry) == untouched
    status = next(status for status in registry.plugins if status.name == "hostile-plugin")
    assert status.status == "skipped"
    assert message in status.message
    assert status.message.isprintable()
    assert len(status.message) < 400


def test_an_entry_point_at_another_plugins_module_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: tuple[Any, ...]
) -> None:
    info = tmp_path / "thief-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokenopt]\nthief = tokenopt_nvidia\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = load_plugins()
    assert _everything(registry) == untouched
    assert any("already loaded as plugin nvidia" in problem for problem in registry.problems)


def test_a_third_party_called_like_us_does_not_win_a_clash(
    fake_package: Callable[..., None], untouched: tuple[Any, ...]
) -> None:
    # By name alone `tokenopt-aaa` would come before `tokenopt-nvidia`.
    fake_package("tokenopt-aaa", hook("accelerators", "[chip(key='h100-sxm')]"), version="6.6")
    registry = load_plugins()
    assert _everything(registry) == untouched
    (problem,) = registry.problems
    assert "already provided by tokenopt-nvidia 0.1.0" in problem
    assert "tokenopt-aaa 6.6" in problem


def test_between_third_parties_the_first_by_name_keeps_the_key(fake_package: Callable[..., None]) -> None:
    fake_package("zeta", hook("accelerators", "[chip(name='Z')]"), version="2.0")
    fake_package("alpha", hook("accelerators", "[chip(name='A')]"), version="1.0")
    registry = load_plugins()
    assert registry.accelerators["evil-1"].name == "A"
    assert any("already provided by alpha 1.0" in problem and "zeta 2.0" in problem for problem in registry.problems)


def test_a_plugin_cannot_take_the_place_of_a_bundled_model(fake_package: Callable[..., None]) -> None:
    fake_package(
        "hostile-plugin",
        hook(
            "models",
            "[replace(load_bundled_model('llama-3.1-8b'), key='gpt-oss-120b')]",
            "from dataclasses import replace\nfrom tokenopt.catalog.models import load_bundled_model",
        ),
    )
    registry = load_plugins()
    assert "gpt-oss-120b" not in registry.models
    assert any("gpt-oss-120b is already provided by tokenopt" in problem for problem in registry.problems)


def test_every_kept_package_is_known_as_ours() -> None:
    root = Path(__file__).parents[2]
    assert {path.parent.name for path in root.glob("plugins/tokenopt-*/pyproject.toml")} == plugins.OWN_PACKAGES


def test_an_endless_loop_is_stopped_and_asked_once(
    fake_package: Callable[..., None], monkeypatch: pytest.MonkeyPatch, untouched: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(plugins, "TIME_LIMIT_S", 0.5)
    loop = "@hookimpl\ndef tokenopt_{}():\n    while True: pass\n"
    fake_package("hostile-plugin", HEAD + loop.format("accelerators") + loop.format("engines") + loop.format("prices"))
    start = time.monotonic()
    registry = load_plugins()
    assert _everything(registry) == untouched
    assert time.monotonic() - start < 3 * 0.5 + 2, "a plugin that hung once is not asked again"
    assert [problem for problem in registry.problems if "took longer than 0.5 s" in problem] == registry.problems
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenopt plugin")]


def test_what_a_plugin_prints_does_not_reach_the_answer(
    fake_package: Callable[..., None], tmp_path: Path, tokenopt: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    fake_package("chatty", "print('hello from import')\n" + hook("prices", "[]", "print('and again')"))
    process = tokenopt("plugins", "list", "--format", "json", env={"PYTHONPATH": str(tmp_path)})
    answer = json.loads(process.stdout)
    assert "chatty" in {plugin["name"] for plugin in answer["plugins"]}
    assert "hello from import" in process.stderr


@pytest.mark.parametrize("broken", ["METADATA missing", "entry points unreadable"])
def test_a_package_with_broken_metadata_hides_nobody(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: tuple[Any, ...]
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    if broken == "METADATA missing":
        (info / "entry_points.txt").write_text("[tokenopt]\nbroken = no_such_module\n")
    else:
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tokenopt]\nno equals sign\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = load_plugins()
    assert _everything(registry) == untouched
    assert any("broken" in problem for problem in registry.problems)


def test_foreign_number_and_text_classes_become_plain(fake_package: Callable[..., None]) -> None:
    fake_package(
        "subtle",
        hook(
            "prices",
            "[offer(usd_per_chip_hr=Trap(2.5), provider=Name('acme'), chips_per_instance=8.0)]",
            "class Trap(float):\n    def __mul__(self, other): raise RuntimeError('runs during a search')\n"
            "    __rmul__ = __float__ = __mul__\nclass Name(str): pass",
        ),
    )
    registry = load_plugins()
    (taken,) = [offer for offer in registry.offers if offer.provider == "acme"]
    assert registry.problems == []
    assert [type(taken.usd_per_chip_hr), type(taken.provider), type(taken.chips_per_instance)] == [float, str, int]
    assert taken.usd_per_chip_hr == 2.5


def test_offers_for_unknown_accelerators_are_a_note(fake_package: Callable[..., None]) -> None:
    fake_package("early", hook("prices", "[offer(accelerator='b900'), offer(accelerator='b900', region='eu')]"))
    registry = load_plugins()
    registry.collect_all()
    status = next(status for status in registry.plugins if status.name == "early")
    assert status.status == "ok"
    assert status.notes == ["2 offers for accelerators that no plugin describes: b900"]
    assert registry.problems == []


def test_every_declared_type_has_a_check() -> None:
    classes = [value for value in vars(records).values() if isinstance(value, type) and hasattr(value, "__slots__")]
    handed_over = [
        records.Accelerator, records.Model, records.Engine, records.Offer, records.Measurement, records.Deployer,
        records.PriceSource, records.Source,
    ]  # fmt: skip
    assert set(handed_over) <= set(classes)
    for record_type in handed_over:
        assert [name for name, _ in plain._checks(record_type)] == [field.name for field in fields(record_type)]


def test_a_plain_record_is_not_copied() -> None:
    offer = next(iter(load_plugins().offers))
    assert plain_record(offer) is offer
    assert plain_record(replace(offer, fabric_chips=8)).fabric_chips == 8


CROWD = {
    "raises-at-import": "raise RuntimeError('boom')",
    "raises-in-a-hook": HEAD + "@hookimpl\ndef tokenopt_engines():\n    raise ValueError('bad day')\n",
    "loops-for-ever": HEAD + "@hookimpl\ndef tokenopt_accelerators():\n    while True: pass\n",
    "peak-is-nan": HEAD
    + "@hookimpl\ndef tokenopt_accelerators():\n    return [chip(peak_flops={'bf16': float('nan')})]\n",
    "claims-a-key": HEAD
    + "@hookimpl\ndef tokenopt_accelerators():\n    return [chip(key='b200-sxm', hbm_bytes_per_s=9e16)]\n",
    "wrong-type": HEAD
    + "@hookimpl\ndef tokenopt_prices():\n    return [{'accelerator': 'b200-sxm', 'usd_per_chip_hr': 0.01}]\n",
    "a-million-offers": HEAD + "@hookimpl\ndef tokenopt_prices():\n"
    "    return (offer(accelerator='b200-sxm', usd_per_chip_hr=0.01) for _ in range(10**6))\n",
    "from-the-future": "TOKENOPT_HOOK_API_VERSION = 2\n" + HEAD,
    "breaks-imports": HEAD + "@hookimpl\ndef tokenopt_price_sources():\n    def no(*_): raise OSError('no')\n"
    "    return [PriceSource('breaks-imports', 'd', no, no, no)]\n",
}


@pytest.fixture
def crowd(fake_package: Callable[..., None], tmp_path: Path) -> dict[str, str]:
    """Every hostile plugin at once, as an environment for processes."""
    for name, source in CROWD.items():
        fake_package(name, source)
    return {"PYTHONPATH": str(tmp_path)}


def test_a_crowd_of_hostile_plugins_changes_no_answer(
    crowd: dict[str, str], tokenopt: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    command = ("search", "--model", "llama-3.1-8b", "--slo-ms", "50", "--target-tps", "1e5", "--format", "json")
    # Processes start in the folder of the crowd; a safe path leaves it out.
    alone, among = tokenopt(*command, env={"PYTHONSAFEPATH": "1"}), tokenopt(*command, env=crowd)
    assert "warning" not in alone.stderr
    assert alone.returncode == among.returncode == 0, among.stderr
    expected, found = json.loads(alone.stdout), json.loads(among.stdout)
    for answer in (expected, found):
        answer.pop("elapsed_s")
        answer.pop("notes")
    assert found == expected
    for name in CROWD:
        assert (f"plugin {name} " in among.stderr) == (name != "breaks-imports"), name
    strict = tokenopt(*command, "--strict", env=crowd)
    assert (strict.returncode, strict.stdout) == (1, "")
    assert "Traceback" not in strict.stderr + among.stderr


def test_the_list_of_plugins_tells_each_and_can_fail(
    crowd: dict[str, str], tokenopt: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    listed = tokenopt("plugins", "list", "--format", "json", env=crowd)
    status = {plugin["name"]: plugin["status"] for plugin in json.loads(listed.stdout)["plugins"]}
    assert {name: status[name] for name in CROWD} == {
        name: "ok" if name == "breaks-imports" else "skipped" for name in CROWD
    }
    assert status["nvidia"] == "ok"
    assert tokenopt("plugins", "list", "--strict", env=crowd).returncode == 1
    assert tokenopt("plugins", "list", "--strict", env={"PYTHONSAFEPATH": "1"}).returncode == 0


def test_a_source_that_raises_hides_no_other(
    crowd: dict[str, str], tokenopt: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    from tests.prices.fake_api import fixture

    env = {**crowd, "TOKENOPT_DATA_DIR": str(tmp_path / "data")}
    file = tmp_path / "lambda.json"
    file.write_bytes(fixture("lambda.json"))
    imported = tokenopt("prices", "import", str(file), "--format", "json", env=env)
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["imports"][0]["offers"] == 3
    update = tokenopt("prices", "update", "--source", "breaks-imports", env=env)
    assert update.returncode == 1
    assert "breaks-imports failed: fetching breaks-imports raised OSError: no" in update.stderr
