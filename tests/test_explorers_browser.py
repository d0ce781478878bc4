"""Explorers in a real browser, opened as files: no server, no network."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from book.browser import FLAGS, chromium
from dsarch.teaching.explorers import (
    absorption_dial,
    agent_trajectory,
    cost,
    dpo_margins,
    fp8,
    group_advantage,
    head_map,
    kl_estimators,
    kv_cache,
    memory_planner,
    parameters,
    pipeline_editor,
    rotation,
    routing,
    scaling_planner,
    schedule_designer,
    speculation,
    temperature,
    walk,
)

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pages = pytest.importorskip("tests.site.pages")

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(not chromium(), reason="no Chromium was found"),
]
MAKERS = {
    "kv_cache": kv_cache,
    "head_map": head_map,
    "agent_trajectory": agent_trajectory,
    "cost": cost,
    "absorption_dial": absorption_dial,
    "rotation": rotation,
    "parameters": parameters,
    "memory_planner": memory_planner,
    "pipeline_editor": pipeline_editor,
    "routing": routing,
    "speculation": speculation,
    "temperature": temperature,
    "scaling_planner": scaling_planner,
    "schedule_designer": schedule_designer,
    "dpo_margins": dpo_margins,
    "fp8": fp8,
    "group_advantage": group_advantage,
    "kl_estimators": kl_estimators,
    "fp8_matrix": lambda: fp8("matrix"),
    "walk": walk,
    "walk_update": lambda: walk("update"),
}
DARK = {
    "--pst-color-text-base": "#ced6dd",
    "--pst-color-background": "#14181e",
    "--pst-color-border": "#48566b",
    "--pst-color-text-muted": "#9ca4af",
    "--pst-color-primary": "#3fb1c5",
}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        yield found
        found.close()


@pytest.fixture
def look(browser, tmp_path):
    """Open some HTML as a page of its own; nothing may go wrong on it."""

    @contextmanager
    def look(body: str, *, theme=None, problems_expected=False, **options):
        colours = ";".join(f"{k}:{v}" for k, v in (theme or {}).items())
        path = tmp_path / "page.html"
        path.write_text(
            "<!doctype html><html lang=en><meta charset=utf-8><title>t</title>"
            f'<body style="margin:0;padding:8px;{colours};'
            'background:var(--pst-color-background,#fff)">'
            f"<main><h1>t</h1><h2>u</h2>{body}</main>",
            encoding="utf8",
        )
        url = path.as_uri()
        with pages.opened(browser, url, url, **options) as (page, problems):
            yield page
            assert bool(problems) == problems_expected, problems

    return look


def status(page) -> str:
    return page.locator("[role=status]").first.text_content()


@pytest.mark.parametrize("widget", MAKERS)
@pytest.mark.parametrize("theme", [None, DARK], ids=["light", "dark"])
def test_accessible_and_narrow(look, widget, theme):
    size = {"width": 360, "height": 800}
    html = MAKERS[widget]().html
    with look(html, theme=theme, viewport=size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        folded = page.locator("details:not([open]) > summary")
        while folded.count():
            folded.first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
        assert not page.locator(".wrong").count()


@pytest.mark.parametrize("widget", MAKERS)
def test_every_control_has_a_name_and_reset_restores(look, widget):
    with look(MAKERS[widget]().html) as page:
        first = status(page)
        for slider in page.locator("input[type=range]:visible").all():
            assert slider.get_attribute("aria-label")
            before = slider.get_attribute("aria-valuetext")
            slider.focus()
            page.keyboard.press("ArrowLeft")
            page.keyboard.press("ArrowLeft")
            page.keyboard.press("ArrowRight")
            if slider.get_attribute("min") != slider.input_value():
                assert slider.get_attribute("aria-valuetext") != before
        page.locator("[data-reset]").click()
        assert status(page) == first


def test_typed_nonsense_is_corrected_aloud(look):
    with look(kv_cache().html) as page:
        box = page.get_by_label("Context", exact=True).first
        cases = [("-5", "-5 is below 1; 1 is used"), ("", "empty; 32,768")]
        cases += [("99999999999", "1,048,576 is used"), ("2.5", "whole")]
        for typed, said in cases:
            box.fill(typed)
            assert f"Context: {said}" in status(page) or said in status(page)
            assert "NaN" not in page.locator(".ds").inner_text()
            assert box.get_attribute("aria-invalid") == "true"
        box.fill("64")
        assert "Context:" not in status(page)
        box.fill("-1")
        box.blur()
        assert box.input_value() == "1"


def test_a_model_sets_the_sizes_and_a_size_makes_them_your_own(look):
    with look(kv_cache().html) as page:
        page.get_by_label("Model").select_option(label="GPT-3 175B")
        assert "MHA keeps 4,718,592 bytes" in status(page)
        page.get_by_label("MLA", exact=True).check(force=True)
        assert "MLA keeps 110,592 bytes" in status(page)
        assert page.get_by_label("Model").input_value() == "own"
        page.get_by_label("GQA", exact=True).check(force=True)
        page.get_by_label("KV heads", exact=True).first.fill("7")
        assert "7 KV heads cannot be shared evenly by 96" in status(page)
        assert "Nearest that do: 6 and 8." in status(page)


def test_arrow_keys_walk_the_heads(look):
    with look(head_map().html) as page:
        page.locator("[data-key=q13]").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert "Query head 16 reads KV head 4" in status(page)
        focused = "document.querySelector('.ds-explorer').shadowRoot"
        key = page.evaluate(f"{focused}.activeElement.dataset.key")
        assert key == "q16"
        assert page.locator(".pick[tabindex='0']").count() == 1
        page.get_by_label("KV heads G").first.fill("6")
        assert "32 = 6 × 5 + 2" in status(page)
        assert "4 and 8" in status(page)


def test_play_steps_and_stops(look):
    with look(rotation().html, reduced_motion="no-preference") as page:
        play = page.locator("[data-play]")
        play.click()
        assert play.get_attribute("aria-pressed") == "true"
        page.wait_for_timeout(1000)
        play.click()
        moved = int(page.locator("[data-number=position]").input_value())
        assert moved > 512
        assert f"At position {moved:,}" in status(page)
        page.locator("[data-step='-1']").click()
        assert f"At position {moved - 1:,}" in status(page)


def test_play_is_slow_with_reduced_motion(look):
    with look(rotation().html) as page:
        page.locator("[data-play]").click()
        page.wait_for_timeout(900)
        assert page.locator("[data-number=position]").input_value() == "512"
        page.locator("[data-play]").click()


def test_a_disagreement_with_python_is_shown(look):
    html = kv_cache().html.replace(",4718592]", ",4800000]")
    with look(html) as page:
        warning = page.locator(".wrong")
        assert "disagrees with the Python code" in warning.text_content()
        assert warning.get_attribute("role") == "alert"


def test_a_broken_explorer_shows_its_table(look):
    html = kv_cache().html.replace('"models":', '"modells":')
    with look(html, problems_expected=True) as page:
        assert "could not start" in page.locator(".wrong").text_content()
        assert page.get_by_text("70,272", exact=True).is_visible()


def test_without_javascript_the_table_is_shown(look):
    with look(kv_cache().html, java_script_enabled=False) as page:
        assert page.get_by_text("70,272", exact=True).is_visible()


def test_two_of_a_kind_are_independent(look):
    with look(head_map().html + head_map(8, 1, query=2).html) as page:
        both = page.locator("[role=status]").all_text_contents()
        assert "Query head 13 reads KV head 3" in both[0]
        assert "Query head 2 reads KV head 0" in both[1]
        page.locator("[data-key=q5]").nth(1).click()
        after = page.locator("[role=status]").all_text_contents()
        assert after[0] == both[0]
        assert "Query head 5" in after[1]
