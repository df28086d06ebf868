"""Numbers in the report: metrics under their names, of the runs and on the card, with times and sizes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.report_page import page
from tests.support.reports import FIDELITY, write_measured_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_measured_runs(tmp_path)


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


def test_the_card_shows_the_tokenizer_that_the_samples_name(runs: Path) -> None:
    other = runs / "digits/tokenizer/other"
    shutil.copytree(runs / "digits/tokenizer/fq_dual", other)
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["validate"]["metrics"]["val/psnr"] = 99.0
    (other / "metrics.json").write_text(json.dumps(metrics))
    file = runs / "digits/samples/fq_dual/samples.json"
    record = json.loads(file.read_text())
    record["settings"]["generator"]["run"] = str(runs / "digits/stage2/slow")
    record["settings"]["tokenizer"] = {"run": str(runs / "digits/tokenizer/fq_dual"), "fingerprint": "0f"}
    file.write_text(json.dumps(record))
    page(runs)
    text = (runs / "digits/report.html").read_text(encoding="utf-8")
    assert "tokenizer/fq_dual → stage2/slow" in text and numbers(text)[2] == "PSNR 24.78 dB ↑ reconstructions"


def test_an_evaluation_of_earlier_samples_is_left_out(runs: Path) -> None:
    """Training goes on, and `make sample` replaces the samples but not their `metrics.json`."""
    samples = runs / "digits/samples/fq_dual"
    files = {name: json.loads((samples / name).read_text()) for name in ("samples.json", "metrics.json")}
    for drawn, measured, is_shown in (("a", "a", True), ("b", "a", False), (None, "a", True), ("a", None, True)):
        for name, parts, digest in (
            ("samples.json", files["samples.json"], drawn),
            ("metrics.json", files["metrics.json"]["evaluate"]["samples"], measured),
        ):
            parts.pop("sha256", None)
            parts |= {} if digest is None else {"sha256": digest}
            (samples / name).write_text(json.dumps(files[name]))
        html = page(runs)
        on_card = numbers((runs / "digits/report.html").read_text(encoding="utf-8"))
        assert ("0.1234 (to 355)" in sum(html.rows, [])) == is_shown, (drawn, measured)
        assert on_card[0].startswith("Fréchet distance of samples 0.123" if is_shown else "PSNR"), (drawn, measured)
        assert ("not done yet: make evaluate" in html.text) != is_shown, (drawn, measured)


def test_measurements_of_another_step_say_so(runs: Path) -> None:
    tokenizer, generator = runs / "digits/tokenizer/fq_dual", runs / "digits/stage2/fq_dual"
    generator.mkdir(parents=True)
    probe = {"probe": "linear", "feature": "after/all", "value": 0.5, "standard_error": 0.01}
    row = {"features": "decoded", "top1": 0.5, "top1_standard_error": 0.01, "top5": 1.0, "top5_standard_error": 0.0}
    named = {"path": "classes", "sha256": "0", "text_tower": "text", "num_prompts": 80}
    use = {"usage": [0.5], "perplexity": [10.0]}
    curve = {"factor": 10.0, "usage": [[0.5, 1.0]], "area": [0.75]}
    values = {"sts": [0.5], "nts": [1.0], "cknna": [0.125], "cka": [0.1], "correlation": None, "n": 200, "k": 10}
    layers = {**values, "positions": 16, "teacher": "mid", "source": "validation", "time": None, "aligned": None}
    scale = {"guidance": 1.0, "metrics": {"gfd/judge": {"value": 0.5, "n": 40}}, "settings": {}, "notes": []}
    of_tokenizer = {
        "probes.json": {"probes": [probe], "n_validation": 355, "chance": 0.1},
        "zero_shot.json": {"rows": [row], "n": 9, "num_classes": 10, "teacher": "stand_in", "class_vectors": named},
        "codes.json": {"bits_per_image": 8.0, "n": 355, "metrics": {}, "positions": [use], "notes": []},
        "recovery.json": {"curves": [curve], "factor": 10.0, "n": 64, "settings": {}, "notes": []},
        "fidelity.json": FIDELITY,
    }

    def captions(step: int) -> list[str]:
        origin = {"generator": {"step": step}}
        for name, content in of_tokenizer.items():
            (tokenizer / name).write_text(json.dumps({**content, "checkpoint": {"step": step}}))
        sections = json.loads((tokenizer / "metrics.json").read_text())
        distance = {"metrics": {"reconstructions": {"rfd/judge": {"value": 0.5, "n": 355}}}, "notes": []}
        about: dict[str, Any] = {
            "extractor": {"name": "judge", "sha256": None},
            "reference": {"reference": "digits images"},
        }
        about["samples"] = {"n": 355, "settings": {"step": step}}
        compared = {"reconstruction": {"judge": {**distance, **about}}}
        (tokenizer / "metrics.json").write_text(json.dumps({**sections, **compared}))
        (generator / "layers.json").write_text(json.dumps({**layers, "origin": origin}))
        (generator / "sweep.json").write_text(json.dumps({"scales": [{**scale, "origin": origin}]}))
        page(runs)
        text = (runs / "digits/report.html").read_text(encoding="utf-8")
        return [one for one in re.findall(r'<p class="caption">(.*?)</p>', text) if not one.startswith("Measured by")]

    (generator / "metrics.json").write_text(json.dumps({"fit": {"global_step": 1000, "metrics": {"train/loss": 1.0}}}))
    assert len(captions(1000)) == 9 and not any("measured at" in caption for caption in captions(1000))
    assert all(caption.endswith("; measured at step 3,000") for caption in captions(3000))


def test_metrics_of_another_step_have_it_as_a_fact(runs: Path) -> None:
    file = runs / "digits/tokenizer/fq_dual/metrics.json"
    sections = json.loads(file.read_text())
    others = {command: {"global_step": 1000, "metrics": {f"{command}/psnr": 9.0}} for command in ("fit", "test")}
    file.write_text(json.dumps({**sections, **others}))
    assert not {"step of the training metrics", "step of the test"} & {word for word, _ in page(runs).facts}
    others["fit"]["global_step"], others["test"]["global_step"] = 6000, 500
    file.write_text(json.dumps({**sections, **others}))
    facts = page(runs).facts
    for fact in (["step measured", "1,000"], ["step of the training metrics", "6,000"], ["step of the test", "500"]):
        assert facts.count(fact) == 1, fact


def test_a_dependency_of_replaced_codes_says_so(runs: Path) -> None:
    store = runs / "digits/tokens/fq_dual"
    (store / "train").mkdir(parents=True)
    pair = {"kind": "branches", "sub_codes": [0, 1], "scale": None, "bits": 0.5, "deviation": 0.01, "entropy": 4.0}
    found = {"entries": [pair], "estimator": "plug-in", "images": 355, "tokenizer_fingerprint": "old"}
    (store / "dependency.json").write_text(json.dumps(found))
    for fingerprint in ("old", "new"):
        manifest = {"spec": {"codebook_sizes": [64, 64], "scales": [[4, 4]]}, "tokenizer_fingerprint": fingerprint}
        (store / "train/manifest.json").write_text(json.dumps(manifest))
        assert ("measured on codes of other weights" in page(runs).text) == (fingerprint == "new")


def test_every_metric_of_images_is_shown(runs: Path) -> None:
    file = runs / "digits/samples/fq_dual/metrics.json"
    record = json.loads(file.read_text())
    found = {"gfid/inception": 3.25, "gsfid/inception": 6.5, "gis/inception": 211.5, "precision/inception": 0.8125}
    found |= {"recall/inception": 0.625, "gkid/inception": 0.001, "new/inception": 17.5}
    record["evaluate"]["metrics"]["samples"] = {name: {"value": value, "n": 500} for name, value in found.items()}
    record["evaluate"]["metrics"]["samples"]["gkid/inception"]["deviation"] = 0.0002
    file.write_text(json.dumps(record))
    rows = page(runs).rows
    assert dict(zip(*rows[:2], strict=True)) == {
        "images": "samples",
        "number": "500",
        "FID ↓": "3.25",
        "sFID ↓": "6.50",
        "score ↑": "211.50",
        "recognised as their label ↑": "–",
        "precision ↑": "0.812",
        "recall ↑": "0.625",
        "KID ↓": "0.001 ± 0.0002",
        "new/inception": "17.5",
    }


def test_metrics_have_names_in_groups_and_details_are_folded(runs: Path) -> None:
    file = runs / "digits/tokenizer/fq_dual/metrics.json"
    metrics = {"val/dead/0": 3.0, "val/psnr": 24.78, "val/psnr_raw": 24.5, "val/made_up": 7.125, "val/usage/1": 0.5}
    fit = {"metrics": {"train/loss": 0.375, "lr-AdamW/all": 1e-4, "val/psnr": 24.78}}
    file.write_text(
        json.dumps({"fit": fit, "validate": {"metrics": metrics}, "test": {"metrics": {"test/psnr": 23.5}}})
    )
    html = page(runs)
    first = html.rows.index(["Images", "fq_dual"])
    assert html.rows[first:] == [
        ["Images", "fq_dual"],
        ["PSNR (test set), dB ↑", "23.50"],
        ["PSNR, dB ↑", "24.78"],
        ["Codes", "fq_dual"],
        ["codes of sub-code 1 in use ↑", "50%"],
        ["codes of sub-code 0 not in use ↓", "3"],
        ["Details", "fq_dual"],
        ["PSNR before rounding to 8 bits, dB ↑", "24.50"],
        ["train/loss", "0.375"],
        ["val/made_up", "7.125"],
    ]
    shown, details = html.text.split("more metrics")
    assert "codes of sub-code 0 not in use" in shown and "PSNR before rounding" not in shown
    assert "PSNR before rounding" in details


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
    html = page(runs)
    for fact in (
        ["training time of all runs", "3 min 20 s (tokenizer/fq_dual 3 min 20 s)"],
        ["trainable parameters", "tokenizer 1,234,567"],  # without the average, which has none
        ["training time", "3 min 20 s in 2 sessions"],
        ["peak memory", "1.5 GB"],
        ["speed", "200 images/s"],
        ["speed", "25 images/s"],
        ["codes of an image", "32 (16 positions)"],
        ["bits of an image", "192"],
        ["codebook sizes", "64 · 64"],
    ):
        assert html.facts.count(fact) == 1, fact
    assert ["branches, sub-codes 0 and 1", "mean", "0.500 ± 0.010", "12.5%"] in html.rows


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
    html = page(runs)
    assert "200 validation images, k = 10; training aligned block 1" in html.text
    assert html.rows[-3:] == [
        ["block", "STS", "NTS", "CKNNA", "linear CKA"],
        ["1", "0.500", "1.000", "0.125", "0.100"],
        ["2", "0.250", "–", "0.750", "0.200"],
    ]
    short = record | {"cka": [0.1]}  # a damaged file
    (runs / "digits/tokenizer/fq_dual/layers.json").write_text(json.dumps(short))
    assert page(runs).rows[-1] == ["2", "0.250", "–", "0.750", "–"]


def test_fidelity_is_two_tables(runs: Path) -> None:
    (runs / "digits/tokenizer/fq_dual/fidelity.json").write_text(json.dumps(FIDELITY))
    html = page(runs)
    assert "Text: 1,200 words a size, read by a reader" in html.text
    assert "Faces: 100 a size, cosine by an unknown network" in html.text
    assert html.rows[-7:] == [
        ["height of a word", "T-ACC, originals", "T-ACC ↑", "T-NED, originals", "T-NED ↑"],
        ["8 of 64 px", "100.0%", "25.0%", "100.0%", "50.0%"],
        ["16 of 64 px", "100.0%", "75.0%", "100.0%", "50.0%"],
        ["mean", "100.0%", "50.0%", "100.0%", "50.0%"],
        ["side of a face", "cosine ↑", "of different faces", "identified ↑"],
        ["32 of 64 px", "0.750", "0.500", "90.0%"],
        ["mean", "0.750", "0.500", "90.0%"],
    ]


def test_codes_and_recovery_are_tables(runs: Path) -> None:
    tokenizer = runs / "digits/tokenizer/fq_dual"
    sets = {
        "reconstructed": {"rfd/judge": {"value": 0.05, "n": 355}},
        "perturbed": {"pfd/judge": {"value": 0.25, "n": 355}},
    }
    use = [{"usage": [0.5, 1.0], "perplexity": [10.0, 20.0]}, {"usage": [0.25, 0.25], "perplexity": [4.0, 4.0]}]
    measured = {"bits_per_image": 192.0, "n": 355, "metrics": sets, "positions": use, "notes": []}
    (tokenizer / "codes.json").write_text(
        json.dumps(measured | {"perturbation": {"alpha": 1.0, "beta": 0.5, "delta": 8, "seed": 0}})
    )
    curves = [{"factor": 10.0, "usage": [[0.125, 0.5], [1.0, 1.0]], "area": [0.25, 1.0]}]
    recovered = {"curves": curves, "factor": 10.0, "n": 64, "settings": {}, "notes": []}
    (tokenizer / "recovery.json").write_text(json.dumps(recovered))
    html = page(runs)
    assert "355 images decoded, and with 50% of the codes drawn from their neighbours" in html.text
    assert "least, mean and greatest of the positions; 192 bits an image" in html.text
    assert "codes in use by features of 64 images" in html.text
    assert html.rows[-9:] == [
        ["images", "Fréchet distance ↓"],
        ["reconstructed", "0.05"],
        ["perturbed", "0.25"],
        ["sub-code", "codes seen", "perplexity"],
        ["0", "50.0% 75.0% 100.0%", "10.0 15.0 20.0"],
        ["1", "25.0% 25.0% 25.0%", "4.0 4.0 4.0"],
        ["scale of the codebooks", "sub-code", "in use at the start", "mean ↑", "at the end"],
        ["10", "0", "12.5%", "25.0%", "50.0%"],
        ["10", "1", "100.0%", "100.0%", "100.0%"],
    ]


def test_a_tokenizer_without_codes_has_no_table_of_them(runs: Path) -> None:
    before = page(runs).rows
    continuous = {"bits_per_image": 4096.0, "n": 0, "metrics": {}, "positions": [], "notes": ["no codes"]}
    (runs / "digits/tokenizer/fq_dual/codes.json").write_text(json.dumps(continuous))
    assert page(runs).rows == before


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
    assert html.rows[-7:] == [
        ["feature", "width", "linear ↑", "nearest class mean ↑"],
        ["after/all", "–", "87.6% ± 1.2%", "54.3% ± 1.2%"],
        ["features", "top-1 ↑", "top-5 ↑"],
        ["decoded", "80.9% ± 1.0%", "96.4% ± 0.5%"],
        ["guidance", "Fréchet distance ↓"],  # by scale, and without the row of earlier settings
        ["1.5", "0.456"],
        ["2.5", "0.321"],
    ]
    for about in (
        "355 validation images",
        "chance 10.0%",
        "500 samples a scale",
        "1,000 validation images into 10 classes",
    ):
        assert about in html.text, about
    captions = [attributes for attributes in html.all("p") if attributes.get("class") == "caption"]
    assert len(html.all("img")) == 7 and len(captions) == 4
