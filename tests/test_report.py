"""HTML pages: that they hold what was found, nothing from elsewhere, and the same text every time."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import isometry
from isometry import demo
from isometry.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from isometry.report import Section, section
from isometry.tables import Table

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The tags of a page, which must close in the order in which they were opened."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open, self.cells, self.headings, self.sources, self.tags = [], [], [], [], []
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def pictures(self):
        head = "data:image/svg+xml;base64,"
        return [base64.b64decode(source.removeprefix(head)).decode() for source in self.sources]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return demo.plain(depth=6)


@pytest.fixture(scope="module")
def profile(model):
    return isometry.measure(model, torch.randn(16, 64))


@pytest.fixture(scope="module")
def comparison():
    return isometry.compare(lambda: demo.plain(depth=4), "digits", inits=("torch", "kaiming"), steps=4)


def test_a_profile_becomes_sentences_a_picture_and_tables(profile, tmp_path):
    page = Page(isometry.report(profile, tmp_path / "new" / "page.html", title="Six layers"))
    assert "<title>Six layers</title>" in page.text
    assert page.headings == ["Measured signal"]
    for row in (*profile.table().rows, *profile.table(parameters=True).rows):
        assert set(row) <= set(page.cells) | {""}
    assert re.search(r"<p>The .* a layer", page.text)
    (picture,) = page.pictures()
    assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_a_page_needs_nothing_else_and_is_the_same_every_time(comparison, profile, tmp_path):
    first, again = (isometry.report([comparison, profile], tmp_path / name) for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    page = Page(first)
    assert all(source.startswith("data:") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert not re.search(r"(?:src|href)=\"(?!data:)", page.text)


def test_a_comparison_says_why(comparison, tmp_path):
    page = Page(isometry.report(comparison, tmp_path / "page.html"))
    for name, text in comparison.sentences().items():
        assert f"{name}: {text}" in page.text
    assert len(page.pictures()) == 2
    assert {"torch", "kaiming"} <= set(page.cells)


def test_headings_can_be_given(profile, tmp_path):
    page = Page(isometry.report({"Before": profile, "After": "nothing was done"}, tmp_path / "page.html"))
    assert page.headings == ["Before", "After"]
    assert "nothing was done" in page.text


def test_text_and_cells_are_no_markup(tmp_path):
    table = Table(["<i>"], [["<script>alert(1)</script>"], ["inf"]], title="a & b", footer=["<b>"])
    page = Page(isometry.report([table, "<h1>"], tmp_path / "page.html", title="<x>"))
    assert "<script>" not in page.text
    assert page.tags.count("h1") == 1
    assert 'class="left broken">inf' in page.text


def test_long_tables_are_folded_away_and_marked_rows_stand_out(tmp_path):
    rows = [[str(i), "*" if i == 3 else ""] for i in range(40)]
    page = Page(isometry.report([Table(["n", ""], rows), Table(["n", ""], rows[:5])], tmp_path / "p.html"))
    assert page.tags.count("details") == 1
    assert page.text.count('<tr class="marked">') == 2


def test_every_kind_of_result_is_shown(model, profile, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with isometry.watch(model, optimizer=optimizer) as watch:
        for _ in range(2):
            x = torch.randn(8, 64)
            loss = nn.functional.cross_entropy(model(x), torch.arange(8))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
    plan = isometry.plan(model, "8x64")
    scaling = isometry.scaling(lambda width: demo.plain(depth=3, width=width), "8x64", {"width": [16, 32]})
    results = {
        "audit": isometry.audit(model, torch.randn(8, 64)),
        "history": watch.history,
        "watch": watch,
        "plan": plan,
        "difference": plan.diff(model),
        "scaling": scaling,
        "own": Section("own", sentences=["mine"]),
    }
    page = Page(isometry.report(results, tmp_path / "page.html"))
    assert page.headings == list(results)
    assert len(page.pictures()) == 5  # of the audit one, of the history and the watch two each
    assert "Nothing was found." in page.text


def test_an_audit_says_its_summary_once(model, tmp_path):
    found = isometry.audit(model, torch.randn(8, 64))
    page = Page(isometry.report(found, tmp_path / "page.html"))
    assert page.text.count(found.summary()) == 1


@pytest.mark.parametrize("bad", [3, [3], {"a": None}, torch.ones(2)])
def test_what_cannot_be_shown_is_refused(bad, tmp_path):
    with pytest.raises(InvalidTypeError, match=r"got (int|NoneType|Tensor)"):
        isometry.report(bad, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match="nothing to report"):
        isometry.report([], tmp_path / "page.html")


def test_kinds_of_ones_own_can_be_added(tmp_path):
    class Mine:
        pass

    @section.register
    def _(result: Mine, heading: str | None = None) -> Section:
        return Section("Mine", sentences=["hello"])

    assert Page(isometry.report(Mine(), tmp_path / "page.html")).headings == ["Mine"]


def test_without_jinja2_the_error_names_the_extra(profile, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"isometry\[report\]"):
        isometry.report("text", tmp_path / "page.html")
