"""What is installed: ranges in requirements.txt, a lock for continuous integration that lies inside them."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PERMISSIVE = ("MIT", "BSD", "ISC", "Apache", "PSF", "MPL", "0BSD", "Zlib", "CC0", "CMU", "Matplotlib", "LLVM")


def requirements_of(name: str) -> list[tuple[Requirement, str]]:
    """Return the requirements of a file, each with what stands behind its #."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-"]
    return [(Requirement(text.strip()), comment) for text, _, comment in (line.partition("#") for line in lines)]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_has_bounds_on_both_sides():
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-bench.txt"):
        for requirement, _ in requirements_of(name):
            operators = {part.operator for part in requirement.specifier}
            assert operators in ({"=="}, {">=", "<"}), requirement


def test_the_lock_lies_inside_the_ranges_and_names_a_licence_for_each():
    lock = {canonical(requirement.name): requirement for requirement, _ in requirements_of("requirements-lock.txt")}
    for requirement, comment in requirements_of("requirements-lock.txt"):
        assert [part.operator for part in requirement.specifier] == ["=="], requirement
        assert any(licence in comment for licence in PERMISSIVE), requirement
    for name in ("requirements.txt", "requirements-dev.txt"):
        for requirement, _ in requirements_of(name):
            version = next(iter(lock[canonical(requirement.name)].specifier)).version
            assert requirement.specifier.contains(version), requirement


def test_the_lock_is_closed_under_what_its_packages_need():
    lock = {canonical(requirement.name) for requirement, _ in requirements_of("requirements-lock.txt")}
    for name in lock:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                name_needed = canonical(needed.name)
                assert name_needed in lock or name_needed.startswith(("nvidia", "cuda", "triton")), text
