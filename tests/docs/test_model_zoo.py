"""Table of docs/model_zoo.md: a row for every release; `python -m tests.docs.test_model_zoo` writes it again."""

from __future__ import annotations

import re

from polytoken.pretrained.released import RELEASES
from tests.polytoken.pretrained.released.test_families import GENERATORS, TOKENIZERS
from tests.support.commands import REPOSITORY

PAGE = REPOSITORY / "docs/model_zoo.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
HEAD = (
    "name",
    "repository and file on the hub",
    "licence of the weights",
    "published by its authors",
    "tokenizer",
    "checked",
    "note",
)
FUNCTION = {  # by tests/polytoken/pretrained/released/test_*.py, on random weights
    "llamagen/vq_ds16_c2i": "names, function",
    "llamagen/c2i_B_256": "names, function",
    "var/d36": "function",
    "fqgan/dual_ds16": "names, function",
    "fqgan/triple_ds16": "names, function",
    "fqgan/far_dual_base": "names, function",
    "fqgan/far_triple_base": "names, function",
    "var/vae_ch160v4096z32": "names, function",
    "var/d16": "names, function",
    "ifsq/f16_d4_4bit": "names, function",
    "ifsq/f16_d4_4bit_grouped": "names, function",
    "ifsq/llamagen_l": "names, function",
    "ifsq/llamagen_l_grouped": "names, function",
    "ifsq/dit_l1": "names, function",
    "ifsq/dit_l2": "names, function",
    "lightningdit/vavae_f16d32": "names, function",
    "lightningdit/xl_64ep": "names, function",
    "imagefolder/MSVR10P2-4096": "names, function",
    "imagefolder/VAR-d17": "names, function",
}
NAMED = {**TOKENIZERS, **GENERATORS}


def table() -> str:
    """The table and its notes as Markdown, from the releases in the code."""
    notes = list(dict.fromkeys(release.remark for release in RELEASES.values() if release.remark))
    rows = [HEAD, ["---"] * len(HEAD), *(_row(name, notes) for name in RELEASES)]
    lines = [*(f"| {' | '.join(row)} |" for row in rows), "", *(f"{i}. {note}." for i, note in enumerate(notes, 1)), ""]
    return "\n".join(lines)


def _row(name: str, notes: list[str]) -> list[str]:
    release = RELEASES[name]
    licence = f"{release.licence.name}, **non-commercial**" if release.licence.non_commercial else release.licence.name
    where = "not released" if release.repository is None else f"`{release.repository}`: {release.file}"
    if release.companion is not None:
        where += f", and {release.companion.file} of `{release.companion.repository}`"
    return [
        f"`{name}`",
        where,
        licence,
        release.published or "–",
        f"`{release.tokenizer}`" if release.tokenizer else "–",
        _checked(name),
        str(notes.index(release.remark) + 1) if release.remark else "–",
    ]


def _checked(name: str) -> str:
    """Extent of the checks of a release, or the name of another size that was checked."""
    if name in FUNCTION or name in NAMED:
        return FUNCTION.get(name, "names")
    same = [other for other in NAMED if RELEASES[other].describe is RELEASES[name].describe]
    same.sort(key=lambda other: other in FUNCTION)
    return f"as `{same[-1]}`" if same else "no"


def test_the_page_has_the_table_of_the_code() -> None:
    found = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert found == table(), "docs/model_zoo.md is behind the code: run `python -m tests.docs.test_model_zoo`"


def test_the_page_names_only_releases() -> None:
    families = "|".join(sorted({name.split("/")[0] for name in RELEASES}))
    outside = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", "", PAGE.read_text(), flags=re.DOTALL)
    named = set(re.findall(rf"(?<![\w/])(?:{families})/[\w-]+(?=[`\"' ])", outside))
    assert named and named <= set(RELEASES)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}")
