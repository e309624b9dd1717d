"""The golden pairs: each unit gives the plan that was reviewed."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from qsup.plan.spec import ImageFd
from tests.plan import goldens


def test_there_are_goldens_enough() -> None:
    """There are at least forty pairs, and no plan without its unit."""
    plans = {path.stem for path in goldens.GOLDEN.glob("*.argv")}
    assert plans == set(goldens.names())
    assert len(plans) >= 40


@pytest.mark.parametrize("name", goldens.names())
def test_plan_is_the_reviewed_one(name: str) -> None:
    """A unit gives the plan beside it; `python -m tests.plan.regenerate` writes a changed one, to be reviewed."""
    golden = goldens.load(name)
    assert goldens.render(golden.plan(goldens.capabilities())) == golden.expected.read_text()


@pytest.mark.parametrize("name", goldens.names())
def test_plan_says_what_it_needs(name: str) -> None:
    """Every descriptor and file that the arguments name is asked for, under a name of its own, and none in vain."""
    plan = goldens.load(name).plan(goldens.capabilities())
    wanted = [each for request in plan.fds for each in goldens.fd_names(request)]
    assert len(set(wanted)) == len(wanted)
    given = goldens.numbers(plan)
    command = " ".join(plan.command(given, {file.name: f"/staged/{file.name}" for file in plan.files}))
    used = {
        int(number) for number in re.findall(r"\bfd=(\d+)|\"fd\":\"(\d+)\"", command) for number in number if number
    }
    assert used == set(given.values())
    assert all(f"/staged/{file.name}" in command for file in plan.files)


@pytest.mark.parametrize("name", goldens.names())
def test_no_image_is_named_by_path(name: str) -> None:
    """QEMU is told of no image but by a descriptor set, and follows no name that an image holds."""
    plan = goldens.load(name).plan(goldens.capabilities())
    nodes = [json.loads(str(value)) for value in options(plan.arguments, "-blockdev")]
    paths = [request.path for request in plan.fds if isinstance(request, ImageFd)]
    assert all(re.fullmatch(r"/dev/fdset/\d+", node["filename"]) for node in nodes if "filename" in node)
    assert all("backing" in node for node in nodes if node["driver"] == "qcow2")
    assert not any(path in str(argument) for argument in plan.arguments for path in paths)


@pytest.mark.parametrize("qemu", [name for name in goldens.recorded() if name != goldens.QEMU])
@pytest.mark.parametrize("name", goldens.names())
def test_plans_for_another_qemu_differ_in_the_machine_alone(name: str, qemu: str) -> None:
    """For another recorded QEMU the plan is the same but for the version of the machine type."""
    golden = goldens.load(name)
    ours, theirs = golden.plan(goldens.capabilities()), golden.plan(goldens.capabilities(qemu))
    assert [str(each).replace(theirs.machine, ours.machine) for each in theirs.arguments] == list(
        map(str, ours.arguments)
    )
    assert (theirs.fds, theirs.files, theirs.disks, theirs.nics) == (ours.fds, ours.files, ours.disks, ours.nics)


def options(arguments: tuple[object, ...], name: str) -> list[object]:
    """The values of an option."""
    return [value for option, value in itertools.pairwise(arguments) if option == name]
