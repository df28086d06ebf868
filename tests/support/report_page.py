"""The page of a report, as a browser reads it."""

from html.parser import HTMLParser
from pathlib import Path

from commands.report.__main__ import main

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags match, and collects what a test asks for: tags, text, rows of tables, terms and descriptions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.facts: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "dt":
            self.facts.append(["", ""])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "dt" in self.open:
            self.facts[-1][0] += data
        elif "dd" in self.open:
            self.facts[-1][1] += data
        elif {"th", "td"} & {*self.open}:
            self.rows[-1][-1] += data.replace("\xa0", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(runs: Path) -> Page:
    """Write the report of the digits, and read it."""
    main(["--runs", str(runs)])
    return Page((runs / "digits/report.html").read_text(encoding="utf-8"))
