"""One file's bytes: what is a readable document, and where its errors are."""

from __future__ import annotations

import pytest

from qsup.unit.document import MAX_BYTES, dotted, read_document


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a = 1\nb = \n", "x.toml:2: not TOML: invalid value"),
        (b"a = 1\nb = [1,", "x.toml:2: not TOML: invalid value before the end of the file"),
        (b"a = '''\n\n", "x.toml:1: not TOML: expected \"'''\" before the end of the file"),
        (
            b"[disk]\n\n[disk]\n",
            "x.toml:3: not TOML: cannot declare [disk] twice; if there may be several, write [[disk]]",
        ),
        (b"a = 1\na = 2\n", "x.toml:2: not TOML: cannot overwrite a value"),
        (b"a = 1\n\nb = '\xff'", "x.toml:3: not UTF-8: invalid start byte 0xff"),
        (b"a = 1\nb = '\xc3", "x.toml:2: not UTF-8: unexpected end of data 0xc3"),
        (b"\xef\xbb\xbfa = 1\n", "x.toml:1: not TOML: a byte order mark is not allowed"),
        (b"a = 1\nb = '\x00'\n", "x.toml:2: not TOML: "),
        (b"a = 1\rb = 2\n", "x.toml:1: not TOML: expected newline or end of document after a statement"),
        (b"a = 1\n\nb = " + b"[" * 1000, "x.toml:3: nested deeper than 32 levels"),
        (b"a = 1\nb" + b".b" * 100 + b" = 1\n", "x.toml:2: nested deeper than 32 levels"),
        (b"#" * (MAX_BYTES + 1), "x.toml: is larger than 64 KiB"),
        (b"\nb = " + b"1" * 5000, "x.toml:2: a number of more than 1000 digits"),
    ],
)
def test_unreadable_documents(data: bytes, expected: str) -> None:
    """What is no TOML document is one error, with the line and the reason."""
    document = read_document("x.toml", data)
    (diagnostic,) = document.diagnostics
    assert str(diagnostic).startswith(expected)
    assert document.values == {}


def test_a_readable_document() -> None:
    """A readable document keeps its text, and knows the line of each key, with either kind of line end."""
    document = read_document("x.toml", b"[a]\r\nb = 1\r\n\r\n[[c]]\r\n")
    assert document.diagnostics == ()
    assert document.values == {"a": {"b": 1}, "c": [{}]}
    assert document.text == "[a]\r\nb = 1\r\n\r\n[[c]]\r\n"
    assert [document.line(path) for path in (("a",), ("a", "b"), ("c", 0), ())] == [1, 2, 4, 0]
    assert document.line(("a", "nothing")) == 1


def test_dots_in_values_are_no_depth() -> None:
    """A text with many dots in it is no deep key."""
    assert read_document("x.toml", b"a = '" + b"1." * 100 + b"'").values == {"a": "1." * 100}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("disk", "root", "path"), "disk.root.path"),
        (("a.b", "c\n"), '"a.b"."c\\n"'),
        (("x" * 100,), f'"{"x" * 60}"'),
        (("\u2028é",), '"\\u2028\\u00e9"'),
    ],
)
def test_dotted_keys(key: tuple[str, ...], text: str) -> None:
    """A key is shown on one line, quoted where TOML quotes it, and cut."""
    assert dotted(key) == text
