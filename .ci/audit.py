"""Looks the installed packages up in the advisories of PyPI, and says how many could not be looked up.

Arguments are advisories to let pass; the Makefile has the reason of each.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Show each advisory; 1 if there is one, or if no package could be looked up."""
    ask = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    ask += [word for known in sys.argv[1:] for word in ("--ignore-vuln", known)]
    answer = subprocess.run([*ask, "--format", "json"], capture_output=True, text=True)
    if not answer.stdout.startswith("{"):
        print(f"no advisories: {(answer.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1]}")
        return 1
    packages = json.loads(answer.stdout)["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    found = [(one, advisory) for one in packages for advisory in one.get("vulns", [])]
    for one, advisory in found:
        mended = ", ".join(advisory["fix_versions"]) or "no version"
        print(f"{one['name']} {one['version']}: {advisory['id']}, mended in {mended}")
    print(f"{len(packages) - len(skipped)} of {len(packages)} packages looked up, {len(found)} advisories.")
    if len(skipped) == len(packages):
        print("None is known there: pypi.org cannot be reached, or a mirror without advisories answers in its place.")
        return 1
    if skipped:
        print(f"Not looked up: {', '.join(skipped)}.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
