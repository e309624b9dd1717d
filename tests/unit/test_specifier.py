"""Specifiers in strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.unit.specifier import SPECIFIERS, SpecifierContext, awaits_instance, escape, expand

CONTEXT = SpecifierContext(name="web@blue", hostname="host", runtime_dir="/run/q", state_dir="/var/q")


def test_every_specifier() -> None:
    """Each specifier stands for what systemd's of the same letter does."""
    assert expand("%i %n %p %H %t %S %%", CONTEXT) == "blue web@blue web host /run/q /var/q %"
    assert set(SPECIFIERS) == {"%i", "%n", "%p", "%H", "%t", "%S", "%%"}


def test_without_an_instance() -> None:
    """A VM that comes from no template has an empty instance."""
    assert expand("[%i] %p %n", SpecifierContext(name="web")) == "[] web web"


def test_in_a_template() -> None:
    """In a template the instance stands for itself, and a value with it is known to wait for one."""
    template = SpecifierContext(name="web@")
    assert expand("%i %n %p", template) == "%i web@%i web"
    assert awaits_instance(expand(["a", {"b": "%n"}], template), template)
    assert not awaits_instance(expand("%p", template), template)
    assert not awaits_instance("%i", CONTEXT)


def test_inside_values() -> None:
    """Strings within arrays and tables are expanded; keys, numbers and what came from a specifier are not."""
    assert expand(["%p", {"%p": "%p", "n": 1}], CONTEXT) == ["web", {"%p": "web", "n": 1}]
    assert expand("%H", SpecifierContext(name="a", hostname="%p")) == "%p"


@pytest.mark.parametrize("text", ["%z", "50%", "% ", "%\n", "%%%"])
def test_unknown_specifiers(text: str) -> None:
    """A percent sign that begins no specifier is an error that says how to write one."""
    with pytest.raises(ValueError, match=r"unknown specifier '%.{0,2}'; write %% for a percent sign"):
        expand(text, CONTEXT)


def test_too_deep() -> None:
    """A value nested beyond any that a key takes is refused before it exhausts the stack."""
    value: object = "x"
    for _ in range(100):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        expand(value, CONTEXT)


@given(st.text())
def test_escaped_texts_expand_to_themselves(text: str) -> None:
    """What is escaped is expanded to what it was."""
    assert expand(escape(text), CONTEXT) == text
