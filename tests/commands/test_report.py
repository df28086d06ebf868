"""The report: sound HTML, nothing from elsewhere, and a word on what is missing."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from commands import report

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
    """A tokenizer's run with curves and a picture, and evaluated samples."""
    run = tmp_path / "runs/digits/tokenizer/fq_dual"
    writer = SummaryWriter(str(run))
    for step in range(0, 1000, 10):
        writer.add_scalar("train/loss", 1 / (step + 1), step)
        for codebook in range(2):
            writer.add_scalar(f"val/usage/{codebook}", step / 1000, step)
    writer.close()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run / "reconstructions.png")
    (run / "config.yaml").write_text(
        "seed_everything: 7\ntrainer: {max_steps: 1000}\nmodel: {class_path: a.B}\n# <b>\n"
    )
    measured = {"val/psnr": 24.7812, "val/ssim": None}
    versions = {"torch": "2.15"}
    section = {"global_step": 1000, "metrics": measured, "versions": versions, "commit": "abc"}
    (run / "metrics.json").write_text(json.dumps({"validate": section}))

    samples = tmp_path / "runs/digits/samples/fq_dual"
    samples.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(samples / "grid.png")
    settings = {
        "num_images": 500,
        "classes": "balanced",
        "seed": 0,
        "sampler": {"guidance": 2.0},
        "generator": {"run": "runs/digits/stage2/fq_dual", "step": 2000},
    }
    (samples / "samples.json").write_text(json.dumps({"settings": settings}))
    figures = {
        "samples": {
            "recognised/judge": {"value": 0.934, "n": 500},
            "gis/judge": {"value": 8.5, "n": 500},
            "gfd/judge": {"value": 0.1234, "n": 500, "reference_n": 355},
        },
        "validation": {"recognised/judge": {"value": 0.98, "n": 355}, "is/judge": {"value": 9.0, "n": 355}},
    }
    (samples / "metrics.json").write_text(json.dumps({"evaluate": {"figures": figures, "notes": ["a <note>"]}}))
    return tmp_path / "runs"


def page(runs: Path) -> Page:
    report.main(["--runs", str(runs)])
    return Page((runs / "digits/report.html").read_text(encoding="utf-8"))


def test_page_is_sound_and_needs_nothing_else(runs: Path) -> None:
    html = page(runs)
    assert not html.all("script") and not html.all("link") and not html.all("iframe")
    sources = [attributes["src"] or "" for attributes in html.all("img")]
    assert len(sources) == 4 and all(source.startswith("data:image/") for source in sources)
    anchors = {attributes["href"] for attributes in html.all("a")}
    assert anchors == {f"#{attributes['id']}" for attributes in html.all("section")}
    styles = (runs / "digits/report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in styles and "@import" not in styles
    for name, attributes in html.tags:
        assert not any(key.startswith("on") or key in ("srcset", "poster", "action") for key in attributes), name
    assert all(attributes["alt"] for attributes in html.all("img"))


def test_pictures_and_curves_are_whole(runs: Path) -> None:
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


def test_it_tells_what_was_run_and_measured(runs: Path) -> None:
    html = page(runs)
    for expected in ("24.78", "93.4%", "0.1234 (to 355)", "98.0%", "1,000", "abc", "guidance 2.0", "# <b>", "a <note>"):
        assert expected in html.text, expected
    headings = [tag for tag, _ in html.tags if tag in ("h1", "h2", "h3")]
    assert headings.count("h1") == 1 and headings.count("h2") == 5 and headings.count("h3") == 2
    assert all(attributes.get("class") == "scroll" for attributes in html.all("div") if "tabindex" in attributes)


def test_missing_parts_name_the_target_that_makes_them(runs: Path) -> None:
    text = page(runs).text
    for target in ("teacher", "stage1", "stage2"):
        assert f"make {target} PRESET=digits makes it" in text
    assert "make tokenizer" not in text
    (runs / "digits/samples/fq_dual/metrics.json").unlink()
    assert "not done yet: make evaluate PRESET=digits" in page(runs).text


def test_an_empty_preset_has_a_page_and_a_missing_one_has_none(tmp_path: Path) -> None:
    (tmp_path / "runs/digits").mkdir(parents=True)
    assert "make sample PRESET=digits makes it" in page(tmp_path / "runs").text
    with pytest.raises(SystemExit, match="there are no runs in .*photos: make demo PRESET=photos"):
        report.main(["--runs", str(tmp_path / "runs"), "--preset", "photos"])


def test_baselines_have_a_section_of_their_own(runs: Path) -> None:
    (runs / "digits/tokenizer/fq_dual").rename(runs / "digits/moved")
    (runs / "digits/llamagen").mkdir()
    (runs / "digits/moved").rename(runs / "digits/llamagen/vq")
    text = page(runs).text
    assert "Runs in llamagen" in text and "24.78" in text and "Runs in tokens" not in text


def test_sweep_and_probes_stand_in_their_runs(runs: Path) -> None:
    assert "Probes:" not in page(runs).text and "Guidance:" not in page(runs).text
    probes = [
        {"probe": kind, "subspace": "all", "vectors": "after", "value": value, "standard_error": 0.0123}
        for kind, value in (("linear", 0.876), ("nearest_class_mean", 0.543))
    ]
    tokenizer = runs / "digits/tokenizer/fq_dual"
    found = {"probes": probes, "n_validation": 355, "chance": 0.1}
    (tokenizer / "probes.json").write_text(json.dumps(found))
    generator = runs / "digits/stage2/fq_dual"
    generator.mkdir(parents=True)
    (generator / "config.yaml").write_text("seed_everything: 7\n")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(generator / "sweep.png")
    scales = [
        {"guidance": scale, "figures": {"gfd/judge": {"value": value}}, "settings": {"num_images": images}}
        for scale, value, images in ((1.0, 0.999, 40), (2.5, 0.321, 500), (1.5, 0.456, 500))
    ]
    (generator / "sweep.json").write_text(json.dumps({"scales": scales}))
    html = page(runs)
    for expected in ("87.6% ± 1.2%", "54.3% ± 1.2%", "355 validation images", "chance 10.0%", "500 samples a scale"):
        assert expected in html.text, expected
    assert "0.999" not in html.text  # of earlier settings
    assert html.text.index("0.456") < html.text.index("0.321")  # by scale
    assert len(html.all("img")) == 5 and len(html.all("caption")) == 2
