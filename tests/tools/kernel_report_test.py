"""tools/kernel_report.sh --check finds a spill and a broken promise, and passes a kernel that keeps its own."""

import json
import pathlib
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "kernel_report.sh"
COPY = """
#include <cstdint>
__global__ void __launch_bounds__(256) copy(uint4* y, const uint4* x) { y[threadIdx.x] = x[threadIdx.x]; }
"""
SPILL = """
__global__ void __launch_bounds__(1024) crowd(float* y, const float* x) {
  float v[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = v[i] * v[127 - i];
}
"""


class KernelReport(unittest.TestCase):
    def check(self, source, header, built=None):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "probe.cu").write_text(source)
            (folder / "probe.h").write_text(header + "\n")
            command = [SCRIPT, "--check", "--arch", "90", "--folder", folder, "--cache", folder / "cache",
                       "--json", folder / "rows.json"]
            if built:
                (folder / "build").mkdir()
                (folder / "build" / "probe.cu").write_text(built)
                subprocess.run(["nvcc", "-arch=sm_90", "--no-compress", "-c", folder / "build" / "probe.cu", "-o",
                                folder / "probe.cu.o"], check=True)
                command += ["--objects", folder / "probe.cu.o"]
            done = subprocess.run(command, capture_output=True, text=True)
            rows = folder / "rows.json"
            return done.returncode, done.stdout + done.stderr, json.loads(rows.read_text()) if rows.exists() else []

    def test_passes_and_counts(self):
        code, text, rows = self.check(COPY, "// Occupancy: at least 100% (256 threads).")
        self.assertEqual(code, 0, text)
        self.assertEqual([(r["kernel"], r["occupancy"], r["vector_loads"], r["loads"], r["vector_stores"], r["mma"])
                          for r in rows], [("copy", 100, 1, 1, 1, 0)])

    def test_finds_a_spill(self):
        code, text, rows = self.check(SPILL, "")
        self.assertEqual(code, 1, text)
        self.assertIn("probe.cu: crowd on sm_90 spills", text)
        self.assertEqual(rows[0]["threads"], 1024)

    def test_takes_what_a_build_made(self):
        code, text, rows = self.check(SPILL, "", built=COPY)
        self.assertEqual((code, [(r["kernel"], r["vector_loads"], r["loads"]) for r in rows]), (0, [("copy", 1, 1)]), text)

    def test_finds_a_broken_promise(self):
        header = "// Occupancy of copy: at least 50% (256 threads, 65536 bytes of shared memory)."
        code, text, _ = self.check(COPY, header)  # three blocks of 8 warps fit in 228 KiB: 37%
        self.assertEqual(code, 1, text)
        self.assertIn("has an occupancy of 37%", text)

    def test_refuses_a_promise_that_it_cannot_read(self):
        for header, complaint in (("// Occupancy: about half.", "cannot read"),
                                  ("// Occupancy of paste: at least 50%.", "which probe.cu does not have")):
            code, text, _ = self.check(COPY, header)
            self.assertNotEqual(code, 0)
            self.assertIn(complaint, text)


if __name__ == "__main__":
    unittest.main()
