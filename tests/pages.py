"""Reads pages as a browser does, as far as tests need it."""

import html.parser
import re


class Reader(html.parser.HTMLParser):
    """Notes elements, and checks that they are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def read(path):
    """The page's elements and text."""
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def read_whole(path):
    """`read` of a page that must be whole and ask nobody for anything."""
    reader = read(path)
    assert reader.open == []
    assert not {tag for tag, _ in reader.seen} & {"script", "link", "iframe"}
    assert not re.search(r"https?:|url\((?!#)|@import", path.read_text())
    for _, attrs in reader.seen:
        assert attrs.get("href", "#").startswith("#")
        assert attrs.get("xlink:href", "#").startswith("#")
    return reader
