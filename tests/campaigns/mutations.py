"""Delete each line that orders streams or keeps copies asynchronous, one at a time; the tests must notice.

    python tests/campaigns/mutations.py [--only models/offload.py] [--jobs 2] [--like tests/campaigns/mutations.md]

Each mutation is made in a copy of the package, on which the tests with pretend GPUs run until one fails. Prints a table
of the mutations and of the tests that failed; exits with code 1 if a mutation went unnoticed. The whole campaign takes
hours. With the table of an earlier one (--like), the test that failed there runs first: most mutations take seconds.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vinfinity"
# in the order in which they run: those that end soon first
TESTS = (
    "tests/bench/test_timings_on_gpus.py",
    "tests/bench/test_pairs.py",
    "tests/parallel/test_liveness.py",
    "tests/models/test_offload.py",
    "tests/test_gpu.py",
    "tests/test_pretend_gpu.py",
    "tests/parallel/test_pretend_ranks.py",
)
# methods of streams, events, tensors and handles whose calls order something
ORDERING = {"wait_event", "wait_stream", "record_stream", "record", "synchronize"}
# arguments that keep a copy asynchronous
ASYNCHRONOUS = {"non_blocking", "pin_memory"}
LIMIT = 900.0
UNUSABLE = "raise ImportError('this is the copy')\n"


@dataclass(frozen=True)
class Mutation:
    """A change of one place in a file. start, stop: bytes of the file that `text` replaces."""

    file: Path
    line: int
    what: str
    start: int
    stop: int
    text: str

    def apply(self, package: Path) -> None:
        """Make the change in a copy of the package."""
        path = package / self.file
        source = path.read_bytes()
        path.write_bytes(source[: self.start] + self.text.encode() + source[self.stop :])


def mutations(file: Path) -> Iterator[Mutation]:
    """All mutations of one file of the package, in order."""
    source = (PACKAGE / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def mutation(node: ast.expr | ast.stmt | ast.keyword, text: str) -> Mutation:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, stop = (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )
        before = " ".join(source[start:stop].decode().split())
        return Mutation(file, node.lineno, f"`{before}` -> `{text}`", start, stop, text)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr | ast.Assign) and orders(node):
            yield mutation(node, "pass")
        elif isinstance(node, ast.keyword) and node.arg in ASYNCHRONOUS and not is_false(node.value):
            yield mutation(node, f"{node.arg}=False")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "record_event":
                # an event that nobody records has always happened
                yield mutation(node, "torch.cuda.Event()")
            elif node.func.attr == "pin_memory" and not node.args:
                yield mutation(node, ast.unparse(node.func.value))


def orders(statement: ast.Expr | ast.Assign) -> bool:
    """Return whether a statement does nothing but order streams, so that it can be removed."""
    if isinstance(statement, ast.Assign):
        # `weakref.finalize(x, stream.wait_event, event).atexit = False`
        [target, *_] = statement.targets
        return isinstance(target, ast.Attribute) and bool(attributes(target) & ORDERING)
    called = statement.value
    if not isinstance(called, ast.Call) or not isinstance(called.func, ast.Attribute) or len(called.args) > 1:
        return False
    # the handle of a message: `work.wait()`
    return called.func.attr in ORDERING or ast.unparse(called) == "work.wait()"


def attributes(node: ast.AST) -> set[str]:
    """Return the names of all attributes in some code."""
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def first_failure(mutation: Mutation | None, *, before: str | None = None) -> str | None:
    """Return the first test that fails under a mutation, or without one; None if all pass.

    before: the test that failed in an earlier campaign, which runs before all others.
    """
    tests = [str(ROOT / test) for test in TESTS]
    with tempfile.TemporaryDirectory(prefix="vinfinity-mutation-") as name:
        copy = Path(name) / "vinfinity"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        (copy / "assets").symlink_to(PACKAGE / "assets")
        if mutation is not None:
            mutation.apply(copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-rfE"]
        command += ["-m", "not slow", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
        # pyproject.toml puts ROOT, with the package as it is, before PYTHONPATH
        command += ["-o", f"pythonpath={name} {ROOT / 'tests'}"]
        environment = {**os.environ, "PYTHONPATH": name, "OMP_NUM_THREADS": "1"}
        if before is not None:
            found = run_tests([*command, f"{ROOT}/tests/{before}"], name, environment)
            # the test may have another name by now
            if found is not None and "::" in found:
                return found
        return run_tests([*command, *tests], name, environment)


def run_tests(command: list[str], folder: str, environment: dict[str, str]) -> str | None:
    """Run tests in a folder until one fails. Returns that test, or what went wrong; None if all pass."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"nothing ended within {LIMIT:g} s"
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) \S*?tests/(.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    return found[1] if found else f"exit code {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"


def earlier_failures(table: Path | None) -> dict[tuple[str, str], list[str]]:
    """Return the tests that failed in an earlier campaign by file and change, in the order of its table."""
    found: dict[tuple[str, str], list[str]] = {}
    rows = [] if table is None else table.read_text(encoding="utf-8").splitlines()
    for row in rows:
        if match := re.fullmatch(r"\| (.+?):\d+ \| (.+) \| `(\S+::.+)` \|", row):
            found.setdefault((match[1], match[2]), []).append(match[3])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutate files whose path contains this")
    parser.add_argument("--jobs", type=int, default=1, help="mutations that are tested at once")
    parser.add_argument("--like", type=Path, help="table of an earlier campaign, whose tests run first")
    arguments = parser.parse_args()
    files = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    planned = [
        mutation
        for file in files
        if arguments.only in str(file)
        for mutation in sorted(mutations(file), key=lambda mutation: mutation.start)
    ]
    print(f"{len(planned)} mutations; first the tests without any")
    if (failed := first_failure(None)) is not None:
        print(f"they fail: {failed}")
        return 1
    if first_failure(Mutation(Path("errors.py"), 1, "", 0, 0, UNUSABLE)) is None:
        print("they do not test the copy of the package")
        return 1
    print("| line | change | first test that fails |\n|---|---|---|", flush=True)
    unnoticed, earlier = 0, earlier_failures(arguments.like)
    known = [next(iter(earlier.get((str(mutation.file), mutation.what), ())), None) for mutation in planned]
    with ThreadPoolExecutor(max_workers=arguments.jobs) as pool:
        results = pool.map(lambda mutation, before: first_failure(mutation, before=before), planned, known)
        for mutation, failed in zip(planned, results, strict=True):
            unnoticed += failed is None
            shown = "**none**" if failed is None else f"`{failed}`"
            print(f"| {mutation.file}:{mutation.line} | {mutation.what} | {shown} |", flush=True)
    print(f"{unnoticed} of {len(planned)} went unnoticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
