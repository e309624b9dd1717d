"""The command line parser, with argparse as its oracle."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.ctl.main import VERBS, parser_for, split_verb
from qsup.ctl.parser import Parser, seconds
from qsup.errors import UsageError


def declare(parser: Any, names: str | None) -> None:
    """One option of each sort, and names."""
    parser.add_argument("-f", "--follow", action="store_true")
    parser.add_argument("-n", "--lines", type=int, default=10)
    parser.add_argument("--format", choices=("a", "b"), default="a")
    parser.add_argument("-p", "--property", action="append", default=[])
    parser.add_argument("--no-wait", action="store_false", dest="wait", default=True)
    parser.add_argument("first")
    if names is not None:
        parser.add_argument("names", nargs=names)


class Oracle(argparse.ArgumentParser):
    """argparse that raises."""

    def error(self, message: str) -> Any:
        """Raise what the parser under test raises."""
        raise UsageError(message)


FLAGS = "-f --follow -n -n5 -fn5 --lines=7 --lines --format --format=b -p -pk --property=k --no-wait -ff"
WRONG = "--unknown -z --follow=1 --format=c"
WORDS = st.sampled_from(["web", "db", "-", "a", "b", "", "5", *FLAGS.split(), *WRONG.split()])


@given(words=st.lists(WORDS, max_size=7), names=st.sampled_from([None, "?", "*", "+"]))
def test_it_parses_as_argparse_does(words: list[str], names: str | None) -> None:
    """Every command line gives the values that argparse gives, or an error where argparse has one."""
    oracle = Oracle(allow_abbrev=False, add_help=False)
    declare(oracle, names)
    parser = Parser("try")
    declare(parser, names)
    expected = None
    with contextlib.suppress(UsageError):
        expected = vars(oracle.parse_intermixed_args(words))
    if expected is None:
        with pytest.raises(UsageError):
            parser.parse_args(words)
    else:
        assert vars(parser.parse_args(words)) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lnes", "5", "x"], "there is no option --lnes; did you mean --lines?"),
        (["x", "-n"], "-n needs a value"),
        (["x", "-n", "many"], "'many' is not valid"),
        (["x", "--format", "c"], "'c' is none of a, b"),
        (["x", "y"], "'y' is one argument too many"),
        ([], "FIRST is missing"),
        (["x", "--", "-f"], "'-f' is one argument too many"),
        (["x", "--follow=yes"], "--follow takes no value"),
    ],
)
def test_errors_say_what_is_wrong(words: list[str], message: str) -> None:
    """A wrong command line is told by its own words, with where to read more."""
    parser = Parser("try")
    declare(parser, None)
    with pytest.raises(UsageError) as caught:
        parser.parse_args(words)
    assert message in caught.value.message
    assert caught.value.hint == "qsupctl try --help explains it"


def test_what_stands_behind_two_dashes_is_left_alone() -> None:
    """A verb that takes a command of the guest's gets it untouched."""
    parser = Parser("try")
    parser.set_defaults(rest=[])
    declare(parser, None)
    assert parser.parse_args(["x", "--", "ls", "-n", "--"]).rest == ["ls", "-n", "--"]


def test_two_dashes_end_the_options() -> None:
    """Behind them there are names alone, whatever they begin with."""
    parser = Parser("try")
    declare(parser, "*")
    options = parser.parse_args(["-f", "--", "web", "-n", "--"])
    assert (options.follow, options.first, options.names, options.lines) == (True, "web", ["-n", "--"], 10)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    """Each verb's help fits 100 columns and names each of its options once."""
    parser, _ = parser_for(verb)
    text = parser.help()
    assert text.startswith(f"usage: qsupctl {verb} [OPTION...]")
    assert max(map(len, text.splitlines())) <= 110
    assert text.count("--socket PATH") == 1


@pytest.mark.parametrize(
    ("argv", "verb", "rest"),
    [
        ([], "", []),
        (["list"], "list", []),
        (["-o", "json", "list", "x"], "list", ["-o", "json", "x"]),
        (["--socket", "list", "stop"], "stop", ["--socket", "list"]),
        (["--socket=/s", "--user", "stop", "--all"], "stop", ["--socket=/s", "--user", "--all"]),
        (["--daemon-timeout", "2s", "stop"], "stop", ["--daemon-timeout", "2s"]),
        (["--root"], "", ["--root"]),
    ],
)
def test_common_options_may_stand_before_the_verb(argv: list[str], verb: str, rest: list[str]) -> None:
    """The verb is the first word that is neither an option nor an option's value."""
    assert split_verb(argv) == (verb, rest)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90.0), ("1.5s", 1.5), ("200ms", 0.2), ("2min", 120.0), ("2m", 120.0), ("1h", 3600.0)]
)
def test_times_have_units(text: str, value: float) -> None:
    """A time is a number with an optional unit."""
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "-1", "nan", "inf", "1e12", "5 parsecs", "1h1", "1sm"])
def test_other_times_are_refused(text: str) -> None:
    """Anything else is no time."""
    with pytest.raises(ValueError):
        seconds(text)
