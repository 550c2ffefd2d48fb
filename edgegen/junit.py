"""Gates as JUnit XML, which continuous integration shows beside the tests."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from edgegen import records
from edgegen.compare import Comparison, describe
from edgegen.errors import UsageError
from edgegen.tables import pick

SUITE = "edgegen compare"


def write(comparison: Comparison, path: Path | str) -> None:
    """One test case for each gate and row, and one for the budget.

    Raises:
        UsageError: there is neither a gate nor a budget.
    """
    text = xml(comparison)
    with records.whole(path) as part:
        part.write_text(text, encoding="utf-8")


def xml(comparison: Comparison) -> str:
    """The document that `write` writes.

    Source: github.com/testmoapp/junitxml, the parts of the format that all readers share.
    """
    cases = [(f"{r.gate}", r.row, r.met, describe(r)) for r in comparison.gates]
    if comparison.best:
        best = comparison.best
        why = "; ".join(f"{one.row}: {one.why}" for one in best.excluded)
        cases.append((best.budget, "--best", bool(best.row), pick(best) if best.row else why))
    if not cases:
        raise UsageError("--junit has nothing to report", "give a gate: --gate 'p50<=+5%'")
    failed = sum(not met for _, _, met, _ in cases)
    totals = {"name": SUITE, "tests": str(len(cases)), "failures": str(failed), "errors": "0"}
    root = Xml.Element("testsuites", totals)
    suite = Xml.SubElement(root, "testsuite", totals)
    for name, row, met, found in cases:
        case = Xml.SubElement(suite, "testcase", classname=row, name=name)
        if met:
            Xml.SubElement(case, "system-out").text = found
        else:
            Xml.SubElement(case, "failure", message=found, type="GateError").text = found
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
