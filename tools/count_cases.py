"""What a log of `ctest --verbose` says: a line for each test of ctest, what the failed ones wrote, and the number of
cases that passed, failed and were skipped. A test of ctest that runs a program of GoogleTest is as many cases as the
program announced, and one that it did not report has failed; any other is one case. Exits 1 if anything failed.

    python3 tools/count_cases.py LOG
"""

import collections
import re
import sys

QUIET = re.compile(r"\[ RUN      \]|\[       OK \]|\[-{10}\]")


def main():
    wrote = collections.defaultdict(list)
    passed = failed = skipped = 0
    with open(sys.argv[1], errors="replace") as log:
        for line in log:
            if m := re.match(r"(\d+): (.*)", line):
                wrote[int(m[1])].append(m[2])
                continue
            m = re.match(r" *\d+/\d+ Test +#(\d+): \S+ \.*(.*?) +[\d.]+ sec", line)
            if m is None:
                continue
            said, verdict = wrote.pop(int(m[1]), []), m[2].strip()
            print(line, end="")
            cases = sum(int(n) for n in re.findall(r"^\[={10}\] Running (\d+) test", "\n".join(said), re.M))
            ok = sum(s.startswith("[       OK ]") for s in said)
            skips = sum(re.match(r"\[  SKIPPED \] .* \(\d+ ms\)$", s) is not None for s in said)
            good = verdict in ("Passed", "***Skipped")
            if cases == 0 and not any("Running 0 tests" in s for s in said):
                cases, ok, skips = 1, int(verdict == "Passed"), int(verdict == "***Skipped")
            bad = max(cases - ok - skips, 0 if good else 1)
            passed, failed, skipped = passed + cases - skips - bad, failed + bad, skipped + skips
            if bad:
                print("\n".join([s for s in said if not QUIET.match(s)][-200:]))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
