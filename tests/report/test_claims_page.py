"""The page of claims: what stands on it, and how it looks in a browser."""

import json
import math
import os
import re

import pytest
from browser import BROWSERS, find_browser, look_at
from made_claims import made_effect, made_experiment

from dexcore.measures.verdicts import judge
from dexcore.report.claims import Beside
from dexcore.report.claims_page import claims_page, write_claims


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_claims(tmp_path_factory.mktemp("claims"), made_experiment())


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<img[^>]*>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_every_claim_has_its_verdict_on_top_and_what_would_refute_it_in_its_section(page):
    text = text_of(page.read_text(encoding="utf-8"))
    assert "3 claims, 5 seeds of each arm" in text
    for name, verdict in (("routing", "supported"), ("transfer", "refuted"), ("missing", "not measured")):
        assert text.index(f"What {name} says {verdict}") < text.index(f"What {name} says: {verdict}")
    assert text.count("Would refute it:") == 3
    assert "0.030, by the pilots. Effects between it and the margin may be called refuted" in text
    assert "0.080, by the pilots. It is larger than the margin" in text
    assert "An effect as large as the margin would be called supported in 97 of 100 studies." in text
    assert "A flag that all must read." in text
    assert "&amp; &lt;asked&gt;" in text


def test_the_same_numbers_stand_beside_the_page(page):
    found = json.loads((page.parent / "claims.json").read_text(encoding="utf-8"))
    routing, transfer, missing = found["findings"]
    assert routing["verdict"] == "supported"
    assert routing["effect"]["value"] == pytest.approx(0.4)
    assert [one["passed"] for one in routing["controls"]] == [True, True]
    assert transfer["smallest"] == 0.08
    assert (missing["effect"], missing["smallest"]) == (None, None)


def test_changes_that_were_tried_stand_apart_from_the_verdicts(page):
    text = text_of(page.read_text(encoding="utf-8"))
    assert "dex-wider Changed: model.mlp_ratio 8.0" in text
    assert re.search(r"What transfer says 0\.030 \[\S+, \S+\] 0\.020 \[", text)
    assert "the best of several looks better than it is" in text
    (remedy,) = json.loads((page.parent / "claims.json").read_text(encoding="utf-8"))["remedies"]
    assert remedy["claims"][0]["gain"]["value"] == pytest.approx(0.02)
    experiment = made_experiment()
    object.__setattr__(experiment, "remedies", ())
    assert "Changes of DEX" not in text_of(claims_page(experiment))


def test_a_control_that_fails_is_said_before_any_section():
    experiment = made_experiment()
    routing = experiment.findings[0]
    swapped = tuple(
        type(one)(one.label, one.effect, other.expected, one.judged)
        for one, other in zip(routing.controls, reversed(routing.controls), strict=True)
    )
    object.__setattr__(routing, "controls", swapped)
    text = text_of(claims_page(experiment))
    assert "The instrument failed a control" in text
    assert text.index("failed a control") < text.index("Would refute it:")


def test_a_control_that_decided_nothing_is_said_too_and_a_claim_without_one(page):
    told = text_of(page.read_text(encoding="utf-8"))
    assert "did not decide" not in told
    assert "No control stands behind: What transfer says; What missing says." in told
    experiment = made_experiment()
    routing = experiment.findings[0]
    open_one = made_effect(0.03, spread=0.3)
    oracle, fixed = routing.controls
    undecided = Beside(oracle.label, open_one, oracle.expected, judge({"c": open_one}, {"c": 0.05})["c"])
    object.__setattr__(routing, "controls", (undecided, fixed))
    text = text_of(claims_page(experiment))
    warning = "A control did not decide, so nothing says that the instrument works: oracle-routing (What routing says)."
    assert text.index(warning) < text.index("Would refute it:")
    assert "Controls: oracle-routing: did not decide; fixed-routing: as it must be." in text
    assert text.count("Controls: none.") == 2
    assert "failed a control" not in text


def test_one_seed_is_shown_without_an_interval_of_seeds():
    text = text_of(claims_page(made_experiment(seeds=1)))
    assert "2 not decided" in text
    assert not re.search(r"\bnan\b", text)
    assert math.isnan(made_experiment(1).findings[0].effect.error)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1440, False)])
def test_browser_shows_the_page_of_claims_on_a_phone_and_on_a_desk(page, tmp_path, width, dark):
    browser = find_browser()
    if browser is None:
        reason = f"no browser here: none of {', '.join(BROWSERS)} is installed"
        pytest.fail(f"CI is set, and {reason}") if os.environ.get("CI") else pytest.skip(reason)
    seen = look_at(browser, page, tmp_path / "profile", width, dark)
    assert seen.scroll_width <= width
    assert seen.pictures == 2
    assert seen.missing == seen.console == seen.requests == []
    assert seen.smallest_text >= 13
