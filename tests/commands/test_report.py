"""The report: valid, self-contained HTML, commands for missing parts, and the same content as Markdown."""

import base64
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from commands.report.__main__ import main
from tests.support.report_page import page
from tests.support.reports import ROWS, write_measured_runs, write_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_measured_runs(tmp_path)


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
    assert html.rows == [
        ["images", "number", "Fréchet distance ↓", "score ↑", "recognised as their label ↑"],
        ["samples", "500", "0.1234 (to 355)", "8.50", "93.4%"],
        ["real, validation", "355", "–", "9.00", "98.0%"],
        ["Images", "fq_dual"],
        ["PSNR, dB ↑", "24.78"],
        ["SSIM ↑", "–"],
    ]
    for fact in (
        ["compared with", "digits images, by judge"],
        ["global batch", "256 (32 × 8 processes)"],
        ["step measured", "1,000"],
        ["commit", "abc"],
        ["sampler", "guidance 2.0"],
        ["note", "a <note>"],
    ):
        assert html.facts.count(fact) == 1, fact
    assert "# <b>" in html.text, "the configuration"
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


@pytest.mark.slow
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


def test_curves_of_runs_with_similar_names_have_files_of_their_own(runs: Path) -> None:
    names = ("fq-dual", "日本", "中国", "r" * 200)
    for name in names:
        shutil.copytree(runs / "digits/tokenizer/fq_dual", runs / "digits/tokenizer" / name)
    page(runs)
    linked = re.findall(r"\(([^()]+\.svg)\)", (runs / "digits/report.md").read_text(encoding="utf-8"))
    assert len(linked) == len(set(linked)) == 2 * (1 + len(names))
    assert {path.name for path in (runs / "digits/report_pictures").iterdir()} == {Path(link).name for link in linked}


def test_samples_around_references_are_described_as_such(runs: Path) -> None:
    file = runs / "digits/samples/fq_dual/samples.json"
    record = json.loads(file.read_text())
    for settings, texts in (
        ({}, ("Samples of fq_dual, a row for each class", "Class-conditional samples (row label = class)")),
        (
            {"references": ["a.png"]},
            ("Samples of fq_dual, a row for each reference", "Samples around references (a row for each reference, "),
        ),
    ):
        file.write_text(json.dumps({**record, "settings": record["settings"] | settings}))
        found = [str(attributes["alt"]) for attributes in page(runs).all("img")]
        for text in texts:
            assert sum(alternative.startswith(text) for alternative in found) == 1, text


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
