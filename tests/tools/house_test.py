"""The scripts that hold the house to its rules find what breaks them: lines.sh, dependencies.py, count_cases.py."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class House(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def test_a_folder_over_its_lines(self):
        self.write("losses/loss.cpp", "int x;\n" * 100)
        self.assertEqual(run(TOOLS / "lines.sh", self.root)[0], 0)
        self.write("losses/more.h", "int x;\n" * 10000)
        code, text = run(TOOLS / "lines.sh", self.root)
        self.assertEqual(code, 1, text)
        self.assertRegex(text, r"losses +10100 of +\d+  over by")

    def dependencies(self, *options):
        return run(sys.executable, TOOLS / "dependencies.py", "--root", self.root, *options)

    def test_an_include_that_points_up(self):
        self.write("engine/graph/graph.h", '#include "engine/tensor/shape.h"\n')
        self.assertEqual(self.dependencies("--write")[0], 0)
        self.assertEqual(self.dependencies()[0], 0)
        self.write("engine/tensor/shape.h", '#pragma once\n#include "engine/graph/graph.h"\n')
        code, text = self.dependencies("--write")
        self.assertEqual(code, 1)
        self.assertIn("engine/tensor/shape.h:2: engine/tensor includes engine/graph/graph.h", text)

    def test_a_folder_beside_and_one_that_nobody_knows(self):
        self.write("models/m.cpp", '#include "data/d.h"\n')
        self.write("engine/cellar/c.h", '#include "kernels/k.h"\n')
        code, text = self.dependencies("--write")
        self.assertEqual(code, 1)
        self.assertIn("data does not stand below models", text)
        self.assertIn("engine/cellar stands on no floor", text)

    def test_a_drawing_that_is_out_of_date(self):
        self.write("losses/loss.h", '#include "kernels/k.h"\n')
        self.dependencies("--write")
        self.write("data/d.h", '#include "engine/base/error.h"\n')
        code, text = self.dependencies()
        self.assertEqual(code, 1)
        self.assertIn("run tools/dependencies.py --write", text)

    def count(self, log):
        return run(sys.executable, TOOLS / "count_cases.py", self.write("log", log))

    def test_cases_are_counted_and_a_crash_is_a_failure(self):
        program = "1: [==========] Running 3 tests from 1 test suite.\n1: [       OK ] A.a (0 ms)\n"
        skipped = "1: [  SKIPPED ] A.b (1 ms)\n1: [  SKIPPED ] 1 test, listed below:\n1: [  SKIPPED ] A.b\n"
        script = "2/2 Test #2: Script.Runs ........   Passed    0.10 sec\n"
        code, text = self.count(program + "1: [       OK ] A.c (0 ms)\n" + skipped +
                                "1/2 Test #1: a.1 ....   Passed    0.01 sec\n" + script)
        self.assertEqual(code, 0, text)
        self.assertEqual(text.splitlines()[-1], "3 passed, 0 failed, 1 skipped")
        code, text = self.count(program + skipped + "1: A.c says this\n" +
                                "1/2 Test #1: a.1 ....***Exception: SegFault  0.01 sec\n" + script)
        self.assertEqual(code, 1)
        self.assertIn("A.c says this", text)
        self.assertEqual(text.splitlines()[-1], "2 passed, 1 failed, 1 skipped")

    def test_a_program_that_fails_after_its_cases(self):
        code, text = self.count("1: [==========] Running 1 test from 1 test suite.\n1: [       OK ] A.a (0 ms)\n"
                                "1/1 Test #1: a.1 ....***Failed    0.01 sec\n")
        self.assertEqual((code, text.splitlines()[-1]), (1, "0 passed, 1 failed, 0 skipped"))

    def test_nothing_at_all(self):
        self.assertEqual(self.count("No tests were found!!!\n")[0], 1)


if __name__ == "__main__":
    unittest.main()
