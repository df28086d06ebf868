"""The report: valid, self-contained HTML, commands for missing parts, and the same content as Markdown."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from commands.report.__main__ import main
from tests.support.reports import ROWS, write_results, write_runs

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags match, and collects what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path)


def page(runs: Path) -> Page:
    main(["--runs", str(runs)])
    return Page((runs / "digits/report.html").read_text(encoding="utf-8"))


def test_the_page_is_valid_and_self_contained(runs: Path) -> None:
    html = page(runs)
    assert not html.all("script") and not html.all("link") and not html.all("iframe")
    sources = [attributes["src"] or "" for attributes in html.all("img")]
    assert len(sources) == 4 and all(source.startswith("data:image/") for source in sources)
    anchors = {attributes["href"] for attributes in html.all("a")}
    assert anchors == {f"#{attributes['id']}" for attributes in html.all("section")} | {"#main"}
    assert [attributes["id"] for attributes in html.all("main")] == ["main"]
    assert html.all("a")[0]["href"] == "#main"  # the first that the keyboard comes to
    identifiers = [attributes["id"] for _, attributes in html.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    named = {attributes["aria-labelledby"] for attributes in html.all("section")}
    assert named <= set(identifiers)
    styles = (runs / "digits/report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in styles and "@import" not in styles
    for name, attributes in html.tags:
        assert not any(key.startswith("on") or key in ("srcset", "poster", "action") for key in attributes), name
    assert all(attributes["alt"] for attributes in html.all("img"))


def test_pictures_and_curves_are_embedded(runs: Path) -> None:
    sources = [str(attributes["src"]) for attributes in page(runs).all("img")]
    kinds = sorted(source.split(";")[0] for source in sources)
    assert kinds == ["data:image/png"] * 2 + ["data:image/svg+xml"] * 2  # the two usages share a picture
    for source in sources:
        content = base64.b64decode(source.split(",")[1])
        if "svg" in source.split(",")[0]:
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg")
            links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
            assert all(link.startswith("#") for link in links)
        else:
            assert content.startswith(b"\x89PNG")


def test_the_page_has_settings_and_metrics(runs: Path) -> None:
    html = page(runs)
    for expected in (
        "24.78",
        "93.4%",
        "0.1234 (to 355)",
        "digits images",
        "98.0%",
        "1,000",
        "abc",
        "guidance 2.0",
        "# <b>",
        "a <note>",
    ):
        assert expected in html.text, expected
    headings = [tag for tag, _ in html.tags if tag in ("h1", "h2", "h3")]
    assert headings.count("h1") == 1 and headings.count("h2") == 7 and headings.count("h3") == 2
    assert all(attributes.get("class") == "scroll" for attributes in html.all("div") if "tabindex" in attributes)


def test_missing_parts_name_their_make_target(runs: Path) -> None:
    text = page(runs).text
    for target in ("teacher", "stage1", "stage2"):
        assert f"make {target} PRESET=digits\n" in text
    assert "make tokenizer" not in text
    (runs / "digits/samples/fq_dual/metrics.json").unlink()
    assert "not done yet: make evaluate PRESET=digits" in page(runs).text


def test_an_empty_preset_has_a_page_and_a_missing_one_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "runs/digits").mkdir(parents=True)
    assert "make sample PRESET=digits\n" in page(tmp_path / "runs").text
    with pytest.raises(SystemExit, match="2"):
        main(["--runs", str(tmp_path / "runs"), "--preset", "photos"])
    assert re.search("there are no runs in .*photos: make demo PRESET=photos", capsys.readouterr().err)


def test_other_generators_have_their_own_section(runs: Path) -> None:
    (runs / "digits/tokenizer/fq_dual").rename(runs / "digits/moved")
    (runs / "digits/llamagen").mkdir()
    (runs / "digits/moved").rename(runs / "digits/llamagen/vq")
    text = page(runs).text
    assert "Runs in llamagen" in text and "24.78" in text and "Runs in tokens" not in text


def test_sweep_probes_and_zero_shot_are_in_their_runs(runs: Path) -> None:
    assert "Probes:" not in page(runs).text and "Guidance:" not in page(runs).text
    probes = [
        {"probe": kind, "feature": "after/all", "value": value, "standard_error": 0.0123}
        for kind, value in (("linear", 0.876), ("nearest_class_mean", 0.543))
    ]
    tokenizer = runs / "digits/tokenizer/fq_dual"
    found = {"probes": probes, "n_validation": 355, "chance": 0.1}
    (tokenizer / "probes.json").write_text(json.dumps(found))
    row = {
        "features": "decoded",
        "top1": 0.8089,
        "top1_standard_error": 0.01,
        "top5": 0.964,
        "top5_standard_error": 0.005,
    }
    named = {"path": "classes", "sha256": "0", "text_tower": "text", "num_prompts": 80}
    classified = {"rows": [row], "n": 1000, "num_classes": 10, "teacher": "stand_in", "class_vectors": named}
    (tokenizer / "zero_shot.json").write_text(json.dumps(classified))
    generator = runs / "digits/stage2/fq_dual"
    generator.mkdir(parents=True)
    (generator / "config.yaml").write_text("seed_everything: 7\n")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(generator / "sweep.png")
    scales = [
        {
            **{"guidance": scale, "metrics": {"gfd/judge": {"value": value, "n": images}}},
            **{"settings": {"num_images": images}, "notes": []},
        }
        for scale, value, images in ((1.0, 0.999, 40), (2.5, 0.321, 500), (1.5, 0.456, 500))
    ]
    (generator / "sweep.json").write_text(json.dumps({"scales": scales}))
    html = page(runs)
    for expected in (
        "87.6% ± 1.2%",
        "54.3% ± 1.2%",
        "after/all",
        "355 validation images",
        "chance 10.0%",
        "500 samples a scale",
        "80.9% ± 1.0%",
        "96.4% ± 0.5%",
        "1,000 validation images into 10 classes",
    ):
        assert expected in html.text, expected
    assert "0.999" not in html.text  # of earlier settings
    assert html.text.index("0.456") < html.text.index("0.321")  # by scale
    captions = [attributes for attributes in html.all("p") if attributes.get("class") == "caption"]
    assert len(html.all("img")) == 5 and len(captions) == 3


def test_tables_of_experiments_and_commands_for_missing_ones(runs: Path) -> None:
    text = page(runs).text
    assert "make experiment EXPERIMENT=ssq/table3 PRESET=digits" in text and "ifsq/fig3" not in text
    write_results(runs)
    write_results(runs, "ssq/table3", title="of another preset", preset="photos")
    html = page(runs)
    for expected in (
        "SSQ Table 5: stages | noise",
        "6 of 6 runs",
        "paper: gFID",
        "0.37 ± 0.01",
        "a cluster",
        "as told",
    ):
        assert expected in html.text, expected
    assert "EXPERIMENT=ssq/table5" not in html.text and "EXPERIMENT=ssq/table3" in html.text
    assert "of another preset" not in html.text


def test_an_experiment_without_a_finished_row_is_missing(runs: Path) -> None:
    write_results(runs, records=[], title="An empty table")
    text = page(runs).text
    assert "An empty table" not in text and text.count("make experiment EXPERIMENT=ssq/table5 PRESET=digits") == 2


def test_generation_is_plotted_over_reconstruction(runs: Path) -> None:
    assert "No experiment here has measured both" in page(runs).text
    write_results(runs)
    html = page(runs)
    (picture,) = [attributes for attributes in html.all("img") if "gFD over rFD" in str(attributes["alt"])]
    drawn = base64.b64decode(str(picture["src"]).split(",")[1]).decode()
    assert all(f"<!-- {label} -->" in drawn for label in ROWS)
    for expected in ("0.059", "0.47", "0.411"):  # means over the seeds, and their difference
        assert expected in html.text, expected
    assert "No experiment here has measured both" not in html.text


def test_markdown_has_the_same_content_and_links_existing_pictures(runs: Path, tmp_path: Path) -> None:
    write_results(runs)
    elsewhere = tmp_path / "docs/a_report.html"
    for output, stem in ((runs / "digits/report.html", "report"), (elsewhere, "a_report")):
        main(["--runs", str(runs), "--output", str(output)])
        file = output.with_suffix(".md")
        text = file.read_text(encoding="utf-8")
        headings = re.findall(r"^##* (.*)$", text, re.MULTILINE)
        assert headings[1] == "Judge and teachers" and "SSQ Table 5: stages \\| noise" in headings
        for expected in ("| val/psnr | 24.78 |", "a &lt;note>", "- machine: a PC", "`make stage1 PRESET=digits`"):
            assert expected in text, expected
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert len(pictures) == 5
        assert all((file.parent / picture).stat().st_size for picture in pictures)
        drawn = {path.name for path in (file.parent / f"{stem}_pictures").iterdir()}
        assert drawn == {Path(picture).name for picture in pictures if picture.endswith(".svg")} and len(drawn) == 3
        (link,) = re.findall(r"\[config.yaml\]\(([^)]+)\)", text)
        assert (file.parent / link).read_text().startswith("seed_everything")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
