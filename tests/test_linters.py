"""The linters and the house rules, as ordinary tests.

Decides: which tools judge the repository and which written rules are checked by machine.
Must not: hold an opinion that stands neither in pyproject.toml nor in the contributor's guide.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
THIS_FILE = Path(__file__).resolve()


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Every file that is or would be committed: tracked, or new and not ignored."""
    # a checkout owned by another uid (sudo, a container) is still this checkout
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=30).stdout
    paths = (REPOSITORY / name for name in names.decode().split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files(room: str = "") -> list[Path]:
    """The repository's Python files under ``room`` (a folder, ``""`` for all)."""
    return [path for path in repository_files() if path.suffix == ".py" and path.is_relative_to(REPOSITORY / room)]


def shell_scripts() -> list[Path]:
    """Every file that a shell reads, by name or by its first line."""
    return [path for path in repository_files() if path.suffix == ".sh" or re.match(rb"#!.*sh\n", path.read_bytes())]


@functools.cache
def syntax_tree(path: Path) -> ast.Module:
    """The parsed module."""
    return ast.parse(path.read_text(), str(path))


def text_lines() -> Iterator[tuple[Path, int, str]]:
    """Each line of each text file except this one: path, 1-based number, text."""
    for path in repository_files():
        data = path.read_bytes()
        if path != THIS_FILE and b"\0" not in data:
            for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
                yield path, number, line


def place(path: Path, line: int) -> str:
    """``file:line`` as an editor understands it."""
    return f"{path.relative_to(REPOSITORY)}:{line}"


def run_linter(*command: str | Path) -> None:
    """Run one tool from the repository's top; fail with all it printed when it finds or warns of anything."""
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    if done.returncode or done.stderr:
        pytest.fail(f"{Path(command[0]).name} (exit {done.returncode}):\n{done.stdout}{done.stderr}", pytrace=False)


def no_findings(findings: list[str], rule: str) -> None:
    """Fail with the rule and every place that breaks it."""
    if findings:
        pytest.fail(f"{rule}:\n" + "\n".join(findings), pytrace=False)


# Tools


def test_ruff_finds_nothing() -> None:
    """The code passes every ruff rule selected in pyproject.toml."""
    run_linter(sys.executable, "-m", "ruff", "check", "--output-format=concise", ".")


def test_code_is_formatted() -> None:
    """The code is formatted as ruff formats it."""
    run_linter(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_types_are_strict() -> None:
    """Package and tests pass mypy in strict mode."""
    run_linter(sys.executable, "-m", "mypy")


def test_imports_point_down() -> None:
    """Rooms import only what the contracts in pyproject.toml allow."""
    run_linter(Path(sysconfig.get_path("scripts"), "lint-imports"), "--no-cache", "--no-logo")


def test_shell_scripts_pass_shellcheck() -> None:
    """Every shell script passes shellcheck at its strictest level."""
    run_linter("shellcheck", "--severity=style", "--external-sources", "--source-path=SCRIPTDIR", *shell_scripts())


def test_systemd_units_verify(tmp_path: Path) -> None:
    """The systemd units pass `systemd-analyze verify`, with programs where they look for the daemon."""
    units = sorted(path for path in (REPOSITORY / "contrib/systemd").iterdir() if path.suffix != ".conf")
    assert {unit.name for unit in units} == {"qsup-guests.service", "qsupd.service", "qsupd.socket"}
    for unit in units:
        # the daemon need not be installed for its unit to be right: another program stands in for it
        text = re.sub(r"^(Exec\w+=)qsup\w+", r"\g<1>/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    run_linter("systemd-analyze", "verify", "--man=no", *(tmp_path / unit.name for unit in units))


# House rules

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.}])/work/|/root/\.pyenv|/tmp/w/|\.\./shared",
    "a package registry's host": r"pypi\.org|pythonhosted\.org|\b(deb|security|snapshot)\.debian\.org|npmjs",
    "unfinished work": r"\b(TODO|FIXME|XXX|HACK)\b",
}


@pytest.mark.parametrize(("what", "pattern"), FORBIDDEN.items(), ids=lambda value: value.split()[-1])
def test_no_forbidden_words(what: str, pattern: str) -> None:
    """The repository names no path of one machine, no registry, no unfinished work."""
    found = [
        f"{place(path, number)}: {line.strip()}" for path, number, line in text_lines() if re.search(pattern, line)
    ]
    no_findings(found, f"the repository must not hold {what}")


def test_inits_hold_a_docstring_only() -> None:
    """A package's ``__init__.py`` holds its docstring and nothing else."""
    inits = [path for path in python_files() if path.name == "__init__.py"]
    wrong = [
        place(path, 1) for path in inits if ast.get_docstring(tree := syntax_tree(path)) is None or len(tree.body) != 1
    ]
    no_findings(wrong, "more than a docstring")


def test_modules_say_what_they_decide() -> None:
    """A module of the package opens with what it decides and what it must not do."""
    modules = [path for path in python_files("qsup") if path.name != "__init__.py"]
    docstrings = {path: ast.get_docstring(syntax_tree(path)) or "" for path in modules}
    silent = [place(path, 1) for path, text in docstrings.items() if "Decides:" not in text or "Must not:" not in text]
    no_findings(silent, "the docstring lacks `Decides:` or `Must not:`")


def test_long_files_and_classes_say_why() -> None:
    """A file over 400 lines or a class over 20 methods says ``Long because`` in its docstring."""
    findings = []
    for path in python_files():
        tree = syntax_tree(path)
        length = len(path.read_text().splitlines())
        if length > 400 and "Long because" not in (ast.get_docstring(tree) or ""):
            findings.append(f"{place(path, 1)}: {length} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "Long because" not in (ast.get_docstring(node) or ""):
                methods = sum(isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) for item in node.body)
                if methods > 20:
                    findings.append(f"{place(path, node.lineno)}: class {node.name} has {methods} methods")
    no_findings(findings, "too long, and no reason given")


SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore|ruff:\s*noqa|mypy:|pragma:|shellcheck disable)")
REASONED = re.compile(r"#\s*(noqa: [A-Z0-9, ]+|type: ignore\[[\w, -]+\]|shellcheck disable=[SC0-9,]+)\s+# \S+ \S+")


def test_every_suppression_gives_its_reason() -> None:
    """A linter is silenced on one line, for one rule, with the reason beside it."""
    lines = [(p, n, line) for p, n, line in text_lines() if p.suffix in {".py", ".sh", ""} and SUPPRESSION.search(line)]
    bare = [f"{place(path, number)}: {line.strip()}" for path, number, line in lines if not REASONED.search(line)]
    no_findings(bare, "a suppression without `# reason`")


def test_ignored_rules_give_their_reason() -> None:
    """Every rule switched off in pyproject.toml, and every override of types, says why on its line or above it."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:ignore|\"[^\"]+\") = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    bare = [line.strip() for block in blocks for line in block.splitlines() if not re.search(r"#\s+\S+ \S+", line)]
    overrides = re.findall(r"(.*)\n\[\[tool\.mypy\.overrides\]\]", text)
    no_findings(bare + [line for line in overrides if not line.startswith("# ")], "switched off without a reason")


def test_errors_are_never_dropped_silently() -> None:
    """An ``except`` whose body is a bare ``pass`` says in a comment why nothing is to be done."""
    findings = []
    for path in python_files():
        lines = path.read_text().splitlines()
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(item, ast.Pass) for item in node.body):
                source = lines[node.lineno - 1 : node.body[-1].end_lineno]
                if not any("#" in line for line in source):
                    findings.append(place(path, node.lineno))
    no_findings(findings, "an error is dropped without a reason")


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Every call of a dotted name in a file: name, line."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield ast.unparse(node.func), node.lineno


def test_signals_go_through_a_pidfd() -> None:
    """The daemon never signals by pid, which may name another process by then."""
    by_pid = {"os.kill", "os.killpg", "signal.pthread_kill"}
    found = [
        f"{place(path, line)}: {name}" for path in python_files("qsup") for name, line in calls(path) if name in by_pid
    ]
    no_findings(found, "a signal sent by pid")


def test_tests_never_sleep() -> None:
    """Tests wait for a named condition; only the helper that polls for one sleeps. The benchmark is no test."""
    sleeping = {"time.sleep", "trio.sleep", "sleep"}
    findings = []
    for path in python_files("tests"):
        if "bench" in path.relative_to(REPOSITORY).parts:
            continue  # it measures what a daemon costs while nothing happens
        lines = path.read_text().splitlines()
        slept = [line for name, line in calls(path) if name in sleeping]
        # under trio's mock clock a sleep costs nothing and is a script's beat, not a guess
        findings += [place(path, line) for line in slept if not lines[line - 1].endswith("# virtual time")]
    no_findings([finding for finding in findings if not finding.startswith("tests/waiting.py:")], "a sleep in a test")
