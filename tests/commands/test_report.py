"""The report: valid, self-contained HTML, commands for missing parts, and the same content as Markdown."""

import base64
import json
import re
import shutil
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
    assert len(sources) == 6 and all(source.startswith("data:image/") for source in sources)
    links = {str(attributes["href"]) for attributes in html.all("a")}
    ids = {f"#{attributes['id']}" for _, attributes in html.tags if "id" in attributes}
    sections = {f"#{attributes['id']}" for attributes in html.all("section")} - {"#card"}
    assert sections | {"#main"} <= {link for link in links if link.startswith("#")} <= ids
    assert all((runs / "digits" / link).is_file() for link in links if not link.startswith("#"))
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
    # two of them are on the card too; the two usages share a picture
    assert kinds == ["data:image/png"] * 4 + ["data:image/svg+xml"] * 2
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
    assert "Generator llamagen" in text and "24.78" in text and "Generator tokens" not in text


def test_only_stages_of_the_curriculum_are_missing(runs: Path) -> None:
    """A tokenizer alone lacks both stages; one with another generator, or with a trained stage 2, lacks none."""

    def missing() -> list[str]:
        return re.findall(r"make (tokenizer|stage1|stage2) ", page(runs).text)

    tokenizer, generators = runs / "digits/tokenizer/fq_dual", ("stage1", "stage2", "llamagen_ideal")
    stage1, stage2, llamagen = (runs / "digits" / name / "one" for name in generators)
    assert missing() == ["stage1", "stage2"]
    for place, expected in ((stage1, ["stage2"]), (stage2, []), (llamagen, [])):
        place.mkdir(parents=True)
        (place / "config.yaml").write_text("seed_everything: 7\n")
        assert missing() == expected, place
    shutil.rmtree(stage1.parent)
    assert missing() == []
    shutil.rmtree(stage2.parent)
    assert missing() == []
    shutil.rmtree(llamagen.parent)
    kind = "model: {init_args: {tokenizer: {class_path: polytoken.tokenizers.RepresentationTokenizer}}}\n"
    (tokenizer / "config.yaml").write_text(kind)
    assert missing() == [], "the generator of ideal has no stages"


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
    assert len(html.all("img")) == 7 and len(captions) == 4


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
    assert "An empty table" not in text and text.count("make experiment EXPERIMENT=ssq/table5 PRESET=digits") == 1


def test_generation_is_plotted_over_reconstruction(runs: Path) -> None:
    assert "Reconstruction against generation" not in page(runs).text
    write_results(runs)
    html = page(runs)
    (picture,) = [attributes for attributes in html.all("img") if "gFD over rFD" in str(attributes["alt"])]
    drawn = base64.b64decode(str(picture["src"]).split(",")[1]).decode()
    assert all(f"<!-- {label} -->" in drawn for label in ROWS)
    for expected in ("0.059", "0.47", "0.411"):  # means over the seeds, and their difference
        assert expected in html.text, expected
    assert "Reconstruction against generation" in html.text


def test_markdown_has_the_same_content_and_links_existing_pictures(runs: Path, tmp_path: Path) -> None:
    write_results(runs)
    elsewhere = tmp_path / "docs/a_report.html"
    for output, stem in ((runs / "digits/report.html", "report"), (elsewhere, "a_report")):
        main(["--runs", str(runs), "--output", str(output)])
        file = output.with_suffix(".md")
        text = file.read_text(encoding="utf-8")
        headings = re.findall(r"^##* (.*)$", text, re.MULTILINE)
        assert headings[1] == "tokenizer/fq_dual → stage2/fq_dual" and "SSQ Table 5: stages \\| noise" in headings
        for expected in (
            "| PSNR, dB ↑ | 24.78 |",
            "a &lt;note>",
            "- machine: a PC",
            "`make stage1 PRESET=digits`",
        ):
            assert expected in text, expected
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert len(pictures) == 7
        assert all((file.parent / picture).stat().st_size for picture in pictures)
        drawn = {path.name for path in (file.parent / f"{stem}_pictures").iterdir()}
        assert drawn == {Path(picture).name for picture in pictures if picture.endswith(".svg")} and len(drawn) == 3
        (link,) = re.findall(r"\[config.yaml\]\(([^)]+)\)", text)
        assert (file.parent / link).read_text().startswith("seed_everything")
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def numbers(html: str) -> list[str]:
    """The numbers of the card as text."""
    items = re.findall(r"<li><small>.*?</li>", html)
    return [" ".join(re.sub(r"<[^>]+>", " ", item).split()) for item in items]


def test_the_card_has_numbers_with_unit_and_direction(runs: Path) -> None:
    html = page(runs)
    text = (runs / "digits/report.html").read_text(encoding="utf-8")
    assert numbers(text) == [
        "Fréchet distance of samples 0.123 ↓ 500 images, by judge",
        "Samples recognised as their class 93.4 % ↑ 500 images, by judge",
        "PSNR 24.78 dB ↑ reconstructions",
    ]
    assert html.text.index("tokenizer/fq_dual → stage2/fq_dual") < html.text.index("Samples of")
    alternatives = [str(attributes["alt"]) for attributes in html.all("img")][:2]
    assert alternatives[0].startswith("Samples of fq_dual") and alternatives[1].endswith("by fq_dual")
    assert "higher is better" in text and "lower is better" in text
    (runs / "digits/samples/fq_dual/samples.json").unlink()
    page(runs)
    assert numbers((runs / "digits/report.html").read_text(encoding="utf-8")) == ["PSNR 24.78 dB ↑ reconstructions"]


def test_the_best_samples_are_on_the_card(runs: Path) -> None:
    better = runs / "digits/samples/better"
    shutil.copytree(runs / "digits/samples/fq_dual", better)
    record = json.loads((better / "metrics.json").read_text())
    record["evaluate"]["metrics"]["samples"]["gfd/judge"]["value"] = 0.05
    (better / "metrics.json").write_text(json.dumps(record))
    page(runs)
    assert numbers((runs / "digits/report.html").read_text())[0].startswith("Fréchet distance of samples 0.05 ↓")


def test_every_metric_of_images_is_shown(runs: Path) -> None:
    file = runs / "digits/samples/fq_dual/metrics.json"
    record = json.loads(file.read_text())
    found = {"gfid/inception": 3.25, "gsfid/inception": 6.5, "gis/inception": 211.5, "precision/inception": 0.8125}
    found |= {"recall/inception": 0.625, "gkid/inception": 0.001, "new/inception": 17.5}
    record["evaluate"]["metrics"]["samples"] = {name: {"value": value, "n": 500} for name, value in found.items()}
    record["evaluate"]["metrics"]["samples"]["gkid/inception"]["deviation"] = 0.0002
    file.write_text(json.dumps(record))
    text = page(runs).text
    for expected in (
        "FID",
        "3.25",
        "sFID",
        "6.50",
        "211.50",
        "0.812",
        "0.625",
        "0.001 ± 0.0002",
        "new/inception",
        "17.5",
    ):
        assert expected in text, expected


def test_metrics_have_names_in_groups_and_details_are_folded(runs: Path) -> None:
    file = runs / "digits/tokenizer/fq_dual/metrics.json"
    metrics = {"val/dead/0": 3.0, "val/psnr": 24.78, "val/psnr_raw": 24.5, "val/made_up": 7.125, "val/usage/1": 0.5}
    fit = {"metrics": {"train/loss": 0.375, "lr-AdamW/all": 1e-4, "val/psnr": 24.78}}
    file.write_text(
        json.dumps({"fit": fit, "validate": {"metrics": metrics}, "test": {"metrics": {"test/psnr": 23.5}}})
    )
    html = page(runs).text
    shown, details = html.split("more metrics")
    assert shown.rstrip().endswith("3")
    assert [
        word for word in ("PSNR, dB", "PSNR (test set), dB", "codes of sub-code 1 in use") if word not in shown
    ] == []
    assert shown.index("PSNR, dB") < shown.index("codes of sub-code 0 not in use"), "images before codes"
    for expected in ("PSNR before rounding to 8 bits", "val/made_up", "7.125", "train/loss", "0.375"):
        assert expected in details and expected not in shown, expected
    assert "lr-AdamW" not in html


def test_times_sizes_and_codes_are_facts_of_a_run(runs: Path) -> None:
    session = {"first_step": 0, "last_step": 500, "images": 16000, "seconds": 100.0, "validation_seconds": 20.0}
    timing = {"parameters": {"tokenizer": 1234567, "average": 0}, "fit": [session | {"memory_bytes": 1.5e9}] * 2}
    (runs / "digits/tokenizer/fq_dual/timing.json").write_text(json.dumps(timing))
    store = runs / "digits/tokens/fq_dual"
    (store / "train").mkdir(parents=True)
    spec = {"codebook_sizes": [64, 64], "scales": [[4, 4]]}
    (store / "train/manifest.json").write_text(json.dumps({"spec": spec}))
    pair = {"kind": "branches", "sub_codes": [0, 1], "scale": None, "bits": 0.5, "deviation": 0.01, "entropy": 4.0}
    found = {"entries": [pair], "estimator": "plug-in", "images": 355}
    (store / "dependency.json").write_text(json.dumps(found))
    (runs / "digits/samples/fq_dual/timing.json").write_text(json.dumps({"predict": {"images": 500, "seconds": 20}}))
    text = page(runs).text
    for expected in (
        "tokenizer 1,234,567",
        "3 min 20 s in 2 sessions",
        "3 min 20 s (tokenizer/fq_dual 3 min 20 s)",
        "200 images/s",
        "25 images/s",
        "1.5 GB",
        "32 (16 positions)",
        "192",
        "64 · 64",
        "0.500 ± 0.010",
        "12.5%",
    ):
        assert expected in text, expected
    assert "average" not in text


def test_facts_in_which_all_runs_agree_are_said_once(runs: Path) -> None:
    stage = runs / "digits/stage1/fq_dual"
    stage.mkdir(parents=True)
    section = {
        "metrics": {"val/nll": 2.0},
        "versions": {"torch": "2.15", "timm": "1.0"},
        "machine": "a PC",
        "commit": "d",
    }
    (stage / "metrics.json").write_text(json.dumps({"validate": section}))
    text = page(runs).text
    body, foot = text.split("All runs share:")
    assert body.count("a PC") == 1 == foot.count("a PC"), "on the card and at the end"
    assert "torch 2.15, timm 1.0" in foot
    assert "abc" in body and "abc" not in foot, "commits differ"


def test_layers_are_a_table(runs: Path) -> None:
    values = {"sts": [0.5, 0.25], "nts": [1.0, None], "cknna": [0.125, 0.75], "cka": [0.1, 0.2], "probe": None}
    about = {"correlation": None, "n": 200, "positions": 16, "k": 10, "teacher": "mid", "source": "validation"}
    record = values | about | {"time": None, "aligned": 1}
    (runs / "digits/tokenizer/fq_dual/layers.json").write_text(json.dumps(record))
    text = page(runs).text
    assert "200 validation images, k = 10; training aligned block 1" in text and "0.125" in text


def test_tokenizers_are_compared_on_their_pictures(runs: Path) -> None:
    shutil.copytree(runs / "digits/tokenizer/fq_dual", runs / "digits/tokenizer/vq")
    html = page(runs)
    alternatives = [str(attributes["alt"]) for attributes in html.all("img")]
    pair = [text for text in alternatives if text.startswith("Validation images") and "(tokenizer/" in text]
    assert len(pair) == 2 and alternatives.index(pair[1]) == alternatives.index(pair[0]) + 1, "next to each other"


def test_teachers_and_experiments_that_were_not_run_are_folded(runs: Path) -> None:
    page(runs)
    text = (runs / "digits/report.html").read_text(encoding="utf-8")
    folded = re.findall(r'<details class="folded"><summary><h2 id="([a-z]+)-title">', text)
    assert folded == ["teacher", "more"]
